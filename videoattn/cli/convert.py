"""`videoattn convert`: writes a public checkpoint as a folder for the other commands."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from videoattn.engine import checkpoint
from videoattn.errors import did_you_mean, first_few, one_of
from videoattn.files import require_empty
from videoattn.recipe import public
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.model import make_model
from videoattn.weights import PUBLIC, explain, from_state_dict, read_state_dict
from videoattn.weights.load import classifier_of
from videoattn.weights.row import PublicModel

AS = "A name from `videoattn list weights`. Without FILE, its file is downloaded."
CLASSES = "A file with one class name per line; the names of Kinetics or ImageNet if not given."


def command(
    file: Annotated[
        Path,
        typer.Argument(
            help="A public checkpoint, unchanged; or a public name, whose file is downloaded."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="A new folder, or a new file X.safetensors."),
    ] = None,
    name: Annotated[str | None, typer.Option("--as", help=AS)] = None,
    classes: Annotated[Path | None, typer.Option(help=CLASSES)] = None,
) -> None:
    """Convert a public checkpoint for the other commands.

    Writes a folder with model.safetensors and config.json, or one file that holds both.
    """
    name, given, output = _resolved(name, file, output)
    row = PUBLIC[name]
    require_empty(output)
    file = public.download(name) if given is None else given
    state = read_state_dict(file)
    explanation = explain(name, state)
    weights = from_state_dict(name, state).state_dict()
    num_classes = len(weights[f"{classifier_of(name)}.bias"])
    class_names, origin = public.class_names_of(row, num_classes)
    origin += " (others by --classes FILE)"
    if classes is not None:
        class_names, origin = public.read_lines(classes), f"as in {classes}"
        if len(class_names) != num_classes:
            raise ValueError(
                f"--classes: {classes} has {len(class_names)} names, the weights have "
                f"{num_classes} classes; write one name per line"
            )
    config = public.public_config(name)
    model = make_model(config.model, num_classes)
    checkpoint.check_fit(model, weights, path=file)
    meta = public.public_meta(name, class_names, file)
    is_file = output.suffix == ".safetensors"
    (checkpoint.save_weights if is_file else checkpoint.save_folder)(output, weights, meta)
    show(f"{name}: {len(state)} keys in {file}, {len(explanation.used)} used")
    _show_by_reason("ignored", explanation.ignored)
    _show_by_reason("not in the file, set to", explanation.filled)
    size = sum(p.numel() for p in model.parameters())
    show(f"{config.model.name}, {size:,} parameters; license of the weights: {row.license}")
    show(f"{num_classes} classes: {origin}")
    show(_views(row, config))
    show(f"written: {output}; {shlex.join(['videoattn', 'predict', str(output)])} VIDEO")


def _resolved(name: str | None, file: Path, output: Path | None) -> tuple[str, Path | None, Path]:
    """Returns the public name, the file (None to download it) and the output, from the words FILE
    OUT --as NAME, OUT --as NAME or NAME OUT."""
    if output is None and name is not None:
        return one_of("--as", name, PUBLIC), None, file
    if output is None:
        raise ValueError(f"{file}: an output is needed; type: videoattn convert {file} OUT")
    if name is None and not public.is_public(file):
        hint = did_you_mean(str(file), PUBLIC)
        raise ValueError(f"{file}: not a public name{hint}; for a file, add --as NAME")
    if name in (None, str(file)) and public.is_public(file):
        return str(file), None, output
    return one_of("--as", name or "", PUBLIC), file, output


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
