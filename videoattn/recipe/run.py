"""Loads a trained network with its preprocessing from a run, a shared folder or a checkpoint."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from videoattn.data.dataset import sample_generator
from videoattn.data.decode import DecodeError
from videoattn.data.lists import Samples
from videoattn.data.transforms import ViewMaker
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointError, CheckpointMeta
from videoattn.engine.evaluate import Evaluation, VideoScores, evaluate, score_in_order
from videoattn.engine.objective import Objective
from videoattn.engine.parallel import Parallel, resolve_device
from videoattn.engine.progress import Display
from videoattn.errors import did_you_mean
from videoattn.models.norms import fold_batch_norms
from videoattn.models.structure import NoInit
from videoattn.recipe.config import Config
from videoattn.recipe.data import make_loader, make_to_video, test_frames, test_transform
from videoattn.recipe.folder import RUNS
from videoattn.recipe.load import from_stored
from videoattn.recipe.model import make_model
from videoattn.recipe.objective import test_objective
from videoattn.recipe.public import is_public, read_public
from videoattn.recipe.training import make_precision
from videoattn.types import Failure, Logits, Video
from videoattn.weights import PUBLIC

FOLD_FROM = 64
"""Least number of views for which batch norms are folded into convolutions. For an I3D-R50 on one
busy core, this took 2.5 s, and saved 0.15 of 0.8 s per view in bfloat16 (tools/bench/views.py)."""


class Prediction(NamedTuple):
    """A class with its probability."""

    name: str
    probability: float


@dataclass(eq=False, repr=False)
class Predictor:
    """A trained network with its preprocessing and class names.

    `predictor("clip.mp4")` returns the classes with their probabilities, most likely first.
    `predictor.model` is the network in eval mode, and `predictor.preprocess` returns its input.
    The attributes and methods of the network are available on the predictor, too.

    Args:
        checkpoint: The file with the weights.
        meta: The metadata of the checkpoint, without overrides.
        folder: The default output folder of the commands.
    """

    model: nn.Module
    config: Config
    class_names: tuple[str, ...]
    checkpoint: Path
    meta: CheckpointMeta
    folder: Path

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    @property
    def objective(self) -> Objective:
        """The scores and the metrics of the network's task."""
        return test_objective(self.config.train)

    def __call__(self, video: str | Path | Tensor) -> list[Prediction] | Logits:
        """Predicts the action in a video.

        Args:
            video: A file; frames (T, C, H, W) uint8, RGB; or a preprocessed video (N, C, T, H, W)
                in floating point.

        Returns:
            All classes, most likely first, with the mean probability over the recipe's views. With
            several labels per video, each probability is independent of the others. For a
            preprocessed video, its logits (N, K).

        Raises:
            DecodeError: If the file cannot be decoded.
            ValueError: If the tensor has another shape or type.
        """
        if isinstance(video, Tensor) and video.is_floating_point():
            logits: Logits = self.model(video)
            return logits
        views = self.preprocess(video).split(self.config.test.batch_size)
        with torch.no_grad():
            scores = torch.cat([self.scores(self.model(part)) for part in views]).mean(dim=0)
        ranked = scores.argsort(descending=True).tolist()
        return [Prediction(self.class_names[k], float(scores[k])) for k in ranked]

    def scores(self, logits: Logits) -> Float[Tensor, "N K"]:
        """Returns the probabilities of the classes: softmax, or sigmoid if a video may have several
        labels."""
        return self.objective.scores(logits)

    def preprocess(self, video: str | Path | Tensor) -> Video:
        """Returns the views of a video as the network takes them, (V, C, T, H, W) on its device.

        Args:
            video: A file, or frames (T, C, H, W) uint8 in RGB.

        Raises:
            DecodeError: If the file cannot be decoded.
            ValueError: If the tensor has another shape or type.
        """
        if isinstance(video, Tensor):
            views = self._views(video)
        else:
            samples = self.samples([video])
            item = make_loader(self.config, "test", Parallel(), samples).dataset[0, 0]
            if isinstance(item, Failure):
                raise DecodeError(item.path, item.reason)
            views = item.frames
        return make_to_video(self.config.clip, self.device)(views)

    def _views(self, frames: Tensor) -> UInt8[Tensor, "V T C H W"]:
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(
                f"frames: got {tuple(frames.shape)} of {frames.dtype}; need (T, 3, H, W) of "
                "torch.uint8 in RGB, or a normalized video (N, 3, T, H, W)"
            )
        generator = sample_generator(0, 0, 0)
        fps = self.config.clip.target_fps or 0.0  # the frames of a tensor have no times
        numbers = test_frames(self.config)(len(frames), fps, generator)
        maker = ViewMaker(test_transform(self.config), len(numbers), generator)
        box = maker(*frames.shape[2:])
        return maker.views(frames[..., box.y0 : box.y1, box.x0 : box.x1], numbers)

    def samples(self, videos: Sequence[str | Path]) -> Samples:
        """Returns video files as unlabeled samples, which `evaluate` can score."""
        paths = [os.path.expanduser(video) for video in videos]
        labels = [-1] * len(paths)
        return Samples(Path(), paths=paths, labels=labels, class_names=self.class_names)

    def evaluate(self, samples: Samples, parallel: Parallel) -> Evaluation:
        """Returns the scores and the metrics of the samples, over all their views."""
        with Display(enabled=parallel.is_main) as display:
            batches = make_loader(self.config, "test", parallel, samples)
            model = self._scorer(len(samples))
            return evaluate(model, batches, display=display, **self._scoring(parallel))

    def score_samples(
        self, samples: Samples, parallel: Parallel, num_videos: int | None = None
    ) -> Iterator[list[VideoScores]]:
        """Yields the scores of a few samples at a time, in order, as soon as they are computed.

        Args:
            num_videos: The number of all videos, if `samples` are the rest of an interrupted call.
                Norms are folded, or not, as in that call, so that scores are equal bit for bit.
        """
        config = self.config
        if len(samples) == 1:  # starting loader processes would take longer
            config = replace(config, data=replace(config.data, num_workers=0))
        batches = make_loader(config, "test", parallel, samples)
        scorer = self._scorer(num_videos or len(samples))
        return score_in_order(scorer, batches, **self._scoring(parallel))

    def _scorer(self, num_videos: int) -> nn.Module:
        """Returns the network, with folded batch norms if there are enough views."""
        config, test = self.config, self.config.test
        if num_videos * test.num_clips * max(test.num_crops, 1) < FOLD_FROM:
            return self.model
        size = config.clip.num_frames, *config.test_size
        example = torch.zeros(1, 3, *size, device=self.device)
        return fold_batch_norms(self.model, example)

    def _scoring(self, parallel: Parallel) -> dict[str, Any]:
        precision, _ = make_precision(self.config, self.model, parallel.device)
        return {
            "to_video": make_to_video(self.config.clip, parallel.device),
            "objective": self.objective,
            "max_views": self.config.test.batch_size,
            "precision": precision,
            "parallel": parallel,
        }

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the network, which earlier versions of `load` returned."""
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        clip = self.config.clip
        return (
            f"Predictor({self.config.model.name}, {len(self.class_names)} classes, "
            f"{clip.num_frames}x{clip.height}x{clip.width}, {self.checkpoint})"
        )


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    overrides: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> Predictor:
    """Loads the network of a run's folder (its last checkpoint), a shared folder (model.safetensors
    and config.json), a .pt or .safetensors file in one of them, or a public model by its name.

    Nothing in the folder can run code, read other files or reach the network: its config's data
    section is not used. The file of a public model is downloaded once.

    Args:
        path: A folder or a file, or else a public name such as "pytorchvideo/i3d_r50".
        overrides: `key=value` words that the user typed, such as "data.root=videos".
        data: A data section from a source that the user controls.

    Raises:
        ValueError: If the run does not exist, a file is not a checkpoint of this package, or its
            weights belong to another network.
    """
    device = resolve_device(device) if isinstance(device, str) else device
    if public := is_public(path):
        file, state, meta = read_public(str(path))
    else:
        try:
            file, state, meta = checkpoint.read(Path(os.path.expanduser(path)))
        except CheckpointError as error:
            hint = did_you_mean(str(path), PUBLIC)
            if not hint or os.path.exists(path):
                raise
            raise CheckpointError(f"{error}; or a public name{hint}") from error
    config = from_stored(meta["config"], data, overrides)
    with NoInit():
        with torch.device("meta"):  # before memory for the network is allocated
            fitting = make_model(config.model, len(meta["class_names"]))
        checkpoint.check_fit(fitting, state, path=file)
        model = make_model(config.model, len(meta["class_names"]))
    checkpoint.restore(model, state, path=file)
    folder = RUNS / config.name if public else file.parent
    names = tuple(meta["class_names"])
    return Predictor(model.to(device).eval(), config, names, file, meta, folder)
