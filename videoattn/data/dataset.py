"""Makes samples from videos: draws frame numbers, decodes in one pass, crops and resizes.

All randomness of a sample comes from a generator seeded with (seed, epoch, index). The number of
workers or ranks, and resuming a run, do not change a sample.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from videoattn.data.classes import LabelNoise
from videoattn.data.decode import DecodeError, Video, decode, frame_times
from videoattn.data.decode.container import count_folder
from videoattn.data.decode.source import FrameFolder, VideoBytes, VideoSource
from videoattn.data.lists import Label, Samples
from videoattn.data.prepare.index import FrameCount, read_index
from videoattn.data.sampling import Sampler, ShortVideoError, at_rate
from videoattn.data.transforms import Crops, Transform, ViewMaker
from videoattn.data.transforms.mirror import Mirror
from videoattn.types import Failure, Frames

Numbers = Int64[np.ndarray, "clips T"]
"""The frame numbers of each clip."""


@dataclass(frozen=True)
class Sample:
    """The views of one video: clips times crops, the crops of a clip next to each other.

    Args:
        label: The index of the class, or -1 if unknown; all labels if there may be several.
        index: The position in the dataset.
        fps: The frame rate of the video, or 0 if unknown.
    """

    frames: UInt8[Tensor, "V T C H W"]
    label: Label
    index: int
    numbers: Numbers
    fps: float
    mirrored: bool = False


@dataclass(eq=False, repr=False, kw_only=True)
class ClipDataset(Dataset[Sample | Failure]):
    """A map-style dataset: `dataset[(epoch, index)]` returns a Sample.

    Args:
        sample_frames: Draws the frame numbers of the clips.
        mirror: Decides whether all clips of a video are mirrored; they share a label.
        on_error: "raise" raises a DecodeError for a file that fails; "skip" returns a Failure.
        still_frame: Replaces each clip by its middle frame, repeated.
        decode: `videoattn.data.decode.decode`, or a partial of it with other options.
        target_fps: Draws frames by their times, as if the video had this frame rate.
        label_noise: Replaces labels by wrong ones, before mirroring.
    """

    samples: Samples = field(kw_only=False)
    sample_frames: Sampler
    transform: Transform
    mirror: Mirror | None = None
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    still_frame: bool = False
    decode: Callable[..., Frames] = decode
    target_fps: float | None = None
    label_noise: LabelNoise | None = None

    def __post_init__(self) -> None:
        index = read_index(self.samples.root)
        self._starts = index.starts if index and index.starts else {}
        # The `FrameCount` of each video. Unknown counts are found on first use, and kept in memory
        # that the workers share: no file is counted twice in a run. A row's file size is 0 if the
        # frames were counted neither here nor in an earlier run.
        facts = (self.samples.num_frames, self.samples.fps, np.zeros(len(self)))
        self._known = torch.from_numpy(np.stack(facts, axis=1, dtype=np.float64)).share_memory_()
        # Number of videos, and seconds to decode and to transform them. Some updates may be lost.
        self._spent = torch.zeros(3, dtype=torch.float64).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[Any, ...]) -> Sample | Failure:
        item = self.fetch(key)
        if isinstance(item, Failure) and self.on_error == "raise":
            raise DecodeError(item.path, item.reason)
        return item

    def use_counts(self, counts: Mapping[str, FrameCount]) -> None:
        """Sets the known numbers of frames, by path, of videos without one. A number is not used if
        the size of its file has changed."""
        known = self._known.numpy()
        for row, path in zip(known, self.samples.paths if counts else (), strict=False):
            if path in counts and not row[0]:
                row[:] = counts[path]

    def found_counts(self) -> dict[str, FrameCount]:
        """Returns, by path, the numbers of frames that were counted here or set by `use_counts`."""
        rows = zip(self.samples.paths, self._known.tolist(), strict=True)
        return {
            path: FrameCount(int(num_frames), fps, int(num_bytes))
            for path, (num_frames, fps, num_bytes) in rows
            if num_bytes
        }

    def seconds_per_video(self) -> tuple[float, float]:
        """Returns the mean seconds to decode a video and to transform it, in one process."""
        count, decode, transform = self._spent.tolist()
        return decode / max(count, 1), transform / max(count, 1)

    def order(self, generator: torch.Generator | None, world_size: int) -> list[int]:
        """Returns the samples of an epoch in random order, or as listed without a generator."""
        if generator is None:
            return list(range(len(self)))
        order: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return order

    def keys(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterable[list[Any]]:
        """Returns the keys of the batches, which `fetch` takes."""
        return [[(epoch, index) for index in batch] for batch in batches]

    def fetch(self, key: tuple[Any, ...]) -> Sample | Failure:
        """Returns the sample, or a Failure if the file fails, whatever `on_error` is."""
        epoch, number = key
        return self.sample(epoch, number, self.samples.source(number % len(self)))

    def sample(self, epoch: int, number: int, source: VideoSource) -> Sample | Failure:
        """Returns the sample of a file, folder of images or encoded video, or a Failure."""
        index = number % len(self)  # repetitions have larger numbers, see `balanced_order`
        generator = sample_generator(self.seed, epoch, number)
        mirrored = self.mirror is not None and self.mirror.draw(generator)
        try:
            num_frames, fps = self._known_timing(source, index)
            if num_frames:
                numbers, frames = self._clips(source, index, num_frames, fps, generator, mirrored)
            else:
                numbers, frames, fps = self._first_clips(source, index, generator, mirrored)
        except DecodeError as error:
            return Failure(index, error.path, error.reason)
        label: Label = source.label if isinstance(source, VideoBytes) else self.samples.label(index)
        if self.label_noise is not None:
            assert isinstance(label, int)
            label = self.label_noise.label(label, index)
        if self.mirror is not None and mirrored:
            label = self.mirror.label(label)
        return Sample(frames, label, index, numbers, fps, mirrored)

    def empty_batch(self) -> UInt8[Tensor, "N V T C H W"]:
        """Returns a batch without samples (N = 0), otherwise with the usual shape."""
        generator = sample_generator(0, 0, 0)
        positions = np.zeros_like(self.sample_frames(1 << 20, 30.0, generator))
        maker = ViewMaker(self.transform, len(positions), generator)
        box = maker(64, 64)
        frames = torch.zeros(1, 3, box.y1 - box.y0, box.x1 - box.x0, dtype=torch.uint8)
        return maker.views(frames, positions)[None][:0]

    def _known_timing(self, source: VideoSource, index: int) -> tuple[int, float]:
        """Returns the number of frames, or 0 if it is unknown, and the frame rate."""
        if isinstance(source, VideoBytes) and source.num_frames:
            return source.num_frames, source.fps
        if isinstance(source, FrameFolder) and not self._known[index, 0]:
            self._known[index, 0] = count_folder(source)
        num_frames, fps, size = self._known[index].tolist()
        path = str(source)
        if size and not (os.path.exists(path) and os.path.getsize(path) == size):
            return 0, 0.0  # the file has changed
        return int(num_frames), fps

    def _first_clips(
        self, source: VideoSource, index: int, generator: torch.Generator, mirrored: bool
    ) -> tuple[Numbers, Crops, float]:
        """Decodes the clips of a video whose number of frames is unknown, and remembers the number.

        The file is opened once. If decoding has to count the frames, the clips are drawn from the
        header's number, and drawn again if the pass counts another number.
        """
        state = generator.get_state()
        with Video(source) as video:
            likely, fps, clips = video.expect_frames(), video.fps, None
            try:
                clips = self._clips(video, index, likely, fps, generator, mirrored)
            except DecodeError:
                if video.num_frames == likely:
                    raise
            # The count is set last: a worker that reads it must find the rate and the size, too.
            num_bytes = 0 if isinstance(source, VideoBytes) else video.num_bytes
            self._known[index, 1], self._known[index, 2] = fps, num_bytes
            self._known[index, 0] = video.num_frames
            if clips is None or video.num_frames != likely:
                generator.set_state(state)
                clips = self._clips(video, index, video.num_frames, fps, generator, mirrored)
        return *clips, fps

    def _clips(
        self, source: VideoSource | Video, index: int, num_frames: int, fps: float,
        generator: torch.Generator, mirrored: bool,
    ) -> tuple[Numbers, Crops]:  # fmt: skip
        """Draws the clips, decodes their frames once, and returns their frame numbers and views."""
        starts = self._starts.get(self.samples.paths[index])
        state = generator.get_state()
        while True:
            try:
                numbers = sample_numbers(
                    self.sample_frames, source, num_frames, fps, generator, self.target_fps
                )
            except ShortVideoError as error:
                raise DecodeError(source, str(error)) from error
            if self.still_frame:
                length = numbers.shape[1]
                numbers = np.repeat(numbers[:, length // 2, None], length, axis=1)
            maker = ViewMaker(self.transform, len(numbers), generator)
            wanted, positions = np.unique(numbers, return_inverse=True)
            times = [time.perf_counter()]
            try:
                frames = self.decode(source, wanted, crop=maker, starts=starts)
            except DecodeError as error:
                # The container lists more frames than decode (damage): draw again from those that
                # do. The count is not remembered, or a resumed run would draw other clips.
                if error.num_frames is None or error.num_frames >= num_frames:
                    raise
                num_frames = error.num_frames
                generator.set_state(state)
                continue
            times.append(time.perf_counter())
            views = maker.views(frames, positions.reshape(numbers.shape), mirrored=mirrored)
            times.append(time.perf_counter())
            self._spent += torch.tensor([1.0, times[1] - times[0], times[2] - times[1]])
            return numbers, views


def sample_numbers(
    sampler: Sampler, source: VideoSource | Video, num_frames: int, fps: float,
    generator: torch.Generator, target_fps: float | None = None,
) -> Numbers:  # fmt: skip
    """Draws the frame numbers of clips.

    With `target_fps`, frames are left out or repeated, as if the video were displayed and filmed
    again at that rate.
    """
    if target_fps is None:
        return sampler(num_frames, fps, generator)
    displayed = at_rate(frame_times(source, num_frames)[:num_frames], target_fps)
    return displayed[sampler(len(displayed), target_fps, generator)]


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Returns a generator seeded with a hash of (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator
