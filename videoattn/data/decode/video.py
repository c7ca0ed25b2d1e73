"""An open file and its packets: what can be known of a video without decoding it."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from jaxtyping import Bool, Int64, UInt8

# Containers whose packets carry true presentation times; AVI and MPEG-PS only guess them.
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
_TIMED = (_MP4, "matroska,webm")
# Codecs whose pictures are stored in another order than they are shown in.
_REORDERED = ("h264", "hevc", "mpeg4")


@dataclass(frozen=True)
class Encoded:
    """A video in memory, by the name that errors tell, and what came with it."""

    name: str
    data: bytes
    label: int = -1
    num_frames: int = 0  # 0: not known
    fps: float = 0.0

    def __str__(self) -> str:
        return self.name


Source = str | Path | Encoded
"""What can be decoded: a path, or a video in memory."""

Wanted = Int64[np.ndarray, " T"]
"""Frames by their numbers, ascending, none twice."""

Image = UInt8[np.ndarray, "H W C"]

Put = Callable[[int, Image], None]
"""Takes the wanted frames one after the other, each with its place among them.

An image is good for the time of the call: copy what is kept. After a setback they come again from
the first on, in the same size, and the later ones count.
"""


def file_of(source: Source) -> str | BytesIO:
    """What libraries open."""
    return BytesIO(source.data) if isinstance(source, Encoded) else str(source)


class DecodeError(Exception):
    """A video that cannot give the asked frames: its path and why.

    `num_frames` is the number of frames that do decode, where that is what was too small.
    """

    def __init__(self, path: Source, reason: str, num_frames: int | None = None) -> None:
        # All three go to `args`, so that the error survives pickling between processes.
        super().__init__(str(path), reason, num_frames)
        self.path = str(path)
        self.reason = reason
        self.num_frames = num_frames

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Video:
    """An open file, its first video stream, one decoding thread; closed on exit."""

    def __init__(self, path: Source) -> None:
        self.path = path
        size = len(path.data) if isinstance(path, Encoded) else os.path.getsize(path)
        if size == 0:
            raise DecodeError(path, "the file is empty (0 bytes)")
        try:
            self.container = av.open(file_of(path), "r", metadata_errors="ignore")
        except FFmpegError as error:
            raise DecodeError(path, f"cannot be opened as a video: {reason(error)}") from error
        if not self.container.streams.video:
            self.container.close()
            raise DecodeError(path, "no video stream")
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise DecodeError(path, "its video is in a format that FFmpeg does not know")
        self.stream.codec_context.thread_count = 1
        self.timed = self.container.format.name in _TIMED
        self.last_error: FFmpegError | None = None

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    @property
    def fps(self) -> float:
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else 0.0

    @property
    def nal_length_size(self) -> int:
        """Bytes of the length before each unit of H.264 and HEVC in MP4 and Matroska; else 0."""
        codec = self.stream.codec_context
        at = {"h264": 4, "hevc": 21}.get(codec.name, 0)
        extra = codec.extradata or b""
        return (extra[at] & 3) + 1 if at and len(extra) > at and extra[0] == 1 else 0

    def packets(self) -> Iterator[av.Packet]:
        """Packets with data: an empty one would tell the decoder that the stream is over."""
        return (packet for packet in self.container.demux(self.stream) if packet.size)

    def packets_up_to(self, frame: int) -> Iterator[av.Packet]:
        """Until that frame's and those of all before it have come: in MP4, whose times of decoding
        are stored, none is shown before it is decoded (FFmpeg moves them so that it is true). All
        packets of other files."""
        if self.container.format.name != _MP4:
            yield from self.packets()
            return
        packets = self.packets()
        first = list(islice(packets, frame + 1))
        yield from first
        times = [packet.pts for packet in first if packet.pts is not None]
        enough = frame + 1
        for packet in packets:
            if len(times) >= enough and packet.dts is not None:
                missing = frame + 1 - sum(time < packet.dts for time in times)
                if missing <= 0:
                    return
                enough = len(times) + missing  # sooner it cannot be
            yield packet
            if packet.pts is not None:
                times.append(packet.pts)

    def feed(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """What the decoder puts out for a packet; None drains it. A damaged packet gives none."""
        try:
            return self.stream.codec_context.decode(packet)
        except FFmpegError as error:
            self.last_error = error
            return []

    def frames(self) -> Iterator[av.VideoFrame]:
        for packet in self.packets():
            yield from self.feed(packet)
        yield from self.feed(None)


class PacketIndex(NamedTuple):
    """Of each packet in file order: its time; where decoding can start; which may be left out."""

    times: Int64[np.ndarray, " P"]
    keys: Int64[np.ndarray, " K"]
    unreferenced: Bool[np.ndarray, " P"]

    @classmethod
    def of(cls, video: Video, packets: Sequence[av.Packet]) -> "PacketIndex | None":
        """None where the packets do not tell which frame is which."""
        if not (video.timed and packets and packets[0].is_keyframe):
            return None
        if any(p.pts is None or p.is_discard or p.is_corrupt for p in packets):
            return None
        context = video.stream.codec_context
        reordered = context.has_b_frames and context.name in _REORDERED and len(packets) > 1
        if reordered and all(p.pts == p.dts for p in packets):  # the order of decoding, as times
            return None
        times = np.array([p.pts for p in packets], dtype=np.int64)
        keys = np.flatnonzero([p.is_keyframe for p in packets])
        before = np.maximum.accumulate(times)[np.maximum(keys - 1, 0)]
        if len(np.unique(times)) != len(times) or (times[keys[1:]] <= before[1:]).any():
            return None
        if times.min() < times[0]:  # a picture that would need a group before the first
            return None
        unreferenced = np.zeros(len(packets), dtype=bool)
        if length_size := video.nal_length_size:
            found = [_is_unreferenced(bytes(packet), length_size) for packet in packets]
            if None in found:
                return None
            if context.name == "h264":
                unreferenced[:] = found
        return cls(times, keys, unreferenced)

    @property
    def closed(self) -> bool:
        """No picture behind a key frame in the file is shown before it."""
        earliest_from = np.minimum.accumulate(self.times[::-1])[::-1]
        return bool((earliest_from[self.keys] == self.times[self.keys]).all())

    def plan(self, wanted: Int64[np.ndarray, " T"]) -> list[list[int]]:
        """Runs of packets to decode for the wanted frames, each from a key frame on."""
        asked = np.sort(np.argsort(self.times)[wanted])
        keys, key_times = self.keys.tolist(), self.times[self.keys].tolist()
        spans: list[tuple[int, int]] = []
        for packet, time in zip(asked.tolist(), self.times[asked].tolist(), strict=True):
            key = bisect_right(keys, packet) - 1
            # Pictures ahead of a key frame in time but behind it in the file need the group before.
            while key_times[key] > time:
                key -= 1
            start = keys[key]
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], packet)
            else:
                spans.append((start, packet))
        needed = ~self.unreferenced
        needed[asked] = True
        return [
            (first + np.flatnonzero(needed[first : last + 1])).tolist() for first, last in spans
        ]


def too_few(path: Source, asked: int, num_frames: int) -> DecodeError:
    return DecodeError(
        path,
        f"frame {asked} was asked for, but only {num_frames} frames decode (0 - {num_frames - 1})",
        num_frames,
    )


def reason(error: OSError | FFmpegError) -> str:
    return str(error.strerror or error)


def _is_unreferenced(data: bytes, length_size: int) -> bool | None:
    """Of an H.264 packet: every slice (unit types 1 and 5) says nal_ref_idc = 0. None where the
    units' lengths do not add up, of HEVC too: the packet is damaged."""
    at, end, slices, references = 0, len(data), 0, 0
    while (start := at + length_size) < end:
        header = data[start]
        if header & 31 in (1, 5):
            slices, references = slices + 1, references | header & 0x60
        at = start + int.from_bytes(data[at:start], "big")
    return None if at != end else bool(slices and not references)
