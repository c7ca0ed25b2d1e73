"""Finds packets at which decoding can start, for videos without reliable timestamps."""

import hashlib
from pathlib import Path

import av
import numpy as np

from videoattn.data.decode.pyav import Video
from videoattn.data.decode.rgb import ToRGB
from videoattn.data.decode.units import UnitFacts


def find_group_starts(path: Path) -> list[tuple[int, int]]:
    """Returns pairs (packet, frame): decoding from the packet gives the frames from `frame` on.

    Tries every key packet. It is kept if decoding from it gives the same frames as decoding the
    whole file, up to the second key packet after it. Returns nothing for damaged files, because the
    concealment of damage depends on earlier frames.
    """
    with Video(path) as video:
        video.stream.codec_context.copy_opaque = True
        packets = list(video.packets())
        for number, packet in enumerate(packets):
            packet.opaque = number
        to_rgb = ToRGB()
        digests: list[bytes] = []
        first_frame: dict[int, int] = {}
        for frame in (frame for packet in [*packets, None] for frame in video.feed(packet)):
            if frame.is_corrupt:
                return []
            if frame.key_frame and isinstance(frame.opaque, int):
                first_frame.setdefault(frame.opaque, len(digests))
            digests.append(_digest(frame, to_rgb))
        if video.last_error:
            return []
        units = UnitFacts.of(video.stream.codec_context, packets)
    starts = np.flatnonzero(units.starts).tolist() if units else []
    keys = [n for n in starts if n in first_frame]
    ends = [first_frame[key] for key in keys[2:]] + [len(digests)] * 2
    return [
        (key, first_frame[key])
        for key, end in zip(keys, ends, strict=False)
        if key and _reproduces(path, packets[key:], digests[first_frame[key] : end])
    ]


def _reproduces(path: Path, packets: list[av.Packet], digests: list[bytes]) -> bool:
    """Returns whether a new decoder outputs exactly these frames first."""
    found, to_rgb = 0, ToRGB()
    with Video(path) as video:
        for packet in [*packets, None]:
            for frame in video.feed(packet):
                if found == len(digests):
                    return True
                if frame.is_corrupt or _digest(frame, to_rgb) != digests[found]:
                    return False
                found += 1
    return found == len(digests) and not video.last_error


def _digest(frame: av.VideoFrame, to_rgb: ToRGB) -> bytes:
    return hashlib.blake2b(to_rgb(frame).tobytes(), digest_size=8).digest()
