import sys
from pathlib import Path

# Helper modules of these tests are imported as `video.coded_clips` and so on.
sys.path.insert(0, str(Path(__file__).parent))

from clip_world import clip_folder, world

__all__ = ["clip_folder", "world"]
