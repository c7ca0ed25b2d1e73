"""Frames by PyAV: exact in every file that decodes at all.

A frame's index is counted in the decoder's output; where the container stores presentation times
(MP4, Matroska), or pictures are shown in the order of their packets (`index_avi`), the packets are
listed first, without decoding: groups of pictures that hold no asked frame are passed over, and so
are pictures that no other one refers to. Anything unexpected on the way (a damaged packet or
picture, times that are missing or out of order) falls back to decoding from the first packet on.
Damage inside a picture that is passed over stays unseen.
"""

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int64, UInt8

from videoattn.data.avi import index_avi, may_index
from videoattn.data.video import DecodeError, PacketIndex, Source, Video, reason, too_few

Images = UInt8[np.ndarray, "T H W C"]
Wanted = Int64[np.ndarray, " T"]

# From PyAV 17 on, colour conversion starts a thread per core unless told not to.
ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def read_pyav(path: Source, wanted: Wanted, short_side: int | None = None) -> Images:
    """The wanted frames (ascending, none twice); of videos of twice that short side or more, made
    so small."""
    with Video(path) as video:
        if not _may_list(video):
            return _read_on(video, wanted, short_side)
        frames = _read_listed(video, wanted, Output(len(wanted), short_side))
    return read_from_start(path, wanted, short_side) if frames is None else frames


def read_from_start(path: Source, wanted: Wanted, short_side: int | None = None) -> Images:
    """The same, of every picture up to the last wanted one: what defines a frame's number."""
    with Video(path) as video:
        return _read_on(video, wanted, short_side)


def no_frame(video: Video) -> DecodeError:
    why = f" ({reason(video.last_error)})" if video.last_error else ""
    return DecodeError(video.path, f"no frame decodes{why}")


def quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that the file's display matrix asks for."""
    turns = frame.rotation / 90
    return int(turns) % 4 if turns == int(turns) and abs(turns) <= 4 else 0


class Output:
    """RGB frames in one block of memory, every frame in the size of the first."""

    def __init__(self, num_frames: int, short_side: int | None = None) -> None:
        self._num_frames = num_frames
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self.frames: Images = np.empty((0, 0, 0, 3), np.uint8)

    def put(self, slot: int, frame: av.VideoFrame) -> None:
        width, height = self._size = self._size or self._size_of(frame)
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", **ONE_THREAD
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        image = np.rot90(rows[:, : 3 * width].reshape(height, width, 3), quarter_turns(frame))
        if len(self.frames) == 0:
            self.frames = np.empty((self._num_frames, *image.shape), np.uint8)
        self.frames[slot] = image

    def _size_of(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width, frame.height
        scale = (self._short_side or height) / min(width, height)
        # Nearer to the asked size, scaling costs more than the smaller frame spares.
        return (round(width * scale), round(height * scale)) if scale <= 0.5 else (width, height)


def _may_list(video: Video) -> bool:
    return video.timed or may_index(video)


def list_packets(video: Video) -> tuple[list[av.Packet], PacketIndex] | None:
    """The packets that give frames, and which; None where only decoding tells."""
    if not _may_list(video):
        return None
    packets = list(video.packets())
    if not video.timed:
        return index_avi(video, packets)
    index = PacketIndex.of(video, packets)
    return None if index is None else (packets, index)


def _read_listed(video: Video, wanted: Wanted, out: Output) -> Images | None:
    """Decodes only the pictures that are needed; None where that cannot be done exactly."""
    listed = list_packets(video)
    if listed is None or wanted[-1] >= len(listed[0]):
        return None
    packets, index = listed
    slots = {int(t): i for i, t in enumerate(np.sort(index.times)[wanted])}
    for run in index.plan(wanted):
        for packet in [*(packets[i] for i in run), None]:
            for frame in video.feed(packet):
                if frame.is_corrupt:  # what is concealed depends on what was decoded before
                    return None
                slot = slots.pop(frame.pts, None) if frame.pts is not None else None
                if slot is not None:
                    out.put(slot, frame)
        video.stream.codec_context.flush_buffers()
    return None if slots or video.last_error is not None else out.frames


def _read_on(video: Video, wanted: Wanted, short_side: int | None) -> Images:
    """Counts the decoder's output, converting only the wanted frames; stops at the last one."""
    out = Output(len(wanted), short_side)
    found, count = 0, 0
    for frame in video.frames():
        if count == wanted[found]:
            out.put(found, frame)
            found += 1
            if found == len(wanted):
                return out.frames
        count += 1
    if count == 0:
        raise no_frame(video)
    raise too_few(video.path, int(wanted[-1]), count)
