"""Which way up a video is shown: eight orientations, numbered as EXIF numbers them.

1 as stored, 2 mirrored left to right, 3 turned by 180 degrees, 4 mirrored top to bottom, 5 mirrored
across the diagonal from the top left, 6 turned clockwise by 90 degrees, 7 mirrored across the other
diagonal, 8 turned counter-clockwise by 90 degrees.
"""

import math
import struct

import av
import numpy as np
from av.sidedata.sidedata import SideData

AS_STORED = 1


def of_picture(picture: av.VideoFrame) -> tuple[int, bool]:
    """Return a decoded picture's orientation, and whether it is all that its matrix asks for."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return AS_STORED, True
    return of_matrix(struct.unpack("=9i", bytes(matrix)))


def of_matrix(matrix: tuple[int, ...]) -> tuple[int, bool]:
    """Return the orientation of a display matrix (nine numbers), as FFmpeg's program applies it.

    False comes with a matrix whose angle is no quarter turn: such a picture stays as stored.
    """
    a, b, _, c, d, *_ = matrix
    if not math.hypot(a, c) or not math.hypot(b, d):
        return AS_STORED, True  # maps everything to a line: nothing can be shown by it
    theta = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
    if min(theta, 360 - theta) < 1:
        return (4 if d < 0 else 1), True
    if abs(theta - 90) < 1:
        return (5 if c > 0 else 6), True
    if abs(theta - 180) < 1:
        return {(True, True): 3, (True, False): 2, (False, True): 4}.get((a < 0, d < 0), 1), True
    if abs(theta - 270) < 1:
        return (7 if c < 0 else 8), True
    return AS_STORED, False


def swaps_sides(orientation: int) -> bool:
    """Whether the height becomes the width."""
    return orientation >= 5


def oriented(frame_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Return a stored picture as it is shown."""
    if swaps_sides(orientation):
        frame_HWC = frame_HWC.transpose(1, 0, 2)  # that is 5; the others are it, mirrored
    if orientation in (2, 3, 6, 7):
        frame_HWC = frame_HWC[:, ::-1]
    if orientation in (3, 4, 7, 8):
        frame_HWC = frame_HWC[::-1]
    return frame_HWC
