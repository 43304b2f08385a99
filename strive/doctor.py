"""Checks of this machine: packages, devices and tools, each with the exact fix."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from strive.errors import short_reason

Status = Literal["ok", "missing", "optional"]


@dataclass(frozen=True)
class Finding:
    """One checked thing; `fix` is a command or a sentence, empty when nothing is to be done."""

    what: str
    status: Status
    found: str
    fix: str = ""


def _look(what: str, is_fine: bool, found: str, fix: str, otherwise: Status = "missing") -> Finding:
    """Return what was found; the fix is told only where it is needed."""
    return Finding(what, "ok" if is_fine else otherwise, found, "" if is_fine else fix)


def check_machine() -> Iterator[Finding]:
    """Report the interpreter (3.11 is the oldest that is supported), cores, and free disk here."""
    yield _look(
        "Python",
        sys.version_info >= (3, 11),
        platform.python_version(),
        "install Python 3.11 or newer and make the environment again",
    )
    yield Finding("processor", "ok", f"{os.cpu_count()} cores, {platform.machine()}")
    free_gib = shutil.disk_usage(".").free / 2**30
    yield _look(
        "free disk here",
        free_gib > 2,
        f"{free_gib:.0f} GiB",
        "free some space, or put --workspace on another disk",
    )


def check_torch() -> Iterator[Finding]:
    """Report torch and the GPUs it sees."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", "missing", str(error), "pip install torch torchvision")
        return
    yield Finding("torch", "ok", torch.__version__)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            yield Finding(f"GPU {index}", "ok", f"{properties.name}, {memory:.0f} GiB")
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it looked
        yield Finding(
            "GPU",
            "optional",
            "none",
            "the lab runs on the CPU; 7B policies need NVIDIA GPUs, a driver and torch for CUDA",
        )


def check_import(module: str, package: str) -> Iterator[Finding]:
    """Report whether a required package imports, not only whether it is installed."""
    problem = ""
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        problem = short_reason(error, 100)
    found = problem or importlib.metadata.version(package)
    yield _look(package, not problem, found, f"pip install {package}")


def check_torchcodec() -> Iterator[Finding]:
    """Report the optional decoder, which needs FFmpeg's shared libraries on the system."""
    from strive.video.decoders import TORCHCODEC_FIX, torchcodec_import_error

    problem = torchcodec_import_error()
    yield _look(
        "torchcodec",
        not problem,
        f"not usable: {problem[:80]}" if problem else importlib.metadata.version("torchcodec"),
        f"not needed (PyAV decodes); for --decoder torchcodec: {TORCHCODEC_FIX}",
        otherwise="optional",
    )


def check_ffmpeg() -> Iterator[Finding]:
    """Report the bundled FFmpeg binary, which writes the lab's clips."""
    try:
        binary = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        text = subprocess.run(
            [binary, "-version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout.split()
        yield Finding("FFmpeg binary (bundled)", "ok", text[2])
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        yield Finding(
            "FFmpeg binary (bundled)", "missing", str(error)[:100], "pip install imageio-ffmpeg"
        )


def check_compiler() -> Iterator[Finding]:
    """Report a C++ compiler; STRIVE needs none, DeepSpeed's fused GPU optimisers do."""
    found = shutil.which("g++")
    yield _look(
        "C++ compiler",
        bool(found),
        found or "none: not needed",
        "only for DeepSpeed's fused or CPU-offload optimisers: apt-get install g++ ninja-build",
        otherwise="optional",
    )


def check_hub() -> Iterator[Finding]:
    """Report the folder of downloaded models and whether downloads are switched off."""
    try:
        constants = importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        yield Finding("Hugging Face hub", "missing", str(error), "pip install huggingface_hub")
        return
    is_offline = constants.HF_HUB_OFFLINE
    yield _look(
        "Hugging Face hub",
        not is_offline,
        f"{'offline' if is_offline else 'not asked'}, cache {constants.HF_HUB_CACHE}",
        "unset HF_HUB_OFFLINE to download models; lab:... models need no download",
        otherwise="optional",
    )


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python, processor and disk": check_machine,
    "torch and GPUs": check_torch,
    "transformers": lambda: check_import("transformers", "transformers"),
    "open_clip": lambda: check_import("open_clip", "open_clip_torch"),
    "DeepSpeed": lambda: check_import("deepspeed", "deepspeed"),
    "PyAV": lambda: check_import("av", "av"),
    "decord": lambda: check_import("decord", "decord2"),
    "torchcodec": check_torchcodec,
    "faiss": lambda: check_import("faiss", "faiss-cpu"),
    "FFmpeg": check_ffmpeg,
    "C++ compiler": check_compiler,
    "model hub": check_hub,
}

_ALWAYS = ("Python", "free disk here", "torch", "transformers", "open_clip_torch", "av", "decord2")
_TRAINING = (*_ALWAYS, "deepspeed")
USES: dict[str, tuple[str, ...]] = {
    "precompute": _ALWAYS,
    "train and evaluate": _TRAINING,
    "the lab and strive-cli demo": (*_TRAINING, "FFmpeg binary (bundled)"),
    "search": (*_ALWAYS, "faiss-cpu"),
    "7B policies (docs/scaling.md: what fits)": (*_TRAINING, "GPU"),
    "downloads from the hub": ("Hugging Face hub",),
    "--decoder torchcodec": ("torchcodec",),
}
"""The uses of this package, and the findings that must be fine for it; `GPU` stands for any one."""


def verdict(findings: Sequence[Finding]) -> tuple[list[str], dict[str, str]]:
    """Return the uses that this machine is ready for, and for each other one the reasons."""
    lacking = {
        finding.what: f"{finding.what} is lacking"
        + (f" ({finding.found})" if finding.found != "none" else "")
        for finding in findings
        if finding.status != "ok"
    }
    reasons = {
        use: ", ".join(lacking[what] for what in needed if what in lacking)
        for use, needed in USES.items()
    }
    ready = [use for use, reason in reasons.items() if not reason]
    return ready, {use: reason for use, reason in reasons.items() if reason}
