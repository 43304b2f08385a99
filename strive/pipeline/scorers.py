"""The place where users' scorers of earlier versions import from: now `strive.scorers`."""

from strive.scorers import *  # noqa: F403
