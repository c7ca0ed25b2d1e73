"""Converts a public model to the contents of a run's folder: weights, a config, class names."""

from pathlib import Path
from typing import Any

from torch import Tensor

from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.recipe import config
from videoattn.recipe.config import Config
from videoattn.recipe.load import shareable, to_dict
from videoattn.recipe.packaged import find_file
from videoattn.weights import PUBLIC, from_state_dict, read_state_dict
from videoattn.weights.download import DownloadError, fetch
from videoattn.weights.load import classifier_of
from videoattn.weights.row import PublicModel

NUM_SEGMENTS = 8
"""The number of frames of a video that an image network scores; their logits are averaged."""


def is_public(path: str | Path) -> bool:
    """Returns whether a path names a public model, and not an existing file or folder."""
    return str(path) in PUBLIC and not Path(path).exists()


def download(name: str) -> Path:
    """Returns the path of a public model's file, which is downloaded unless it is cached."""
    try:
        return fetch(name)
    except DownloadError as error:
        advice = f"if you have the file: videoattn convert FILE --as {name} OUT"
        raise ValueError(f"{error.problem}; {advice}") from error


def read_public(name: str) -> tuple[Path, dict[str, Tensor], CheckpointMeta]:
    """Returns the path of a public model's file, its weights under our names, and metadata."""
    file = download(name)
    weights = from_state_dict(name, read_state_dict(file)).state_dict()
    names, _ = class_names_of(PUBLIC[name], len(weights[f"{classifier_of(name)}.bias"]))
    return file, weights, public_meta(name, names, file)


def public_config(name: str) -> Config:
    """Returns the config of a public model, with its published preprocessing and views."""
    row = PUBLIC[name]
    source, network = row.preprocessing, row.network
    num_frames = source.test_frames or source.num_frames
    if network.startswith("resnet"):
        network, num_frames = f"tsn_{network.replace('resnet', 'r')}", NUM_SEGMENTS
    attention = config.AttentionConfig()
    if row.non_local is not None:
        attention = config.AttentionConfig(
            "non_local", after=row.after, options=dict(row.non_local)
        )
    clip = config.ClipConfig(
        sampling=source.sampling,
        num_frames=num_frames,
        frame_stride=source.frame_stride,
        height=source.size,
        width=source.size,
        mean=source.mean,
        std=source.std,
        square_pixels=False,  # the published accuracies are those of frames as stored
    )
    test = config.TestConfig(
        num_clips=source.num_clips,
        num_crops=source.num_crops,
        short_side=source.short_side,
        height=source.test_size,
        width=source.test_size,
    )
    model = config.ModelConfig(network, dict(row.options), attention=attention)
    data = config.DataConfig(root="data")
    return Config(name.replace("/", "_"), data=data, clip=clip, test=test, model=model)


def class_names_of(row: PublicModel, num_classes: int) -> tuple[list[str], str]:
    """Returns the class names of a public model, and a description of their source."""
    if row.dataset.startswith("Kinetics-400") and num_classes == 400:
        return read_lines(find_file("class list", "kinetics400")), "Kinetics-400's"
    if row.dataset == "ImageNet-1K" and num_classes == 1000:
        from torchvision.models import get_model_weights

        weights = get_model_weights(row.network)
        return weights.DEFAULT.meta["categories"], "ImageNet's, of torchvision"
    return [str(k) for k in range(num_classes)], "named by their numbers"


def read_lines(file: Path) -> list[str]:
    """Returns the lines of a text file that are not blank, without white space at the ends."""
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def public_meta(name: str, class_names: list[str], file: Path) -> CheckpointMeta:
    """Returns the metadata of converted weights: config, classes, authors and license."""
    row, values = PUBLIC[name], to_dict(public_config(name))
    provenance: dict[str, Any] = {
        "public_name": name,
        "licence": row.license,
        "dataset": row.dataset,
        "file": file.name,
        "url": row.url,
        "published_top1": row.accuracy.top1 if row.accuracy else None,
        "published_views": row.preprocessing.views,
        "source": row.accuracy.source if row.accuracy else None,
    }
    return {
        "config": shareable(values),
        "class_names": class_names,
        "preprocessing": {**values["clip"], "test": values["test"]},
        "provenance": provenance,
    }
