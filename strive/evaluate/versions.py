"""What an evaluation ran with: package versions, and a digest of the model."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from strive import __version__
from strive.files import expanded, file_digest

PACKAGES = ("torch", "transformers", "av", "decord2", "numpy", "rouge-score", "jiwer")


def installed_versions() -> dict[str, str]:
    """Return versions of everything that can change an answer or its grade."""
    found = {"strive": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def model_digest(model: str) -> str | None:
    """Digest a model folder's weights and configuration; None for a hub id.

    A folder that was trained on must not be taken for the one whose answers are on disk.
    """
    folder = expanded(Path(model))
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        # What a recipe measured does not change what the model answers.
        if path.name == "recipe.json":
            continue
        digest.update(path.name.encode() + file_digest(path, "blake2b"))
    return digest.hexdigest()
