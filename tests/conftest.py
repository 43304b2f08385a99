"""Settings of the whole suite."""

import os
import signal
import sys
from collections.abc import Iterator

# Tiny models lose time to thread hand-over; two test processes at once would lose much more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests meet no model hub; a name that is no folder must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What is left of a Ray run must not connect again when it is collected, in a later test.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

# A shell's background job ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

# A busy machine is no failure: no deadline per example. The same examples in every run.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def torchs_own_linear() -> Iterator[None]:
    """Undo what ZeRO 3 leaves: DeepSpeed puts a linear layer of its own, other in its last bits,
    into torch for the rest of the process."""
    torch = sys.modules.get("torch")
    linear = torch and torch.nn.functional.linear
    yield
    if torch is not None:
        torch.nn.functional.linear = linear


@pytest.fixture(scope="module", autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Undo what a run inside this process leaves for the processes that later tests start."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
