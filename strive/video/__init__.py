"""Video files to frames: which frames, exact decoding, and workers that can be killed."""
