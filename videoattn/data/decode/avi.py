"""Which packets of an AVI are which frames, told without decoding: MPEG-4 video.

AVI stores no times, only the order in which pictures are decoded. I- and P-pictures are shown in
that order, and a B-picture before the last of them. So the pictures that are coded, counted as they
are shown, are the frames. Pictures that are not coded (a frame that the encoder dropped) and bytes
of stuffing give none.

DivX and XviD pack a B-picture behind the picture that it needs into one packet, and put a picture
that is not coded into the next (UCF101, HMDB51). These are taken apart here, which decoders take as
well. The headers are those of ISO/IEC 14496-2, 6.2; what FFmpeg would stumble over there, or read
in several ways, is not told.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import av
import numpy as np

from videoattn.data.decode.video import PacketIndex, Video

_START = b"\x00\x00\x01"
_PICTURE, _GROUP, _USER = _START + b"\xb6", _START + b"\xb3", _START + b"\xb2"
_INTRA, _PREDICTED, _BIDIRECTIONAL = 0, 1, 2
_STUFFING = 8  # bytes: a packet without any picture that is no longer cannot hide one
_MOST_TICKS = 1 << 16  # between pictures: FFmpeg counts them in so many numbers
_PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")  # how the headers say so


def may_index(video: Video) -> bool:
    """Whether a look at the packets may tell."""
    return video.container.format.name == "avi" and video.stream.codec_context.name == "mpeg4"


def index_avi(
    video: Video, packets: Iterable[av.Packet], last: int | None = None
) -> tuple[list[av.Packet], PacketIndex] | None:
    """The packets that give a frame, one picture in each, and their index; their times are the
    frames' numbers.

    Of videos that `may_index`; up to the frame `last`, if given: those behind it do not matter to
    it. None where the packets do not tell: pictures packed in other ways, headers that change or
    are damaged, pictures that need others which are not there, times that contradict the order, an
    end that is no coded picture (FFmpeg then gives the last frame twice).
    """
    context = video.stream.codec_context
    headers = bytes(context.extradata or b"")
    layer = _read_layer(headers)
    if layer is None:
        return None
    listing = _Listing(headers, layer, delayed=bool(context.has_b_frames))
    for packet in packets:
        if last is not None and listing.knows(last):
            break
        if not listing.take(packet):
            return None
    return listing.index()


class _Listing:
    """What the packets so far have told."""

    def __init__(self, headers: bytes, layer: "_Layer", *, delayed: bool) -> None:
        self._headers = headers
        self._layer = layer
        self._delayed = delayed  # whether there are B-pictures
        self._packed = delayed and _PACKED.search(headers) is not None
        self._repeated: set[bytes] = {b""}  # what was found to be nothing new
        self._pictures = _Pictures(layer)
        self._waiting: tuple[av.Packet, _Picture] | None = None  # came with the picture before
        self._coded = False

    def knows(self, frame: int) -> bool:
        return self._waiting is None and self._pictures.num_shown > frame

    def index(self) -> tuple[list[av.Packet], PacketIndex] | None:
        # A packed picture at the end is never decoded: no packet comes that would make it.
        return self._pictures.index(skips_groups=not self._packed) if self._coded else None

    def take(self, packet: av.Packet) -> bool:
        """False where it does not tell."""
        if packet.is_corrupt or packet.is_discard:
            return False
        data = bytes(packet)
        at = data.find(_PICTURE)
        if at < 0:
            self._coded = False
            return self._waiting is None and len(data) <= _STUFFING
        picture = _read_picture(data[at + 4 : at + 12], self._layer)
        if picture is None or not self._repeats(data[:at]):
            return False
        behind = data.find(_START if self._delayed else _PICTURE, at + 4)
        if self._waiting is not None:
            return behind < 0 and self._take_late(packet, picture)
        if behind >= 0:
            return self._take_pack(data, picture, behind)
        self._coded = picture.coded
        if picture.kind == _BIDIRECTIONAL and not self._delayed:
            return False
        return self._pictures.add(packet, picture) if picture.coded else not self._delayed

    def _take_pack(self, data: bytes, picture: "_Picture", behind: int) -> bool:
        """Two pictures: the second of them is decoded with the next packet."""
        second = _read_picture(data[behind + 4 : behind + 12], self._layer)
        self._coded = True
        if (
            second is None
            or not (self._packed and picture.coded and second.coded)
            or (picture.kind == _BIDIRECTIONAL or second.kind != _BIDIRECTIONAL)
            or (data[behind : behind + 4] != _PICTURE or data.find(_START, behind + 4) >= 0)
        ):
            return False
        # FFmpeg is misled by a picture that ends where its packet does, after others that did not:
        # the bytes behind it stay, but as a picture of a kind that it does not keep.
        alone = bytearray(data)
        alone[behind + 4] |= 0x40
        self._waiting = (av.Packet(data[behind:]), second)
        return self._pictures.add(av.Packet(bytes(alone)), picture)

    def _take_late(self, packet: av.Packet, picture: "_Picture") -> bool:
        """The one that waits is decoded; another B-picture waits then, nothing else may come."""
        assert self._waiting is not None
        waited, self._waiting = self._waiting, None
        if picture.coded and picture.kind == _BIDIRECTIONAL:
            self._waiting = (packet, picture)
        elif picture.coded or picture.kind != _PREDICTED:
            return False
        return self._pictures.add(*waited)

    def _repeats(self, before: bytes) -> bool:
        """Whether what precedes a picture is nothing new: those passed over would have told it."""
        if before in self._repeated:
            return True
        again, found, group = before.partition(_GROUP)
        if found and (self._delayed or _START in group):
            return False
        if again not in (b"", self._headers) and not self._says_the_same(again):
            return False
        self._repeated.add(before)
        return True

    def _says_the_same(self, again: bytes) -> bool:
        """In other words: DivX repeats the layer without the delay, which then is as before."""
        layer = _read_layer(again)
        if layer is not None and layer.low_delay is None:
            layer = layer._replace(low_delay=self._layer.low_delay)
        same_maker = again.partition(_USER)[1:] == self._headers.partition(_USER)[1:]
        return same_maker and layer == self._layer


class _Pictures:
    """Coded pictures in the order of the file, and when each of them is shown."""

    def __init__(self, layer: "_Layer") -> None:
        self.num_shown = 0  # those whose turn is known
        self._packets: list[av.Packet] = []
        self._kinds: list[int] = []
        self._turns: list[int] = []
        self._held = -1  # the last I- or P-picture, until it is its turn
        self._resolution = layer.resolution
        self._interlaced = layer.interlaced
        self._seconds = [0, 0]  # of the last two of these
        self._ticks = [math.inf, math.inf]  # nothing is between these

    def add(self, packet: av.Packet, picture: "_Picture") -> bool:
        """False for a B-picture that FFmpeg would leave out, and for a first one that is no I."""
        if not self._packets and picture.kind != _INTRA:
            return False
        between = picture.kind == _BIDIRECTIONAL
        # FFmpeg measures the fields' times by the first B-picture that it decodes.
        if between and self._interlaced:
            return False
        # A B-picture's seconds are told from the picture that is shown before it.
        seconds = self._seconds[0 if between else 1] + picture.seconds
        ticks = seconds * self._resolution + picture.ticks
        if between:
            earlier, later = self._ticks
            if not (earlier < ticks < later and later - earlier < _MOST_TICKS):
                return False
            self._turns.append(self._turn())
        else:
            self._seconds, self._ticks = [self._seconds[1], seconds], [self._ticks[1], ticks]
            self._show_held()
            self._held = len(self._packets)
            self._turns.append(-1)
        self._packets.append(packet)
        self._kinds.append(picture.kind)
        return True

    def index(self, *, skips_groups: bool) -> tuple[list[av.Packet], PacketIndex]:
        """skips_groups: decoding may start at any I-picture, or else at the first alone: damage to
        a picture may cost the one that was packed with it, which moves the numbers behind it."""
        self._show_held()
        for packet, turn in zip(self._packets, self._turns, strict=True):
            packet.pts = packet.dts = turn
        kinds = np.array(self._kinds)
        keys = np.flatnonzero(kinds == _INTRA)[: None if skips_groups else 1]
        index = PacketIndex(np.array(self._turns), keys, kinds == _BIDIRECTIONAL)
        return self._packets, index

    def _show_held(self) -> None:
        if self._held >= 0:
            self._turns[self._held] = self._turn()
            self._held = -1

    def _turn(self) -> int:
        self.num_shown += 1
        return self.num_shown - 1


class _Layer(NamedTuple):
    """What a picture's header depends on, and the rest of what decoding does."""

    resolution: int  # ticks of a second
    time_bits: int
    interlaced: bool
    rest: tuple[int, ...] = ()
    low_delay: int | None = None  # None: not said, so as before


class _Picture(NamedTuple):
    kind: int
    coded: bool
    seconds: int = 0  # since the one before it
    ticks: int = 0


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
    bits.read(1)  # random access
    kind, version = bits.read(8), 1
    if bits.read():
        version = bits.read(4)
        bits.read(3)  # priority
    if bits.read(4) == 15:  # the pixels' aspect ratio, written out
        bits.read(16)
    low_delay = None
    if bits.read():  # control parameters
        bits.read(2)  # chroma format
        low_delay = bits.read()
        if bits.read():
            bits.read(79)  # buffer sizes and rates
    shape = bits.read(2)
    bits.read()  # a marker, as below
    resolution = bits.read(16)
    time_bits = max((resolution - 1).bit_length(), 1)
    bits.read()
    if bits.read():  # a fixed rate
        bits.read(time_bits)
    width, height, _ = bits.read(1 + 13), bits.read(1 + 13), bits.read()
    interlaced = bool(bits.read())
    overlapped = bits.read()
    sprite = bits.read(1 if version == 1 else 2)
    other_depth = bits.read()
    quantiser_kind = bits.read()
    own_matrices = quantiser_kind and (bits.read() or bits.read())
    quarter_samples = version != 1 and bits.read()
    simple_headers = bits.read()  # no estimates of complexity
    resumes = not bits.read()
    partitions = bits.read()
    reversible = partitions and bits.read()
    adaptive = version != 1 and (bits.read() or bits.read())  # newpred; reduced resolution
    scalable = bits.read()
    if shape or sprite or other_depth or own_matrices or adaptive or scalable or not simple_headers:
        return None
    rest: tuple[int, ...] = (kind, version, width, height, overlapped, quantiser_kind)
    rest += (quarter_samples, resumes, partitions, reversible)
    return _Layer(resolution, time_bits, interlaced, rest, low_delay)


def _read_picture(header: bytes, layer: _Layer) -> _Picture | None:
    """A picture's header; None for others than I, P and B, and for damage."""
    # Plain arithmetic on the first 64 bits, as this runs for every packet; `left` is how many are
    # still to be read. Bits behind the end are 0.
    bits = int.from_bytes(header.ljust(8, b"\0"), "big")
    kind, left = bits >> 62, 61
    while bits >> left & 1 and left > 53:  # a second more since the last one
        left -= 1
    seconds = 61 - left
    before = bits >> (left - 1) & 1
    left -= 1 + layer.time_bits
    ticks = bits >> left & ((1 << layer.time_bits) - 1)
    left -= 1
    after = bits >> left & 1
    if kind > _BIDIRECTIONAL or seconds == 8 or not before or not after:
        return None
    left -= 1
    if not bits >> left & 1:
        return _Picture(kind, coded=False)
    left -= (kind == _PREDICTED) + 3 + 2 * layer.interlaced  # rounding; the DC's code
    quantiser, left = bits >> (left - 5) & 31, left - 5
    reaches = [1]
    for _ in range(kind):  # of motion: none, one way, both ways
        reaches.append(bits >> (left - 3) & 7)
        left -= 3
    there = 8 * len(header) >= 64 - left
    if not (quantiser and all(reaches) and there):
        return None
    return _Picture(kind, True, seconds, ticks)
