"""Clips of a video's frames: cut out while the frames come one by one, and resized to where they
stay.

Resizing frames in a second thread, while the next ones are decoded, was tried: 3 % faster, for
15 % more of the processors' time.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from videoattn.data.decode.video import Image
from videoattn.data.transforms import Box, Crops, Transform, resize

Memory = Callable[[tuple[int, ...]], UInt8[np.ndarray, "V T H W C"]]
"""Gives memory of a shape."""

_OF_ONE_THREAD = 1 << 15  # elements up to which torch does not split its work


def new_memory(shape: tuple[int, ...]) -> UInt8[np.ndarray, "V T H W C"]:
    return np.empty(shape, np.uint8)


class Clips:
    """What `transform` makes of all clips of a video.

    places: which of the frames that are put each clip has; some may be in none, others in several.
    `mirrored` turns all of them about. `memory` is asked once the frames' size is known.
    """

    def __init__(
        self,
        transform: Transform,
        places: Int64[np.ndarray, "clips T"],
        generator: torch.Generator,
        memory: Memory = new_memory,
        *,
        mirrored: bool = False,
    ) -> None:
        alike = np.split(places, len(places)) if transform.random else [places]
        self._cuts = [_Cut(transform, clips, generator, mirrored) for clips in alike]
        self._memory = memory
        self._out: UInt8[np.ndarray, "V T h w C"] | None = None

    def put(self, slot: int, image: Image) -> None:
        """See `video.Put`."""
        if self._out is None:
            self._out = self._begin(*image.shape[:2])
        for cut in self._cuts:
            cut.put(slot, image)

    def finish(self) -> Crops:
        """Clips times boxes, those of a clip side by side; all frames have been put."""
        assert self._out is not None
        for cut in self._cuts:
            cut.finish()
        return torch.from_numpy(self._out).movedim(-1, -3)

    def _begin(self, height: int, width: int) -> UInt8[np.ndarray, "V T h w C"]:
        shapes = [cut.begin(height, width) for cut in self._cuts]
        parts = [shape[0] for shape in shapes]
        out = self._memory((sum(parts), *shapes[0][1:]))
        for cut, part in zip(self._cuts, np.split(out, np.cumsum(parts)[:-1]), strict=True):
            cut.out = part
        return out


class _Cut:
    """Clips that have the same boxes. A frame is resized once for each box."""

    out: UInt8[np.ndarray, "V T h w C"]

    def __init__(
        self,
        transform: Transform,
        places: Int64[np.ndarray, "clips T"],
        generator: torch.Generator,
        mirrored: bool,
    ) -> None:
        self._transform = transform
        self._generator = generator
        self._mirrored = mirrored
        self._num_clips, self._num_frames = places.shape
        # Frames are kept in the order in which the clips, one behind the other, first have them.
        slots, first, slot_of = np.unique(places, return_index=True, return_inverse=True)
        order = np.argsort(first)
        self._kept_at = {slot: at for at, slot in enumerate(slots[order].tolist())}
        new = first[order]
        gaps = (np.diff(new) != 1) | (new[1:] % self._num_frames == 0)
        starts = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(new)]
        self._runs = [(int(new[a]), slice(a, b)) for a, b in pairwise(starts)]
        repeats = np.ones(places.size, dtype=bool)
        repeats[new] = False
        again = np.flatnonzero(repeats)
        self._repeats = list(zip(again, first[slot_of.ravel()[again]], strict=True))
        self._boxes: list[tuple[Box, UInt8[np.ndarray, "U h w C"]]] = []

    def begin(self, height: int, width: int) -> tuple[int, ...]:
        """Of frames of this size: the shape of what they become, which is to go to `out`."""
        for box in self._transform.boxes(height, width, self._generator):
            shape = len(self._kept_at), box.y1 - box.y0, box.x1 - box.x0, 3
            self._boxes.append((box, np.empty(shape, np.uint8)))
        views = self._num_clips * len(self._boxes) * (1 + self._transform.mirrors)
        return views, self._num_frames, *self._transform.size(height, width), 3

    def put(self, slot: int, image: Image) -> None:
        at = self._kept_at.get(slot)
        if at is None:
            return
        for box, kept in self._boxes:
            part = image[box.y0 : box.y1, box.x0 : box.x1]
            if self._mirrored:  # before the resize, which is symmetric
                _copy_mirrored(kept[at], part)
            else:
                kept[at] = part

    def finish(self) -> None:
        clips = self.out.reshape(self._num_clips, -1, *self.out.shape[1:])
        for i, (_, kept) in enumerate(self._boxes):
            self._resize(kept, clips[:, i])
        if self._transform.mirrors:
            count = len(self._boxes)
            clips[:, count:] = torch.from_numpy(clips[:, :count]).flip(-2).numpy()
        crops = torch.from_numpy(self.out).movedim(-1, -3)
        finished = self._transform.finish(crops, self._generator)
        if finished is not crops:
            crops.copy_(finished)

    def _resize(
        self, kept: UInt8[np.ndarray, "U H W C"], clips: UInt8[np.ndarray, "clips T h w C"]
    ) -> None:
        """Each frame to where it is first, those that follow one another together; then to where
        it is again."""
        for place, run in self._runs:
            clip, at = divmod(place, self._num_frames)
            frames = torch.from_numpy(kept[run]).movedim(-1, 1)
            out = torch.from_numpy(clips[clip, at : at + len(frames)]).movedim(-1, 1)
            resize(frames, clips.shape[2:4], out)
        for again, first in self._repeats:
            clips[divmod(again, self._num_frames)] = clips[divmod(first, self._num_frames)]


def _copy_mirrored(out: Image, image: Image) -> None:
    """By torch, as NumPy takes three times as long; in pieces for which it does not wake other
    threads, which would then keep their cores busy for a millisecond and more."""
    rows = len(image)
    if torch.get_num_threads() > 1:
        rows = max(1, _OF_ONE_THREAD // (3 * image.shape[1]))
    for y in range(0, len(image), rows):
        out[y : y + rows] = torch.from_numpy(image[y : y + rows]).flip(1).numpy()
