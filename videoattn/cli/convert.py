"""`videoattn convert`: writes a public checkpoint as a folder for the other commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.errors import first_few, one_of
from videoattn.files import require_empty
from videoattn.recipe.config import (
    AttentionConfig,
    ClipConfig,
    Config,
    DataConfig,
    ModelConfig,
    TestConfig,
)
from videoattn.recipe.console import show
from videoattn.recipe.load import shareable, to_dict
from videoattn.recipe.model import make_model
from videoattn.recipe.packaged import find_file
from videoattn.weights import PUBLIC, explain, from_state_dict, read_state_dict
from videoattn.weights.load import classifier_of
from videoattn.weights.row import PublicModel

NUM_SEGMENTS = 8
"""An image network scores this many frames of a video, and its logits are averaged."""


def command(
    file: Annotated[Path, typer.Argument(help="A public checkpoint, unchanged.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new folder, or a new file X.safetensors.")
    ],
    name: Annotated[str, typer.Option("--as", help="A name from `videoattn list weights`.")],
    classes: Annotated[
        Path | None,
        typer.Option(
            help="A file with one class name per line; the names of Kinetics or ImageNet if not "
            "given."
        ),
    ] = None,
) -> None:
    """Convert a public checkpoint for the other commands.

    Writes a folder with model.safetensors and config.json, or one file that holds both.
    """
    row = PUBLIC[one_of("--as", name, PUBLIC)]
    require_empty(output)
    state = read_state_dict(file)
    explanation = explain(name, state)
    weights = from_state_dict(name, state).state_dict()
    num_classes = len(weights[f"{classifier_of(name)}.bias"])
    class_names, origin = _class_names(row, num_classes, classes)
    config = _config(name, row)
    model = make_model(config.model, num_classes)
    checkpoint.check_fit(model, weights, path=file)
    values = to_dict(config)
    meta: CheckpointMeta = {
        "config": shareable(values),
        "class_names": class_names,
        "preprocessing": {**values["clip"], "test": values["test"]},
        "provenance": _provenance(name, row, file),
    }
    is_file = output.suffix == ".safetensors"
    (checkpoint.save_weights if is_file else checkpoint.save_folder)(output, weights, meta)
    size = sum(p.numel() for p in model.parameters())
    show(f"{name}: {len(state)} keys in {file}, {len(explanation.used)} used")
    _show_by_reason("ignored", explanation.ignored)
    _show_by_reason("not in the file, set to", explanation.filled)
    show(f"{config.model.name}, {size:,} parameters; license of the weights: {row.license}")
    show(f"{num_classes} classes: {origin}")
    show(_views(row, config))
    show(f"written: {output}; videoattn predict {output} VIDEO")


def _config(name: str, row: PublicModel) -> Config:
    """Returns the config, with the preprocessing and views of the published accuracy."""
    source, network = row.preprocessing, row.network
    num_frames = source.test_frames or source.num_frames
    if network.startswith("resnet"):
        network, num_frames = f"tsn_{network.replace('resnet', 'r')}", NUM_SEGMENTS
    attention = AttentionConfig()
    if row.non_local is not None:
        attention = AttentionConfig("non_local", after=row.after, options=dict(row.non_local))
    clip = ClipConfig(
        sampling=source.sampling,
        num_frames=num_frames,
        frame_stride=source.frame_stride,
        height=source.size,
        width=source.size,
        mean=source.mean,
        std=source.std,
        square_pixels=False,  # the published accuracies are those of frames as stored
    )
    test = TestConfig(
        num_clips=source.num_clips,
        num_crops=source.num_crops,
        short_side=source.short_side,
        height=source.test_size,
        width=source.test_size,
    )
    model = ModelConfig(network, dict(row.options), attention=attention)
    data = DataConfig(root="data")
    return Config(name.replace("/", "_"), data=data, clip=clip, test=test, model=model)


def _class_names(row: PublicModel, num_classes: int, file: Path | None) -> tuple[list[str], str]:
    """Returns the class names, and a description of their source."""
    if file is not None:
        names = _lines(file)
        if len(names) != num_classes:
            raise ValueError(
                f"--classes: {file} has {len(names)} names, the weights have {num_classes} "
                "classes; write one name per line"
            )
        return names, f"as in {file}"
    names, origin = [str(k) for k in range(num_classes)], "named by their numbers"
    if row.dataset.startswith("Kinetics-400") and num_classes == 400:
        names, origin = _lines(find_file("class list", "kinetics400")), "Kinetics-400's"
    elif row.dataset == "ImageNet-1K" and num_classes == 1000:
        from torchvision.models import get_model_weights

        weights = get_model_weights(row.network)
        names, origin = weights.DEFAULT.meta["categories"], "ImageNet's, of torchvision"
    return names, f"{origin} (others by --classes FILE)"


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def _provenance(name: str, row: PublicModel, file: Path) -> dict[str, Any]:
    return {
        "public_name": name,
        "licence": row.license,
        "dataset": row.dataset,
        "file": file.name,
        "url": row.url,
        "published_top1": row.accuracy.top1 if row.accuracy else None,
        "published_views": row.preprocessing.views,
        "source": row.accuracy.source if row.accuracy else None,
    }


def _show_by_reason(what: str, keys: Mapping[str, str]) -> None:
    reasons: dict[str, list[str]] = {}
    for key, reason in keys.items():
        reasons.setdefault(reason, []).append(key)
    for reason, names in reasons.items():
        show(f"  {len(names)} {what}: {reason} ({first_few(names, 3)})")


def _views(row: PublicModel, config: Config) -> str:
    test, published = config.test, ""
    if row.accuracy is not None:
        published = (
            f"; published: {row.accuracy.top1:g} % on {row.dataset}, {row.preprocessing.views}"
        )
    return (
        f"tested on {test.num_clips} x {test.num_crops} views of {config.clip.num_frames} frames "
        f"(clips x crops){published}"
    )
