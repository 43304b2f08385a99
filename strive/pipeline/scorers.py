"""Where scorers of earlier versions found what is now in `strive.scorers`."""

from strive.scorers import *  # noqa: F403
