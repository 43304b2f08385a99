"""`strive.scorers` under the name that users' scorers for earlier versions import."""

from strive.scorers import *  # noqa: F403
