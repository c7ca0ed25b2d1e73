"""`videoattn convert`: a public checkpoint becomes a folder that every other command takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.errors import first_few, one_of
from videoattn.recipe.config import (
    AttentionConfig,
    ClipConfig,
    Config,
    DataConfig,
    ModelConfig,
    TestConfig,
)
from videoattn.recipe.console import console as out
from videoattn.recipe.load import shareable, to_dict
from videoattn.recipe.model import make_model
from videoattn.recipe.run import require_empty
from videoattn.weights import PUBLIC, explain, from_state_dict, read_state_dict
from videoattn.weights.load import classifier_of
from videoattn.weights.row import PublicModel

SEGMENTS = 8
"""What a video is to an image network: its logits are averaged over so many frames."""
CLASS_LIST = Path("data/classes/kinetics400.txt")


def convert(file: Path, output: Path, *, name: str, classes: Path | None = None) -> None:
    """Reads the public model `name` from a file and writes it to a folder: model.safetensors and
    config.json. An output that ends in .safetensors is written as this one file, which holds both.

    classes: a file with one class name a line; without it Kinetics' and ImageNet's own names, or
        numbers.

    Raises:
        ValueError: an unknown name, weights of another model, names for another number of classes,
            an output that exists.
    """
    row = PUBLIC[one_of("--as", name, PUBLIC)]
    require_empty(output)
    state = read_state_dict(file)
    explanation = explain(name, state)
    weights = from_state_dict(name, state).state_dict()
    num_classes = len(weights[f"{classifier_of(name)}.bias"])
    class_names, whose = _class_names(row, num_classes, classes)
    config = _recipe(name, row)
    model = make_model(config.model, num_classes)
    checkpoint.restore(model, weights, path=file)  # the recipe builds what the weights are of
    values = to_dict(config)
    about: CheckpointMeta = {
        "config": shareable(values),
        "class_names": class_names,
        "preprocessing": {**values["clip"], "test": values["test"]},
        "provenance": _provenance(name, row, file),
    }
    if output.suffix == ".safetensors":
        checkpoint.save_weights(output, weights, about)
    else:
        checkpoint.save_folder(output, weights, about)
    size = sum(p.numel() for p in model.parameters())
    lines = [
        f"{name}: {len(state)} keys in {file}, {len(explanation.used)} used",
        *_by_reason("ignored", explanation.ignored),
        *_by_reason("not in the file, set to", explanation.filled),
        f"{config.model.name}, {size:,} parameters; licence of the weights: {row.licence}",
        f"{num_classes} classes: {whose}",
        _views(row, config),
        f"written: {output}; videoattn predict {output} VIDEO",
    ]
    for line in lines:
        out.print(line, markup=False)


def _recipe(name: str, row: PublicModel) -> Config:
    """The public model as a recipe, tested as it was published."""
    fed, network = row.preprocessing, row.network
    num_frames = fed.test_frames or fed.num_frames
    if network.startswith("resnet"):
        network, num_frames = f"tsn_{network.replace('resnet', 'r')}", SEGMENTS
    attention = AttentionConfig()
    if row.non_local is not None:
        attention = AttentionConfig("non_local", after=row.after, options=dict(row.non_local))
    return Config(
        name=name.replace("/", "_"),
        data=DataConfig(root="data"),
        clip=ClipConfig(
            sampling=fed.sampling,
            num_frames=num_frames,
            frame_stride=fed.frame_stride,
            height=fed.size,
            width=fed.size,
            mean=fed.mean,
            std=fed.std,
        ),
        test=TestConfig(
            num_clips=fed.num_clips,
            num_crops=fed.num_crops,
            short_side=fed.short_side,
            height=fed.test_size,
            width=fed.test_size,
        ),
        model=ModelConfig(name=network, options=dict(row.options), attention=attention),
    )


def _class_names(row: PublicModel, num_classes: int, classes: Path | None) -> tuple[list[str], str]:
    """The names, and whose they are."""
    kinetics = Path(__file__).parents[2] / CLASS_LIST  # where this is a clone of the repository
    if classes is not None:
        names, whose = _lines(classes), f"as in {classes}"
        if len(names) != num_classes:
            raise ValueError(
                f"--classes: {classes} has {len(names)} names, the weights have {num_classes} "
                "classes; one name a line"
            )
    elif row.dataset.startswith("Kinetics-400") and num_classes == 400 and kinetics.exists():
        names, whose = _lines(kinetics), f"Kinetics-400's, of {CLASS_LIST}"
    elif row.dataset == "ImageNet-1K" and num_classes == 1000:
        weights = torchvision.models.get_model_weights(row.network)
        names, whose = weights.DEFAULT.meta["categories"], "ImageNet's, of torchvision"
    else:
        names, whose = [str(number) for number in range(num_classes)], "called by their numbers"
    return names, f"{whose} (others by --classes FILE)" if classes is None else whose


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _provenance(name: str, row: PublicModel, file: Path) -> dict[str, Any]:
    return {
        "public_name": name,
        "licence": row.licence,
        "dataset": row.dataset,
        "file": file.name,
        "url": row.url,
        "published_top1": row.top1,
        "published_views": row.preprocessing.views,
        "source": row.source,
    }


def _by_reason(what: str, keys: Mapping[str, str]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for key, why in keys.items():
        reasons.setdefault(why, []).append(key)
    return [f"  {len(some)} {what}: {why} ({first_few(some, 3)})" for why, some in reasons.items()]


def _views(row: PublicModel, config: Config) -> str:
    test, clip = config.test, config.clip
    here = f"{test.num_clips} x {test.num_crops} views of {clip.num_frames} frames"
    if row.top1 is None:
        return f"tested on {here} (clips x crops)"
    return (
        f"tested on {here} (clips x crops); published: {row.top1:g} % on {row.dataset}, "
        f"{row.preprocessing.views}"
    )
