"""Selects the packets to decode for a frame: a start, and the packets to skip."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Int64

from videoattn.data.decode.units import UnitFacts

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
        """Returns the packet and the frame of the last start at or before a frame."""
        group = int(np.searchsorted(self.frames, frame, side="right")) - 1
        return (int(self.packets[group]), int(self.frames[group])) if group >= 0 else (0, 0)


class PacketIndex(NamedTuple):
    """The packets of a file with timestamps, in file order.

    Args:
        packets: All packets with data.
        times: The display time of each packet's frame, in ticks of the stream.
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
    decoded. So all later packets are displayed after this packet's decoding time.
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
