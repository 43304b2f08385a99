"""STRIVE: reinforcement learning for video question answering (arXiv:2604.01824)."""

__version__ = "0.1.0"
