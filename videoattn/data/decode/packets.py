"""Selects the packets to decode for a frame: a start, and the packets to skip.

Containers also mark the starts of a gradual intra refresh as key frames. FFmpeg decodes from such a
packet without an error, and outputs incomplete pictures. So, for H.264 and HEVC, the NAL units
decide where decoding can start.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Int64

# Codecs that store frames in another order than they are displayed in.
_REORDERED = ("h264", "hevc", "mpeg4")


class GroupStarts(NamedTuple):
    """The packets at which decoding can start in a video without reliable timestamps (AVI).

    Decoding from packet `packets[i]` gives all frames of the file from number `frames[i]`
    on. `videoattn.data.prepare.index` finds these by decoding.

    Args:
        num_bytes: The size of the file. The starts of a file of another size are not used.
    """

    num_bytes: int
    packets: Int64[np.ndarray, " G"]
    frames: Int64[np.ndarray, " G"]

    def before(self, frame: int) -> tuple[int, int]:
        """Returns the packet and the frame of the last start at or before a frame, or (0, 0)."""
        group = int(np.searchsorted(self.frames, frame, side="right")) - 1
        return (int(self.packets[group]), int(self.frames[group])) if group >= 0 else (0, 0)


class PacketIndex(NamedTuple):
    """The packets of a file with timestamps, in file order.

    Args:
        packets: All packets with data.
        times: The display time of each packet's frame, in units of the stream's time base.
        keys: The packets at which decoding can start.
        unreferenced: The packets whose frames no other frame refers to.
        flagged_keys: The packets that the container marks as key frames: `keys`, and possibly
            packets at which decoding cannot start.
    """

    packets: list[av.Packet]
    times: Int64[np.ndarray, " P"]
    keys: Int64[np.ndarray, " K"]
    unreferenced: Bool[np.ndarray, " P"]
    flagged_keys: Int64[np.ndarray, " F"]

    @classmethod
    def of(cls, stream: av.VideoStream, packets: list[av.Packet]) -> "PacketIndex | None":
        """Returns the index, or None if the packets do not determine the number of each frame."""
        end = len(packets)
        while end and packets[end - 1].is_discard:  # an edit list ends before them
            end -= 1
        packets = packets[:end]
        if not (packets and packets[0].is_keyframe):
            return None
        if any(p.pts is None or p.is_discard or p.is_corrupt for p in packets):
            return None
        context = stream.codec_context
        reordered = context.has_b_frames and context.name in _REORDERED and len(packets) > 1
        if reordered and all(p.pts == p.dts for p in packets):  # pts hold the decoding order
            return None
        times = np.array([p.pts for p in packets], dtype=np.int64)
        units = UnitFacts.of(context, packets)
        if units is None or not units.starts[0]:
            return None
        keys = np.flatnonzero(units.starts)
        before = np.maximum.accumulate(times)[np.maximum(keys - 1, 0)]
        if len(np.unique(times)) != len(times) or (times[keys[1:]] <= before[1:]).any():
            return None
        if times.min() < times[0]:  # this frame needs a group before the first
            return None
        flagged = np.flatnonzero([p.is_keyframe for p in packets])
        return cls(packets, times, keys, units.unreferenced, flagged)

    @property
    def closed(self) -> bool:
        """Whether every frame after a key frame in the file is also displayed after it."""
        earliest_from = np.minimum.accumulate(self.times[::-1])[::-1]
        return bool((earliest_from[self.keys] == self.times[self.keys]).all())

    def plan(self, frames: Int64[np.ndarray, " T"]) -> list[list[int]]:
        """Returns runs of packets to decode for the frames; each run starts at a key frame."""
        requested = np.sort(np.argsort(self.times)[frames])
        keys, key_times = self.keys.tolist(), self.times[self.keys].tolist()
        spans: list[tuple[int, int]] = []
        for packet, time in zip(requested.tolist(), self.times[requested].tolist(), strict=True):
            key = bisect_right(keys, packet) - 1
            # A frame stored after a key frame but displayed before it needs the previous group.
            while key_times[key] > time:
                key -= 1
            start = keys[key]
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], packet)
            else:
                spans.append((start, packet))
        needed = ~self.unreferenced
        needed[requested] = True
        return [
            (first + np.flatnonzero(needed[first : last + 1])).tolist() for first, last in spans
        ]


def up_to_frame(packets: Iterator[av.Packet], frame: int) -> Iterator[av.Packet]:
    """Yields packets until every frame up to `frame` has its packet. For MP4.

    MP4 stores decoding times, and FFmpeg shifts them so that no frame is displayed before it is
    decoded. So the frames of a packet and of all later packets have at least its decoding time.
    """
    first = list(islice(packets, frame + 1))
    yield from first
    times = [packet.pts for packet in first if packet.pts is not None]
    enough = frame + 1
    for packet in packets:
        if len(times) >= enough and packet.dts is not None:
            missing = frame + 1 - sum(time < packet.dts for time in times)
            if missing <= 0:
                return
            enough = len(times) + missing  # at the earliest
        yield packet
        if packet.pts is not None:
            times.append(packet.pts)


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
    """Returns the NAL units of a packet, or None if their lengths do not add up (damage)."""
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
    if any(unit[0] & 31 == _H264_IDR for unit in units):
        return True
    slices = [unit for unit in units if unit[0] & 31 in (1, 2)]
    recovers = any(unit[0] & 31 == _H264_SEI and _recovers_at_once(unit) for unit in units)
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
