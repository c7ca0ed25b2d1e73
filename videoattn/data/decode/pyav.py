"""Decodes frames with PyAV, exactly for every file that decodes.

A frame's index is its number in the decoder's output. If the container stores presentation times
(MP4, Matroska), the packets are listed first, and only the packets that requested frames need are
decoded. Other files are decoded from the last known group start (see `GroupStarts`), or from the
first packet. Anything unexpected (a damaged packet or frame, missing or disordered times) makes
decoding start over from the first packet. Damage inside skipped frames is not detected.
"""

import errno
import os
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from itertools import chain

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from jaxtyping import Float64

from videoattn.data.decode import container
from videoattn.data.decode.packets import GroupStarts, PacketIndex, up_to_frame
from videoattn.data.decode.rgb import ToRGB
from videoattn.data.decode.source import (
    DecodeError,
    FrameIndices,
    Image,
    Images,
    VideoBytes,
    VideoSource,
    reason,
    too_few_frames,
)

MAX_PIXEL_ASPECT = 16
"""Largest ratio of the sides of a pixel. Anamorphic video has ratios between 1 and 2."""

_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
# Containers whose packets carry true presentation times; AVI and MPEG-PS only guess them.
_TIMED = (_MP4, "matroska,webm")

_Yields = Generator[tuple[int, Image], None, bool]
"""Yields images, and returns whether they are all correct."""


class Video:
    """A video opened with PyAV, decoded in one thread.

    Opening decodes nothing. The number of frames and their times are determined on first use,
    without decoding if the container lists them. `decode` accepts an open Video, which saves
    opening the file and listing its packets again.

    Raises:
        DecodeError: If the file cannot be read, is empty, or is not a video.
    """

    counts = False
    """Whether the next pass that decodes frames in order continues to the end of the file, so that
    `num_frames` needs no pass of its own."""

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        try:
            if isinstance(source, VideoBytes):
                self.num_bytes = len(source.data)
            else:
                self.num_bytes = os.path.getsize(str(source))
        except (OSError, ValueError) as error:  # a name with NUL
            raise DecodeError(source, reason(error)) from error
        if self.num_bytes == 0:
            raise DecodeError(source, "the file is empty (0 bytes)")
        self.last_error: FFmpegError | None = None
        self._demuxing = False
        self._open()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self.source)

    def close(self) -> None:
        self.container.close()

    @cached_property
    def num_frames(self) -> int:
        """The number of frames, from the container's list or, without one, by decoding.

        Damage inside packets is not detected; `decode` then raises an error with the true number.
        """
        if self.packet_index is not None:
            return len(self.packet_index.packets)
        if not (count := sum(1 for _ in self.frames())):
            raise self.no_frame()
        return count

    def expect_frames(self) -> int:
        """Returns the number of frames. If only decoding determines it, returns the number in the
        header instead, and the next call of `decode` also counts the frames."""
        stated = self.stream.frames
        most = min(container.MAX_PACKETS, self.num_bytes // 8)  # more would be a false header
        if self.packet_index is not None or not 0 < stated <= most:
            return self.num_frames
        self.counts = True
        return stated

    @property
    def fps(self) -> float:
        """The mean frame rate; 0 if unknown."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else 0.0

    @property
    def pixel_aspect(self) -> float:
        """The width of a pixel divided by its height, before rotation.

        Returns 1 if the file states no ratio, an implausible ratio (damage), or a ratio within 2 %
        of square: encoders write 256:255 for rounded sizes.

        Raises:
            DecodeError: If frames with square pixels would exceed the limit on pixels.
        """
        ratio = float(self.stream.sample_aspect_ratio or 1)
        damaged = not 1 / MAX_PIXEL_ASPECT <= ratio <= MAX_PIXEL_ASPECT
        if damaged or abs(ratio - 1) < 0.02:
            return 1.0
        context = self.stream.codec_context
        container.check_pixels(self.source, round(context.width * ratio), context.height)
        return ratio

    @cached_property
    def packet_index(self) -> PacketIndex | None:
        """The index of all packets, or None if only decoding determines the frames."""
        return self._index(self.packets())

    def frame_times(self, num_frames: int | None = None) -> Float64[np.ndarray, " T"]:
        """Returns the display time of each frame, in seconds after the first.

        MP4 and Matroska store the times, and their rate may vary. Frames of other files are evenly
        spaced at the mean rate.

        Args:
            num_frames: Known number of frames; saves counting them in other files.

        Raises:
            DecodeError: If the frames have no times, because the file states no frame rate.
        """
        if self.packet_index is not None:
            ticks = np.sort(self.packet_index.times)[:num_frames]
            return (ticks - ticks[0]) * float(self.stream.time_base or 0)
        count = self.num_frames if num_frames is None else num_frames
        if self.fps <= 0:
            raise DecodeError(self.source, "has no frame rate, so its frames have no times")
        return np.arange(count) / self.fps

    def index_up_to(self, frame: int) -> PacketIndex | None:
        """Returns an index of at least the packets that frames up to `frame` need, or None."""
        known = "packet_index" in vars(self)
        return self.packet_index if known else self._index(self.packets_up_to(frame))

    def packets(self) -> Iterator[av.Packet]:
        """Iterates over the packets with data, from the first one on."""
        if self._demuxing:
            self.close()
            self._open()
        self._demuxing = True
        try:
            packets = self.container.demux(self.stream)
            yield from container.checked_packets(packets, self.source, self.num_bytes)
        except FFmpegError as error:
            raise DecodeError(self.source, reason(error)) from error

    def packets_up_to(self, frame: int) -> Iterator[av.Packet]:
        """Yields packets until every frame up to `frame` has its packet (MP4), or all packets."""
        packets = self.packets()
        return up_to_frame(packets, frame) if self.container.format.name == _MP4 else packets

    def feed(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Decodes a packet; None drains the decoder. A damaged packet gives no frame."""
        try:
            return self.stream.codec_context.decode(packet)
        except FFmpegError as error:
            self.last_error = error
            return []

    def flush(self) -> None:
        """Prepares the decoder for a packet that does not follow the previous one."""
        self.stream.codec_context.flush_buffers()

    def frames(self, packets: Iterable[av.Packet] | None = None) -> Iterator[av.VideoFrame]:
        """Yields every frame that decodes, from the given packets or from all."""
        for packet in chain(self.packets() if packets is None else packets, [None]):
            yield from self.feed(packet)

    def no_frame(self) -> DecodeError:
        """Returns the error for a video without a frame that decodes."""
        error = self.last_error
        why = f" ({reason(error)})" if error else ""
        if error and error.errno in (errno.EINVAL, errno.ENOMEM):  # as for a frame above the limit
            why += f"; the limit is {container.MAX_PIXELS:,} pixels per frame"
        return DecodeError(self.source, f"no frame decodes{why}")

    def _open(self) -> None:
        self.container = container.open_container(self.source)
        try:
            self.stream = container.video_stream(self.container, self.source)
        except DecodeError:
            self.close()
            raise
        self.timed = self.container.format.name in _TIMED
        self.last_error = None
        self._demuxing = False

    def _index(self, packets: Iterator[av.Packet]) -> PacketIndex | None:
        return PacketIndex.of(self.stream, list(packets)) if self.timed else None


def read_pyav(
    video: Video, indices: FrameIndices, to_rgb: ToRGB, *, starts: GroupStarts | None = None
) -> Images:
    """Yields the position in `indices` and the image of each frame."""
    video.last_error = None
    if (yield from _read_listed(video, indices, to_rgb)):
        return
    if starts is not None and (video.counts or starts.num_bytes != video.num_bytes):
        starts = None  # all frames are decoded anyway, or the file has changed
    if starts is not None and (yield from _read_in_order(video, indices, to_rgb, starts)):
        return
    yield from _read_in_order(video, indices, to_rgb)


def _read_listed(video: Video, indices: FrameIndices, to_rgb: ToRGB) -> _Yields:
    """Yields the frames from only the needed packets; returns False if that is not exact."""
    index = video.index_up_to(int(indices[-1]))
    if index is None or indices[-1] >= len(index.packets):
        return False
    times = np.sort(index.times)[indices].tolist()
    slots: dict[int | None, int] = {time: slot for slot, time in enumerate(times)}
    for run in index.plan(indices):
        video.flush()
        started = False
        for frame in video.frames(index.packets[number] for number in run):
            if frame.pts == index.times[run[0]]:  # some decoders set no picture type
                started = frame.key_frame or frame.pict_type == PictureType.NONE
            if frame.is_corrupt:  # the concealment of damage depends on earlier frames
                return False
            slot = slots.pop(frame.pts, None)
            if slot is not None:
                yield slot, to_rgb(frame)
        if not started:  # the packet is marked as a key frame, but is not one
            return False
    return not slots and video.last_error is None


def _read_in_order(
    video: Video, indices: FrameIndices, to_rgb: ToRGB, starts: GroupStarts | None = None
) -> _Yields:
    """Yields the requested frames by counting the decoder's output.

    With group starts, skips groups without a requested frame; returns False if that fails.
    """
    slot = count = 0
    first, first_frame = starts.before(int(indices[0])) if starts else (0, 0)
    for number, packet in enumerate(chain(video.packets(), [None])):
        if number < first:
            continue
        if number == first:
            video.flush()
            count = first_frame
        for frame in video.feed(packet):
            if starts and (frame.is_corrupt or video.last_error):
                return False
            if slot < len(indices) and count == indices[slot]:
                yield slot, to_rgb(frame)
                slot += 1
                if slot == len(indices) and not video.counts:
                    return True
                if starts:
                    first, first_frame = starts.before(int(indices[slot]))
            count += 1
    if starts:
        return False
    if count == 0:
        raise video.no_frame()
    if video.counts:
        video.num_frames, video.counts = count, False
    if slot == len(indices):
        return True
    raise too_few_frames(video.source, int(indices[-1]), count)
