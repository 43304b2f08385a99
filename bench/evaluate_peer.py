"""lmms-eval's command line with its model in float32, as ours is on a CPU; else as it is.

Its wrapper asks for bfloat16 whatever the device, which many processors only emulate. Runs in
lmms-eval's environment: `python -P bench/evaluate_peer.py ARGUMENTS`.
"""

import runpy
from typing import Any

from transformers import Qwen2_5_VLForConditionalGeneration as Model

open_model = Model.from_pretrained


def open_in_float32(*args: Any, **kwargs: Any) -> Any:
    """Open the model as asked, in float32."""
    return open_model(*args, **kwargs | {"torch_dtype": "float32"})


if __name__ == "__main__":
    Model.from_pretrained = open_in_float32
    runpy.run_module("lmms_eval", run_name="__main__")
