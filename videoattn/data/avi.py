"""Which packets of an AVI are which frames, told without decoding: MPEG-4 of I- and P-pictures.

AVI stores no times, only the order in which pictures are decoded. Without B-pictures that is the
order in which they are shown, so the n-th packet that holds a coded picture is the n-th frame.
Pictures that are not coded (a frame that the encoder dropped) and bytes of stuffing give none. The
headers are those of ISO/IEC 14496-2, 6.2; what FFmpeg would stumble over there, or read in several
ways, is not told.
"""

from collections.abc import Iterable
from typing import NamedTuple

import av
import numpy as np

from videoattn.data.video import PacketIndex, Video

_START = b"\x00\x00\x01"
_PICTURE, _GROUP = _START + b"\xb6", _START + b"\xb3"
_INTRA, _PREDICTED = 0, 1
_STUFFING = 8  # bytes: a packet without any picture that is no longer cannot hide one


def may_index(video: Video) -> bool:
    """Whether a look at the packets may tell; most of those that it cannot tell are known here."""
    context = video.stream.codec_context
    return (
        video.container.format.name == "avi"
        and context.name == "mpeg4"
        and not context.has_b_frames
    )


def index_avi(
    video: Video, packets: Iterable[av.Packet], last: int | None = None
) -> tuple[list[av.Packet], PacketIndex] | None:
    """The packets that give a frame, their places among them as their times, and their index.

    Of videos that `may_index`; up to the frame `last`, if given: those behind it do not matter to
    it. The packets' own times are overwritten with these places. None where the packets do not
    tell: B-pictures, several pictures in a packet, headers that change or are damaged, a first
    picture that needs another, an end that is no coded picture (FFmpeg then gives the last frame
    twice).
    """
    headers = bytes(video.stream.codec_context.extradata or b"")
    layer = _read_layer(headers)
    if layer is None:
        return None
    pictures: list[av.Packet] = []
    keys: list[int] = []
    coded = False
    for packet in packets:
        if packet.is_corrupt or packet.is_discard:
            return None
        data = bytes(packet)
        at = data.find(_PICTURE)
        if at < 0:
            if len(data) > _STUFFING:
                return None
            coded = False
            continue
        if data.find(_PICTURE, at + 4) >= 0 or (at and not _repeats(data[:at], headers)):
            return None
        picture = _read_picture(data[at + 4 : at + 12], layer)
        if picture is None:
            return None
        coded = picture.coded
        if coded:
            if picture.kind == _INTRA:
                keys.append(len(pictures))
            packet.pts = packet.dts = len(pictures)
            pictures.append(packet)
            if packet.pts == last:
                break
    if not keys or keys[0] != 0 or not coded:
        return None
    times = np.arange(len(pictures))
    return pictures, PacketIndex(times, np.array(keys), np.zeros(len(pictures), bool))


def _repeats(before: bytes, headers: bytes) -> bool:
    """Whether what precedes a picture is nothing new: pictures passed over would have told it."""
    again, found, group = before.partition(_GROUP)
    return again in (b"", headers) and (not found or _START not in group)


class _Layer(NamedTuple):
    """What a picture's header depends on."""

    time_bits: int
    interlaced: bool


class _Picture(NamedTuple):
    kind: int
    coded: bool


class _Bits:
    """Reads numbers from the first bit on; behind the end all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int = 1) -> int:
        self._left -= count
        value = self._value >> self._left if self._left >= 0 else 0
        return value & ((1 << count) - 1)


def _read_layer(headers: bytes) -> _Layer | None:
    """The video object layer; None where there is not just one, or of a kind that is hardly used:
    other shapes than frames, sprites, matrices of its own, more than 8 bits, scalability."""
    starts = [i for i in range(len(headers) - 4) if headers[i : i + 3] == _START]
    layers = [i for i in starts if 0x20 <= headers[i + 3] <= 0x2F]
    if len(layers) != 1:
        return None
    bits = _Bits(headers[layers[0] + 4 :])
    bits.read(1 + 8)  # random access; type
    version = 1
    if bits.read():
        version = bits.read(4)
        bits.read(3)  # priority
    if bits.read(4) == 15:  # the pixels' aspect ratio, written out
        bits.read(16)
    if bits.read():  # control parameters
        bits.read(2 + 1)  # chroma format; low delay
        if bits.read():
            bits.read(79)  # buffer sizes and rates
    shape = bits.read(2)
    bits.read()  # a marker, as below
    time_bits = max((bits.read(16) - 1).bit_length(), 1)
    bits.read()
    if bits.read():  # a fixed rate
        bits.read(time_bits)
    bits.read(1 + 13 + 1 + 13 + 1)  # width and height
    interlaced = bool(bits.read())
    bits.read()  # overlapped motion compensation
    sprite = bits.read(1 if version == 1 else 2)
    other_depth = bits.read()
    own_matrices = bits.read() and (bits.read() or bits.read())
    if version != 1:
        bits.read()  # quarter samples
    simple_headers = bits.read()  # no estimates of complexity
    bits.read()  # no markers to resume at
    if bits.read():  # data in partitions
        bits.read()
    adaptive = version != 1 and (bits.read() or bits.read())  # newpred; reduced resolution
    scalable = bits.read()
    if shape or sprite or other_depth or own_matrices or adaptive or scalable or not simple_headers:
        return None
    return _Layer(time_bits, interlaced)


def _read_picture(header: bytes, layer: _Layer) -> _Picture | None:
    """A picture's type, and whether it is coded; None for others than I and P, and for damage."""
    # Plain arithmetic on the first 64 bits, as this runs for every packet; `left` is how many are
    # still to be read. Bits behind the end are 0.
    bits = int.from_bytes(header.ljust(8, b"\0"), "big")
    kind, left = bits >> 62, 61
    while bits >> left & 1 and left > 53:  # seconds since the last one
        left -= 1
    before = bits >> (left - 1) & 1
    left -= 2 + layer.time_bits
    after = bits >> left & 1
    if kind not in (_INTRA, _PREDICTED) or left + layer.time_bits == 51 or not before or not after:
        return None
    left -= 1
    if not bits >> left & 1:
        return _Picture(kind, coded=False)
    left -= (kind == _PREDICTED) + 3 + 2 * layer.interlaced  # rounding; the DC's code
    quantiser, left = bits >> (left - 5) & 31, left - 5
    reach = 1
    if kind == _PREDICTED:
        reach, left = bits >> (left - 3) & 7, left - 3
    there = 8 * len(header) >= 64 - left
    return _Picture(kind, coded=True) if quantiser and reach and there else None
