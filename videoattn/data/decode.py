"""decode(path, indices) -> frames: index i is the i-th frame that the decoder puts out.

Header frame counts, frame rates and seek tables lie, so none is used. A frame's index is counted
in the decoder's output; where the container stores presentation times (MP4, Matroska), the packets
are listed first, without decoding: groups of pictures that hold no asked frame are passed over,
and so are pictures that no other one refers to. Anything unexpected on the way (a damaged packet,
times that are missing or out of order) falls back to decoding from the first packet on.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from videoattn.types import Frames

Decoder = Literal["auto", "pyav", "decord", "torchcodec"]

# Containers whose packets carry true presentation times; AVI and MPEG-PS only guess them.
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")

# From PyAV 17 on, colour conversion starts a thread per core unless told not to.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class DecodeError(Exception):
    """A video that cannot give the asked frames: its path and why.

    `num_frames` is the number of frames that do decode, where that is what was too small.
    """

    def __init__(self, path: str | Path, reason: str, num_frames: int | None = None) -> None:
        # All three go to `args`, so that the error survives pickling between processes.
        super().__init__(str(path), reason, num_frames)
        self.path = str(path)
        self.reason = reason
        self.num_frames = num_frames

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class VideoInfo(NamedTuple):
    """Exact frame count, mean frame rate (1/s), and the size in pixels after rotation."""

    num_frames: int
    fps: float
    height: int
    width: int


def decode(
    path: str | Path, indices: Sequence[int] | np.ndarray, *, decoder: Decoder = "auto"
) -> Frames:
    """The asked frames, RGB, in the asked order (any order, repeats allowed).

    Raises: DecodeError when the file cannot be read or has too few frames; ValueError for a
    negative index or no index at all.
    """
    _check_decoder(decoder)
    asked = np.asarray(indices, dtype=np.int64)
    if asked.size == 0 or asked.min() < 0:
        raise ValueError(f"indices: got {asked.tolist()}; need one or more, none negative")
    wanted, places = np.unique(asked, return_inverse=True)
    try:
        frames = _decode_timed(path, wanted)
        if frames is None:
            frames = _decode_from_start(path, wanted)
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, _reason(error)) from error
    if len(wanted) != len(asked) or not np.array_equal(wanted, asked):
        frames = frames[places.reshape(-1)]
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def probe(path: str | Path, decoder: Decoder = "auto") -> VideoInfo:
    """Decodes every frame, so that the count is exact for damaged files too.

    Raises: DecodeError when the file cannot be read or no frame decodes.
    """
    _check_decoder(decoder)
    try:
        with _Video(path) as video:
            num_frames, height, width = 0, 0, 0
            for frame in video.frames():
                if num_frames == 0:
                    turned = _quarter_turns(frame) % 2 == 1
                    height, width = frame.height, frame.width
                    height, width = (width, height) if turned else (height, width)
                num_frames += 1
            _need_frames(path, num_frames, video.last_error)
            return VideoInfo(num_frames, video.fps, height, width)
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, _reason(error)) from error


def count_frames(path: str | Path) -> tuple[int, float]:
    """(frame count, frame rate) at the cost of listing packets where the container allows.

    That is MP4 and Matroska whose packets are whole; other files are decoded. Damage that leaves
    a packet's framing whole stays unseen: `decode` then raises DecodeError with the true count.

    Raises: DecodeError when the file cannot be read or holds no frame.
    """
    try:
        with _Video(path) as video:
            if video.timed:
                index = _Index.of(video, list(video.packets()))
                if index is not None:
                    return len(index.times), video.fps
    except (FFmpegError, OSError) as error:
        raise DecodeError(path, _reason(error)) from error
    info = probe(path)
    return info.num_frames, info.fps


class _Video:
    """An open file, its first video stream, one decoding thread; closed on exit."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        if os.path.getsize(path) == 0:
            raise DecodeError(path, "the file is empty (0 bytes)")
        try:
            self.container = av.open(str(path), metadata_errors="ignore")
        except FFmpegError as error:
            raise DecodeError(path, f"cannot be opened as a video: {_reason(error)}") from error
        if not self.container.streams.video:
            self.container.close()
            raise DecodeError(path, "no video stream")
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1
        self.timed = self.container.format.name in _TIMED
        self.last_error: FFmpegError | None = None

    def __enter__(self) -> "_Video":
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


class _Index(NamedTuple):
    """Of each packet in file order: its time; where decoding can start; which may be left out."""

    times: np.ndarray
    keys: np.ndarray
    unreferenced: np.ndarray

    @classmethod
    def of(cls, video: _Video, packets: Sequence[av.Packet]) -> "_Index | None":
        """None where the packets do not tell which frame is which."""
        if not packets or not packets[0].is_keyframe:
            return None
        if any(p.pts is None or p.is_discard or p.is_corrupt for p in packets):
            return None
        times = np.array([p.pts for p in packets], dtype=np.int64)
        keys = np.flatnonzero([p.is_keyframe for p in packets])
        before = np.maximum.accumulate(times)[np.maximum(keys - 1, 0)]
        if len(np.unique(times)) != len(times) or (times[keys[1:]] <= before[1:]).any():
            return None
        unreferenced = np.zeros(len(packets), dtype=bool)
        if length_size := video.nal_length_size:
            headers = [_nal_headers(packet, length_size) for packet in packets]
            if any(header is None for header in headers):
                return None
            if video.stream.codec_context.name == "h264":
                unreferenced[:] = [_is_unreferenced(header or []) for header in headers]
        return cls(times, keys, unreferenced)

    def plan(self, wanted: np.ndarray) -> list[list[int]]:
        """Runs of packets to decode for the wanted frames, each from a key frame on."""
        asked = np.sort(np.argsort(self.times)[wanted])
        spans: list[tuple[int, int]] = []
        for packet in asked.tolist():
            # Pictures ahead of a key frame in time but behind it in the file need the group before.
            early = self.keys[: np.searchsorted(self.keys, packet, side="right")]
            start = int(early[self.times[early] <= self.times[packet]][-1])
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], packet)
            else:
                spans.append((start, packet))
        needed = ~self.unreferenced
        needed[asked] = True
        return [
            np.flatnonzero(needed[: last + 1])[needed[:first].sum() :].tolist()
            for first, last in spans
        ]


def _nal_headers(packet: av.Packet, length_size: int) -> list[int] | None:
    """First byte of each unit; None where the lengths do not add up: the packet is damaged."""
    data = memoryview(packet)
    headers, at = [], 0
    while at + length_size < len(data):
        headers.append(data[at + length_size])
        at += length_size + int.from_bytes(data[at : at + length_size], "big")
    return headers if at == len(data) else None


def _is_unreferenced(headers: list[int]) -> bool:
    """H.264: every slice (unit types 1 and 5) says nal_ref_idc = 0."""
    slices = [header for header in headers if header & 31 in (1, 5)]
    return bool(slices) and all(header >> 5 & 3 == 0 for header in slices)


def _decode_timed(path: str | Path, wanted: np.ndarray) -> UInt8[np.ndarray, "T H W C"] | None:
    """Decodes only the pictures that are needed; None where that cannot be done exactly."""
    with _Video(path) as video:
        if not video.timed:
            return None
        packets = list(video.packets())
        index = _Index.of(video, packets)
        if index is None or wanted[-1] >= len(packets):
            return None
        slots = {int(t): i for i, t in enumerate(np.sort(index.times)[wanted])}
        out = _Output(len(wanted))
        for run in index.plan(wanted):
            for packet in [*(packets[i] for i in run), None]:
                for frame in video.feed(packet):
                    slot = slots.pop(frame.pts, None) if frame.pts is not None else None
                    if slot is not None:
                        out.put(slot, frame)
            video.stream.codec_context.flush_buffers()
        return None if slots or video.last_error is not None else out.frames


def _decode_from_start(path: str | Path, wanted: np.ndarray) -> UInt8[np.ndarray, "T H W C"]:
    """Counts the decoder's output, converting only the wanted frames; stops at the last one."""
    out = _Output(len(wanted))
    found, count = 0, 0
    with _Video(path) as video:
        for frame in video.frames():
            if count == wanted[found]:
                out.put(found, frame)
                found += 1
                if found == len(wanted):
                    return out.frames
            count += 1
        _need_frames(path, count, video.last_error)
    raise DecodeError(
        path,
        f"frame {wanted[-1]} was asked for, but only {count} frames decode (0 - {count - 1})",
        count,
    )


class _Output:
    """RGB frames in one block of memory, every frame in the size of the first."""

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self.frames: UInt8[np.ndarray, "T H W C"] = np.empty((0, 0, 0, 3), np.uint8)

    def put(self, slot: int, frame: av.VideoFrame) -> None:
        width, height = self._size = self._size or (frame.width, frame.height)
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", **_ONE_THREAD
        )
        image = np.rot90(rgb.to_ndarray(), _quarter_turns(frame))
        if len(self.frames) == 0:
            self.frames = np.empty((self._num_frames, *image.shape), np.uint8)
        self.frames[slot] = image


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that the file's display matrix asks for."""
    turns = frame.rotation / 90
    return int(turns) % 4 if turns == int(turns) and abs(turns) <= 4 else 0


def _need_frames(path: str | Path, count: int, error: FFmpegError | None) -> None:
    if count == 0:
        why = f" ({_reason(error)})" if error else ""
        raise DecodeError(path, f"no frame decodes{why}")


def _reason(error: OSError | FFmpegError) -> str:
    return str(error.strerror or error)


def _check_decoder(decoder: Decoder) -> None:
    if decoder not in ("auto", "pyav"):
        raise ValueError(f"decoder: got {decoder!r}; choose from auto, pyav")
