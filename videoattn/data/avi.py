"""Which packets of an AVI are which frames, told without decoding: MPEG-4 of I- and P-pictures.

AVI stores no times, only the order in which pictures are decoded. Without B-pictures that is the
order in which they are shown, so the n-th packet that holds a picture is the n-th frame. Packets
may hold none: encoders that drop a frame write a picture that is not coded, or a byte of stuffing.
"""

from collections.abc import Sequence

import av
import numpy as np

from videoattn.data.video import PacketIndex, Video

_PICTURE = b"\x00\x00\x01\xb6"  # vop_start_code of ISO/IEC 14496-2; its type's two bits follow
_INTRA, _PREDICTED = 0, 1
_EMPTY = 8  # bytes that a picture takes at most that is not coded: start code, type, time, one bit


def may_index(video: Video) -> bool:
    """Whether it is worth a look at the packets."""
    context = video.stream.codec_context
    return (
        video.container.format.name == "avi"
        and context.name == "mpeg4"
        and not context.has_b_frames
        and _least(video) > _EMPTY
    )


def index_avi(
    video: Video, packets: Sequence[av.Packet]
) -> tuple[list[av.Packet], PacketIndex] | None:
    """The packets that give a frame, their places among them as their times, and their index.

    Of videos that `may_index`. None where packets do not tell: B-pictures, several pictures in a
    packet, damage, pictures too small to tell an empty one.
    """
    least = _least(video)
    pictures: list[av.Packet] = []
    keys: list[int] = []
    for packet in packets:
        data = bytes(packet)
        at = data.find(_PICTURE)
        size = len(data) - max(at, 0)
        if packet.is_corrupt or packet.is_discard:
            return None
        if size <= _EMPTY:
            continue
        if at < 0 or size < least or _PICTURE in data[at + 4 :]:
            return None
        kind = data[at + 4] >> 6
        if kind not in (_INTRA, _PREDICTED):
            return None
        if kind == _INTRA:
            keys.append(len(pictures))
        packet.pts = packet.dts = len(pictures)
        pictures.append(packet)
    if not keys or keys[0] != 0:
        return None
    times = np.arange(len(pictures))
    return pictures, PacketIndex(times, np.array(keys), np.zeros(len(pictures), bool))


def _least(video: Video) -> int:
    """Bytes of a coded picture: even a macroblock of 16 x 16 pixels left as it was takes a bit."""
    context = video.stream.codec_context
    return -(-context.width // 16) * -(-context.height // 16) // 8
