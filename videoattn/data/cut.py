"""Clips of a video's frames: cut out while the frames come one by one, and resized to where they
stay.

Where torch may use more threads than one (not in a loader's process), a second one resizes frames
while the next ones are decoded: PyAV and torch both work without Python's lock.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from videoattn.data.transforms import Box, Crops, Transform, resize
from videoattn.data.video import Image

Memory = Callable[[tuple[int, ...]], UInt8[np.ndarray, "V T H W C"]]
"""Gives memory of a shape."""

_TOGETHER = 4  # frames that are resized at once: fewer would cost more each

_OF_ONE_THREAD = 1 << 15  # elements up to which torch does not split its work


def new_memory(shape: tuple[int, ...]) -> UInt8[np.ndarray, "V T H W C"]:
    return np.empty(shape, np.uint8)


class Clips:
    """What `transform` makes of all clips of a video.

    places: which of the frames that are put each clip has; some may be in none, others in several.
    `mirrored` turns all of them about. `memory` is asked once the frames' size is known. To be used
    in a `with`, which waits for what still writes there.
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

    def __enter__(self) -> "Clips":
        return self

    def __exit__(self, *_: object) -> None:
        for cut in self._cuts:
            cut.wait()

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
        used, order = np.unique(places, return_inverse=True)
        self._order = order.reshape(places.shape)
        self._rank = {slot: rank for rank, slot in enumerate(used.tolist())}
        # One clip of all frames in their order: each is resized to where it stays.
        self._plain = np.array_equal(self._order, np.arange(len(used))[None])
        self._size = (0, 0)
        self._boxes: list[tuple[Box, UInt8[np.ndarray, "U h w C"]]] = []
        self._helper = _helper() if self._plain else None
        self._jobs: list[Future[None]] = []
        self._num_resized = 0  # frames that were, or are being

    def begin(self, height: int, width: int) -> tuple[int, ...]:
        """Of frames of this size: the shape of what they become, which is to go to `out`."""
        self._size = self._transform.size(height, width)
        for box in self._transform.boxes(height, width, self._generator):
            shape = len(self._rank), box.y1 - box.y0, box.x1 - box.x0, 3
            self._boxes.append((box, np.empty(shape, np.uint8)))
        views = len(self._order) * len(self._boxes) * (1 + self._transform.mirrors)
        return views, len(self._order[0]), *self._size, 3

    def put(self, slot: int, image: Image) -> None:
        rank = self._rank.get(slot)
        if rank is None:
            return
        if rank < self._num_resized:  # a setback: all come again
            self.wait()
            self._num_resized = 0
        for box, cut in self._boxes:
            part = image[box.y0 : box.y1, box.x0 : box.x1]
            if self._mirrored:  # before the resize, which is symmetric
                _copy_mirrored(cut[rank], part)
            else:
                cut[rank] = part
        if self._helper is not None and rank + 1 >= self._num_resized + _TOGETHER:
            self._jobs.append(self._helper.submit(self._resize, self._num_resized, rank + 1))
            self._num_resized = rank + 1

    def finish(self) -> None:
        if self._plain:
            if self._num_resized < len(self._rank):
                self._resize(self._num_resized, len(self._rank))
            self.wait()
        else:
            self._resize_and_deal_out()
        if self._transform.mirrors:
            clips = self._by_clip()
            count = len(self._boxes)
            clips[:, count:] = torch.from_numpy(clips[:, :count]).flip(-2).numpy()
        crops = torch.from_numpy(self.out).movedim(-1, -3)
        finished = self._transform.finish(crops, self._generator)
        if finished is not crops:
            crops.copy_(finished)

    def wait(self) -> None:
        """Until nothing is being resized."""
        wait(self._jobs)
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def _by_clip(self) -> UInt8[np.ndarray, "clips boxes T h w C"]:
        return self.out.reshape(len(self._order), -1, *self.out.shape[1:])

    def _resize(self, first: int, last: int) -> None:
        for out, (_, cut) in zip(self.out, self._boxes, strict=False):
            frames = torch.from_numpy(cut[first:last]).movedim(-1, 1)
            resize(frames, self._size, torch.from_numpy(out[first:last]).movedim(-1, 1))

    def _resize_and_deal_out(self) -> None:
        for i, (_, cut) in enumerate(self._boxes):
            crop = resize(torch.from_numpy(cut).movedim(-1, 1), self._size).movedim(1, -1).numpy()
            for order, clip in zip(self._order, self._by_clip()[:, i], strict=True):
                np.take(crop, order, axis=0, out=clip, mode="clip")  # "raise" would copy twice


def _copy_mirrored(out: Image, image: Image) -> None:
    """By torch, as NumPy takes three times as long; in pieces for which it does not wake other
    threads, which would then keep their cores busy for a millisecond and more."""
    rows = max(1, _OF_ONE_THREAD // (3 * image.shape[1]))
    for y in range(0, len(image), rows):
        out[y : y + rows] = torch.from_numpy(image[y : y + rows]).flip(1).numpy()


def _helper() -> ThreadPoolExecutor | None:
    return _thread_of(os.getpid()) if torch.get_num_threads() > 1 else None


@cache
def _thread_of(process: int) -> ThreadPoolExecutor:
    """One for each process: a fork has none of its parent's threads."""
    return ThreadPoolExecutor(1, thread_name_prefix="resize")
