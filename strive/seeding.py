"""Random generators derived from what they are for, never from a shared stream.

A draw depends only on its own keys, such as (seed, step, question_id, variant), so the same call
gives the same run on one process or on many, in any order, and after a resume.
"""

import hashlib

import numpy as np

Key = int | str


def derive_seed(*keys: Key) -> int:
    """Hash the keys to a 64-bit integer; equal keys give equal seeds on every machine.

    The builtin `hash` is salted per process for strings, hence SHA-256. Keys are tagged with their
    type and length, so (1, "2") and ("1", 2) or ("ab",) and ("a", "b") differ.
    """
    digest = hashlib.sha256()
    for key in keys:
        text = str(key).encode()
        digest.update(f"{type(key).__name__}:{len(text)}:".encode())
        digest.update(text)
    return int.from_bytes(digest.digest()[:8], "little")


def derive_rng(*keys: Key) -> np.random.Generator:
    """Return a NumPy generator (Philox) keyed by `derive_seed(*keys)`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(*keys)))
