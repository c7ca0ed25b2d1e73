"""A video and its label by (epoch, index): sampled, decoded in one pass, cropped.

All randomness of a sample comes from a generator seeded by (seed, epoch, index): neither the
number of workers, nor of ranks, nor where a run was resumed changes a byte.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from videoattn.data.decode import DecodeError, Read, count_frames, decode_each, frame_times
from videoattn.data.decode.cut import Clips, Memory, new_memory
from videoattn.data.decode.frame_folder import count_folder, read_folder
from videoattn.data.decode.video import Encoded, Put, Source, Wanted
from videoattn.data.lists import Samples
from videoattn.data.sampling import Sampler, ShortVideoError, at_rate
from videoattn.data.transforms import Crops, Transform
from videoattn.data.transforms.mirror import Mirror
from videoattn.types import Failure


@dataclass(frozen=True)
class Sample:
    """One video's views, its label (-1: none) and its place in the data set.

    V is clips times crops, the crops of a clip side by side. `numbers` are the frames' places in
    the video, which has `fps` frames a second (0: unknown).
    """

    frames: UInt8[Tensor, "V T C H W"]
    label: int
    index: int
    numbers: Int64[np.ndarray, "clips T"]
    fps: float
    mirrored: bool = False


class ClipDataset(Dataset[Sample | Failure]):
    """`dataset[(epoch, index)]` -> Sample, or Failure for a file that fails under on_error="skip".

    `mirror` decides whether all clips of a video are mirrored together, as they share a label.
    `still_frame` replaces a clip by its middle frame, repeated: what the scene alone tells.
    `target_fps`: frames are taken as if the video had that rate, by their times.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        sample_frames: Sampler,
        transform: Transform,
        mirror: Mirror | None = None,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        still_frame: bool = False,
        read: Read = decode_each,
        target_fps: float | None = None,
    ) -> None:
        self.samples = samples
        self.sample_frames = sample_frames
        self.transform = transform
        self.mirror = mirror
        self.seed = seed
        self.on_error = on_error
        self.still_frame = still_frame
        self.read = read
        self.target_fps = target_fps
        # What nobody knows yet is counted on first use, in memory that workers share: no file is
        # counted twice in a run.
        self._counts = torch.zeros(len(samples), dtype=torch.int64).share_memory_()
        self._rates = torch.zeros(len(samples), dtype=torch.float64).share_memory_()
        if samples.num_frames is not None:
            self._counts += torch.from_numpy(samples.num_frames)
        if samples.fps is not None:
            self._rates += torch.from_numpy(samples.fps)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample | Failure:
        item = self.fetch(key)
        if isinstance(item, Failure) and self.on_error == "raise":
            raise DecodeError(item.path, item.reason)
        return item

    def order(self, generator: torch.Generator | None, world_size: int) -> list[int]:
        """All samples, drawn, or as they are listed; the processes take them in turn."""
        if generator is None:
            return list(range(len(self)))
        drawn: list[int] = torch.randperm(len(self), generator=generator).tolist()
        return drawn

    def keys(self, epoch: int, batches: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
        """What `fetch` takes for each sample of the batches."""
        return [[(epoch, index) for index in batch] for batch in batches]

    def fetch(
        self, key: tuple[int, int], memory: Memory = new_memory, video: Encoded | None = None
    ) -> Sample | Failure:
        """The same, with a failure handed back whatever `on_error` says.

        memory: asked once, for where the frames will be.
        video: the sample, where its path is none that can be opened.
        """
        epoch, index = key
        try:
            return self._sample(epoch, index, memory, video)
        except DecodeError as error:
            return Failure(index, error.path, error.reason)

    def _sample(self, epoch: int, index: int, memory: Memory, video: Encoded | None) -> Sample:
        source = video or self.samples.path(index)
        generator = sample_generator(self.seed, epoch, index)
        mirrored = self.mirror is not None and self.mirror.draw(generator)
        start = generator.get_state()
        num_frames, fps = timing = self._timing(source, index)
        try:
            frames, numbers = self._views(source, timing, generator, memory, mirrored)
        except DecodeError as error:
            # The packet count promised more than decodes (damage): sample again from what is
            # there. Not remembered, or a resumed run would draw other clips than this one.
            if error.num_frames is None or error.num_frames >= num_frames:
                raise
            generator.set_state(start)
            timing = error.num_frames, fps
            frames, numbers = self._views(source, timing, generator, memory, mirrored)
        label = video.label if video else self.samples.label(index)
        if self.mirror is not None and mirrored:
            label = self.mirror.label(label)
        return Sample(frames, label, index, numbers, fps, mirrored)

    def no_clips(self) -> UInt8[Tensor, "N V T C H W"]:
        """A batch of none, in the shape that others have: what is left when all samples fail."""
        generator = sample_generator(0, 0, 0)
        num_clips, num_frames = self.sample_frames(1 << 20, 30.0, generator).shape
        places = np.zeros((num_clips, num_frames), np.int64)
        clips = Clips(self.transform, places, generator)
        clips.put(0, np.zeros((64, 64, 3), np.uint8))
        return clips.finish()[None][:0]

    def _views(
        self, source: Source, timing: tuple[int, float], generator: torch.Generator,
        memory: Memory, mirrored: bool,
    ) -> tuple[Crops, Int64[np.ndarray, "clips T"]]:  # fmt: skip
        try:
            numbers = sample_numbers(
                self.sample_frames, source, *timing, generator, self.target_fps
            )
        except ShortVideoError as error:
            raise DecodeError(source, str(error)) from error
        if self.still_frame:
            middle = numbers.shape[1] // 2
            numbers = np.repeat(numbers[:, middle : middle + 1], numbers.shape[1], axis=1)
        wanted, places = np.unique(numbers, return_inverse=True)
        places = places.reshape(numbers.shape)
        clips = Clips(self.transform, places, generator, memory, mirrored=mirrored)
        self._read_source(source, wanted, clips.put)  # once, whatever the number of clips
        return clips.finish(), numbers

    def _read_source(self, source: Source, wanted: Wanted, put: Put) -> None:
        template = self.samples.frame_template
        if template is None or isinstance(source, Encoded):
            self.read(source, wanted, put)
        else:
            read_folder(source, wanted, put, template)

    def _timing(self, source: Source, index: int) -> tuple[int, float]:
        if isinstance(source, Encoded) and source.num_frames:
            return source.num_frames, source.fps
        count = int(self._counts[index])
        if count == 0:
            template = self.samples.frame_template
            if template is None or isinstance(source, Encoded):
                count, fps = count_frames(source)
            else:
                count, fps = count_folder(source, template)
            # The rate first: another worker that sees the count must find the rate there.
            self._rates[index] = fps
            self._counts[index] = count
        return count, float(self._rates[index])


def sample_numbers(
    sampler: Sampler, source: Source, num_frames: int, fps: float, generator: torch.Generator,
    target_fps: float | None = None,
) -> Int64[np.ndarray, "clips T"]:  # fmt: skip
    """The sampler's frames of a video of `num_frames` frames, `fps` a second. With `target_fps` it
    sees one of that rate, in which frames are left out or repeated as their times say."""
    if target_fps is None:
        return sampler(num_frames, fps, generator)
    shown = at_rate(frame_times(source)[:num_frames], target_fps)
    return shown[sampler(len(shown), target_fps, generator)]


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator of its own for each (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator
