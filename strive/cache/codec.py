"""How one frame of the pool is stored: JPEG (lossy, about a tenth of the size) or raw bytes."""

import io
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image

from strive.choices import FrameCodecName
from strive.errors import CacheDamageError, unknown_name

JPEG_QUALITY = 92
FRAME_CODECS: tuple[str, ...] = get_args(FrameCodecName)


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """A frame codec; `fields` go into the frames key."""

    name: FrameCodecName = "jpeg"

    def __post_init__(self) -> None:
        if self.name not in FRAME_CODECS:
            raise unknown_name("frame codec", self.name, FRAME_CODECS)

    @property
    def fields(self) -> dict[str, Any]:
        """What the frames key hashes."""
        if self.name == "raw":
            return {"name": "raw"}
        return {"name": "jpeg", "quality": JPEG_QUALITY, "subsampling": "4:4:4"}

    def encode(self, frame_HWC: np.ndarray) -> bytes:
        """Encode one uint8 RGB frame."""
        if self.name == "raw":
            return np.ascontiguousarray(frame_HWC).tobytes()
        out = io.BytesIO()
        # subsampling=0 is 4:4:4: chroma at full size, because colours are what questions ask about
        Image.fromarray(frame_HWC).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return out.getvalue()

    def decode(self, data: bytes | memoryview, height: int, width: int) -> np.ndarray:
        """Decode one frame to uint8 [H, W, 3]."""
        if self.name == "raw":
            return np.frombuffer(data, np.uint8).reshape(height, width, 3)
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                frame_HWC = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise CacheDamageError(f"a stored frame is not a readable JPEG ({error})") from None
        if frame_HWC.shape != (height, width, 3):
            raise CacheDamageError(
                f"a stored frame is {frame_HWC.shape[1]}x{frame_HWC.shape[0]}, "
                f"its row says {width}x{height}"
            )
        return frame_HWC
