"""Finds the packets at which decoding can start, by the NAL units of H.264 and HEVC.

Containers also mark pictures of a gradual refresh as key frames. FFmpeg decodes from such a packet
without an error, and outputs frames that lack most of their picture.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool

# Types of NAL units and of SEI messages (ITU-T H.264, table 7-1; H.265, table 7-1).
_H264_IDR, _H264_SEI, _RECOVERY_POINT = 5, 6, 6
_HEVC_STARTS = {19, 20, 21}  # IDR and CRA pictures
_HEVC_SPLICES = {16, 17, 18, 36}  # BLA pictures, and the end of a sequence

# The type and the size of an SEI message. Bytes of 255 are added to the byte that follows them.
_MESSAGE = re.compile(rb"(\xff*)([^\xff])(\xff*)([^\xff])", re.DOTALL)


class UnitFacts(NamedTuple):
    """Facts about each packet, for H.264 and HEVC from the headers of its NAL units.

    Args:
        starts: The packets at which decoding can start. The container marks them as key frames.
        unreferenced: The packets whose frames no other frame refers to; for H.264 only.
    """

    starts: Bool[np.ndarray, " P"]
    unreferenced: Bool[np.ndarray, " P"]

    @classmethod
    def of(cls, context: av.VideoCodecContext, packets: Sequence[av.Packet]) -> "UnitFacts | None":
        """Returns the facts, or None if a packet is damaged or the stream is spliced. After a
        splice, a decoder drops frames that refer to earlier frames."""
        starts = np.array([packet.is_keyframe for packet in packets], dtype=bool)
        unreferenced = np.zeros(len(packets), dtype=bool)
        if context.name not in ("h264", "hevc"):
            return cls(starts, unreferenced)
        length_size = _nal_length_size(context)
        for number, packet in enumerate(packets):
            units = _split(bytes(packet), length_size)
            if units is None:
                return None
            if context.name == "h264":
                starts[number] &= _is_h264_start(units)
                unreferenced[number] = _is_unreferenced(units)
                continue
            kinds = {unit[0] >> 1 & 63 for unit in units}
            if kinds & _HEVC_SPLICES:
                return None
            starts[number] &= bool(kinds & _HEVC_STARTS)
        return cls(starts, unreferenced)


def _nal_length_size(codec: av.VideoCodecContext) -> int:
    """Returns the size in bytes of the length before each NAL unit in MP4 and Matroska; 0 if start
    codes separate the units."""
    at = 4 if codec.name == "h264" else 21
    extra = codec.extradata or b""
    return (extra[at] & 3) + 1 if len(extra) > at and extra[0] == 1 else 0


def _split(data: bytes, length_size: int) -> list[bytes] | None:
    """Returns the NAL units of a packet, or None if their lengths do not add up: damage."""
    if not length_size:
        return [unit for unit in data.split(b"\0\0\1")[1:] if unit]
    units, at, end = [], 0, len(data)
    while (start := at + length_size) < end:
        at = start + int.from_bytes(data[at:start], "big")
        units.append(data[start : max(at, start + 1)])
    return units if at == end else None


def _is_h264_start(units: Sequence[bytes]) -> bool:
    """Returns whether a packet is an IDR picture, or has only intra slices and a recovery point
    that states an exact match from this picture on."""
    kinds = [unit[0] & 31 for unit in units]
    if _H264_IDR in kinds:
        return True
    slices = [unit for unit, kind in zip(units, kinds, strict=True) if kind in (1, 2)]
    recovers = any(
        kind == _H264_SEI and _recovers_at_once(unit)
        for unit, kind in zip(units, kinds, strict=True)
    )
    return recovers and bool(slices) and all(map(_is_intra, slices))


def _recovers_at_once(unit: bytes) -> bool:
    """Returns whether an SEI unit holds a recovery point with recovery_frame_cnt = 0 and
    exact_match_flag = 1 (ITU-T H.264, D.1.8): its first two bits are set."""
    data, at = _without_emulation(unit), 1
    while message := _MESSAGE.match(data, at):
        kind, size = (255 * len(message[i]) + message[i + 1][0] for i in (1, 3))
        if kind == _RECOVERY_POINT:
            return data[message.end() :][:1] >= b"\xc0"
        at = message.end() + size
    return False


def _is_intra(unit: bytes) -> bool:
    """Returns whether a slice of H.264 is of type I or SI (7.4.3): 2, 4, 7 or 9."""
    bits = "".join(f"{byte:08b}" for byte in _without_emulation(unit[1:24]))
    values = re.match(r"(0*)1(.*)", bits)  # first_mb_in_slice, then slice_type, in Exp-Golomb code
    rest = values[2][len(values[1]) :] if values else ""
    zeros = len(rest) - len(rest.lstrip("0"))
    code = rest[zeros : 2 * zeros + 1]
    return bool(code) and (int(code, 2) - 1) % 5 in (2, 4)


def _without_emulation(unit: bytes) -> bytes:
    return unit.replace(b"\0\0\3", b"\0\0")


def _is_unreferenced(units: Sequence[bytes]) -> bool:
    """Returns whether every slice (unit types 1 and 5) of an H.264 packet has nal_ref_idc = 0."""
    slices = [unit[0] for unit in units if unit[0] & 31 in (1, _H264_IDR)]
    return bool(slices) and not any(header & 0x60 for header in slices)
