"""Frames by PyAV: exact in every file that decodes at all.

A frame's index is counted in the decoder's output; where the container stores presentation times
(MP4, Matroska), the packets are listed
first, without decoding: groups of pictures that hold no asked frame are passed over, and so are
pictures that no other one refers to. Anything unexpected on the way (a damaged packet or picture,
times that are missing or out of order) falls back to decoding from the first packet on. Damage
inside a picture that is passed over stays unseen.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videoattn.data.decode.video import (
    DecodeError,
    Image,
    PacketIndex,
    Put,
    Source,
    Video,
    Wanted,
    reason,
    too_few,
)

# From PyAV 17 on, colour conversion starts a thread per core unless told not to.
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def read_pyav(path: Source, wanted: Wanted, put: Put, short_side: int | None = None) -> None:
    """Puts the wanted frames; of videos of twice that short side or more, made so small."""
    to_rgb = ToRGB(short_side)
    with Video(path) as video:
        if not video.timed:
            return _read_on(video, wanted, put, to_rgb)
        if _read_listed(video, wanted, put, to_rgb):
            return None
    with Video(path) as video:
        return _read_on(video, wanted, put, to_rgb)


def read_from_start(path: Source, wanted: Wanted, put: Put) -> None:
    """The same, of every picture up to the last wanted one: what defines a frame's number."""
    with Video(path) as video:
        _read_on(video, wanted, put, ToRGB())


def read_first(path: Source) -> Image:
    """The first frame."""
    images: list[Image] = []
    read_pyav(path, np.zeros(1, np.int64), lambda _, image: images.append(image.copy()))
    return images[-1]


def no_frame(video: Video) -> DecodeError:
    why = f" ({reason(video.last_error)})" if video.last_error else ""
    return DecodeError(video.path, f"no frame decodes{why}")


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that the file's display matrix asks for."""
    turns = frame.rotation / 90
    return int(turns) % 4 if turns == int(turns) and abs(turns) <= 4 else 0


class ToRGB:
    """Frames as images, upright, every one in the size of the first."""

    def __init__(self, short_side: int | None = None) -> None:
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Image:
        width, height = self._size = self._size or self._size_of(frame)
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", **ONE_THREAD
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        image = rows[:, : 3 * width].reshape(height, width, 3)
        turns = quarter_turns(frame)
        return np.rot90(image, turns) if turns else image

    def _size_of(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width, frame.height
        scale = (self._short_side or height) / min(width, height)
        # Nearer to the asked size, scaling costs more than the smaller frame spares.
        return (round(width * scale), round(height * scale)) if scale <= 0.5 else (width, height)


def list_packets(
    video: Video, last: int | None = None
) -> tuple[list[av.Packet], PacketIndex] | None:
    """The packets that give frames, and which; None where only decoding tells. Up to the frame
    `last`, if given: what follows it may be missing."""
    if not video.timed:
        return None
    packets = list(video.packets() if last is None else video.packets_up_to(last))
    index = PacketIndex.of(video, packets)
    return None if index is None else (packets, index)


def _read_listed(video: Video, wanted: Wanted, put: Put, to_rgb: ToRGB) -> bool:
    """Decodes only the pictures that are needed; False where that cannot be done exactly."""
    listed = list_packets(video, int(wanted[-1]))
    if listed is None or wanted[-1] >= len(listed[0]):
        return False
    packets, index = listed
    slots = {int(t): i for i, t in enumerate(np.sort(index.times)[wanted])}
    for run in index.plan(wanted):
        for packet in [*(packets[i] for i in run), None]:
            for frame in video.feed(packet):
                if frame.is_corrupt:  # what is concealed depends on what was decoded before
                    return False
                slot = slots.pop(frame.pts, None) if frame.pts is not None else None
                if slot is not None:
                    put(slot, to_rgb(frame))
        video.stream.codec_context.flush_buffers()
    return not slots and video.last_error is None


def _read_on(video: Video, wanted: Wanted, put: Put, to_rgb: ToRGB) -> None:
    """Counts the decoder's output, converting only the wanted frames; stops at the last one."""
    found, count = 0, 0
    for frame in video.frames():
        if count == wanted[found]:
            put(found, to_rgb(frame))
            found += 1
            if found == len(wanted):
                return
        count += 1
    if count == 0:
        raise no_frame(video)
    raise too_few(video.path, int(wanted[-1]), count)
