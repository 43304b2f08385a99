"""What a researcher writes in an hour: decode, embed, score, one video at a time.

Library defaults throughout (decord, open_clip's own transform, torch's own threads). It keeps no
frames: it does less than the offline stage and can only be faster for that.

    python -m bench.straightforward RECORDS.jsonl VIDEO_ROOT MODEL_DIR OUT.npz
"""

# ruff: noqa: I001 - torch before decord: loaded the other way round, torch's attention crashes.
import json
import sys
from pathlib import Path

import torch
import decord
import numpy as np
import open_clip
from PIL import Image


def main(records: Path, root: Path, model_dir: Path, out: Path, num_frames: int = 64) -> None:
    """Score every record's frames and save them."""
    source = f"local-dir:{model_dir}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    tokenizer = open_clip.get_tokenizer(source)
    model.eval()
    scores = {}
    for line in records.read_text().splitlines():
        row = json.loads(line)
        reader = decord.VideoReader(str(root / row["path"]))
        index_F = (np.arange(num_frames) + 0.5) * len(reader) // num_frames
        frames_FHWC = reader.get_batch(index_F.astype(int)).asnumpy()
        with torch.no_grad():
            pixels = torch.stack([preprocess(Image.fromarray(f)) for f in frames_FHWC])
            frames_FD = model.encode_image(pixels, normalize=True)
            question_D = model.encode_text(tokenizer([row["problem"]]), normalize=True)[0]
        scores[str(row["problem_id"])] = (frames_FD @ question_D).numpy()
    np.savez(out, **scores)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))
