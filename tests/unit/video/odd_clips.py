"""Video files that players show and packet counters get wrong, made from small numbered clips."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from video.coded_clips import draw, write_clip

TRANSPORT_PACKET_BYTES = 188


def with_edit_list(data: bytes, entries: list[tuple[int, int]]) -> bytes:
    """Replace the edit list of an MP4 whose index comes last.

    `entries` are (milliseconds, first tick of the media).
    """
    at = data.index(b"elst") - 4
    old = data[at : at + struct.unpack_from(">I", data, at)[0]]
    new = struct.pack(">I4sII", 16 + 12 * len(entries), b"elst", 0, len(entries))
    for milliseconds, tick in entries:
        new += struct.pack(">IiI", milliseconds, tick, 1 << 16)
    changed = bytearray(data.replace(old, new, 1))
    for box in (b"edts", b"trak", b"moov"):
        at = changed.index(box) - 4
        (length,) = struct.unpack_from(">I", changed, at)
        struct.pack_into(">I", changed, at, length + len(new) - len(old))
    return bytes(changed)


def with_clap(data: bytes, *numbers: tuple[int, int]) -> bytes:
    """Give an MP4 of H.264 whose index comes last a `clap` box.

    `numbers` are the fractions of width, height, and how far its middle lies right and down.
    """
    new = struct.pack(">I4s8i", 40, b"clap", *(value for number in numbers for value in number))
    changed = bytearray(data)
    at = changed.rindex(b"avcC") - 4
    changed[at:at] = new
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = changed.rindex(box) - 4
        (length,) = struct.unpack_from(">I", changed, at)
        struct.pack_into(">I", changed, at, length + len(new))
    return bytes(changed)


# Options of FFmpeg with which its Matroska files say enough of colour to make room.
COLOUR: dict[str, object] = {
    **{"color_primaries": 1, "color_trc": 1, "colorspace": 1, "color_range": "tv"},
    "chroma_sample_location": "topleft",
}


def with_pixel_crop(data: bytes, **sides: int) -> bytes:
    """Have a Matroska file written with `COLOUR` speak of cropping where it spoke of colour."""
    kinds = {"bottom": b"\x54\xaa", "top": b"\x54\xbb", "left": b"\x54\xcc", "right": b"\x54\xdd"}
    new = b"".join(kinds[side] + b"\x81" + bytes([value]) for side, value in sides.items())
    at = data.index(b"\x55\xb0")
    room = 3 + (data[at + 2] & 0x7F)
    unused = room - len(new) - 2
    new += b"\xec" + bytes([0x80 | unused]) + bytes(unused)
    return data[:at] + new + data[at + room :]


def write_packed(path: Path, num_frames: int) -> Path:
    """Write MPEG-4 in AVI as DivX did: a B-frame lies in the chunk of the frame that it refers to.

    The chunk that is left over holds a picture that is not coded.
    """
    how = {"qscale": 2, "bf": 2, "g": 12, "vtag": "XVID"}
    plain = write_clip(path.with_suffix(".plain.avi"), num_frames, codec="mpeg4", **how)
    with av.open(str(plain)) as source, av.open(str(path), "w", format="avi") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        chunks = [(bytes(p), p.is_keyframe) for p in source.demux(video=0) if p.size]
        packed: list[tuple[bytes, bool]] = []
        at = 0
        while at < len(chunks):
            end = at + 1
            while end < len(chunks) and _is_b_frame(chunks[end][0]):
                end += 1
            later = [chunk for chunk, _ in chunks[at + 1 : end]]
            packed.append((chunks[at][0] + b"".join(later[:1]), chunks[at][1]))
            packed += [(chunk, False) for chunk in later[1:]]
            packed += [(_not_coded(end), False)] * bool(later)
            at = end
        begin = packed[0][0].index(b"\0\0\1\xb6")
        first = packed[0][0][:begin] + b"\0\0\1\xb2DivX503b1393p" + packed[0][0][begin:]
        packed[0] = (first.replace(b"Lavc", b"Xavc"), True)
        _mux(out, stream, packed, Fraction(1, 25))
    plain.unlink()
    return path


def _is_b_frame(chunk: bytes) -> bool:
    return chunk[chunk.rindex(b"\0\0\1\xb6") + 4] >> 6 == 2


def _not_coded(ticks: int) -> bytes:
    bits = f"0101{ticks % 25:05b}10".ljust(16, "1")
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(2, "big")


def _mux(
    out: av.container.OutputContainer,
    stream: av.VideoStream,
    packets: list[tuple[bytes, bool]],
    step: Fraction,
) -> None:
    for number, (data, is_keyframe) in enumerate(packets):
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, step
        packet.pts = packet.dts = number
        packet.is_keyframe = is_keyframe
        out.mux(packet)


class _Bits(list[int]):
    """Bits of an H.264 stream: fixed, and Exp-Golomb."""

    def u(self, value: int, count: int = 1) -> "_Bits":
        self += [value >> place & 1 for place in reversed(range(count))]
        return self

    def ue(self, *values: int) -> "_Bits":
        for value in values:
            self.u(0, (value + 1).bit_length() - 1).u(value + 1, (value + 1).bit_length())
        return self

    def unit(self, kind: int, reference: int) -> bytes:
        """Close the bits and return them as a NAL unit of a byte stream."""
        self.u(1)
        self += [0] * (-len(self) % 8)
        out = bytearray()
        for byte in np.packbits(np.array(self, np.uint8)).tobytes():
            if out[-2:] == b"\0\0" and byte <= 3:
                out.append(3)
            out.append(byte)
        return b"\0\0\0\1" + bytes([reference << 5 | kind]) + bytes(out)


def field_units(num_frames: int, side: int = 64) -> list[bytes]:
    """Return H.264 access units of one field each, top fields first, all macroblocks PCM."""
    sequence = _Bits().u(77, 8).u(0, 8).u(30, 8).ue(0, 4, 0, 4, 1).u(0)
    sequence.ue(side // 16 - 1, side // 32 - 1).u(0b00100, 5)
    picture = _Bits().ue(0, 0).u(0, 2).ue(0, 0, 0).u(0, 3).ue(0, 0, 0).u(0b100, 3)
    headers = sequence.unit(7, 3) + picture.unit(8, 3)
    units = []
    for number in range(num_frames):
        grey = draw(number, side, side)[:, :, 0]
        luma = np.clip(16 + grey * (219 / 255), 16, 235).astype(np.uint8)
        for bottom in (0, 1):
            first = number == bottom == 0
            bits = _Bits().ue(0, 7, 0).u(number % 256, 8).u(1).u(bottom)
            if first:
                bits.ue(0)
            bits.u((2 * number + bottom) % 256, 8).u(0, 2 if first else 1).ue(0, 1)
            field = luma[bottom::2]
            for row in range(0, side // 2, 16):
                for column in range(0, side, 16):
                    bits.ue(25)
                    bits += [0] * (-len(bits) % 8)
                    block = field[row : row + 16, column : column + 16].tobytes() + b"\x80" * 128
                    bits += np.unpackbits(np.frombuffer(block, np.uint8)).tolist()
            delimiter = b"\0\0\0\1\x09\xf0"
            units.append(headers * first + delimiter + bits.unit(5 if first else 1, 3))
    return units


def write_fields(path: Path, container: str, num_frames: int) -> Path:
    """Write field pictures, a packet for each field, at 25 frames a second."""
    raw = path.with_suffix(".h264")
    units = field_units(num_frames)
    raw.write_bytes(b"".join(units))
    with (
        av.open(str(raw), format="h264") as source,
        av.open(str(path), "w", format=container) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [(unit, number == 0) for number, unit in enumerate(units)]
        _mux(out, stream, packets, Fraction(1, 50))
    raw.unlink()
    return path


def with_packets(source: Path, path: Path, change: Callable[[int, bytes], bytes]) -> Path:
    """Copy a video with its packets changed; `change` gets a packet's number and content."""
    with av.open(str(source)) as opened, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(opened.streams.video[0], opaque=True)
        packets = (packet for packet in opened.demux(video=0) if packet.size)
        for number, old in enumerate(packets):
            new = av.Packet(change(number, bytes(old)))
            new.stream, new.time_base, new.is_keyframe = stream, old.time_base, old.is_keyframe
            new.pts, new.dts, new.duration = old.pts, old.dts, old.duration
            out.mux(new)
    return path


def transport_packets(data: bytes) -> list[bytes]:
    """Split a transport stream."""
    return [data[at : at + 188] for at in range(0, len(data), TRANSPORT_PACKET_BYTES)]


def without_first_pictures(data: bytes, num_pictures: int) -> bytes:
    """Cut the first pictures out of a transport stream of FFmpeg's; its tables stay."""
    packets = transport_packets(data)
    is_video = [int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x100 for packet in packets]
    begins = [
        number for number, packet in enumerate(packets) if is_video[number] and packet[1] & 0x40
    ]
    first = begins[num_pictures]
    kept = [p for number, p in enumerate(packets) if number >= first or not is_video[number]]
    return b"".join(kept)
