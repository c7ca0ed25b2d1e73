"""`videoattn export`: writes a network in a format for other programs, and checks it.

torch-export: a .pt2 file for torch.export.load. onnx: a .onnx file for onnxruntime and others.
safetensors: a folder to share, for this package.
"""

import copy
import importlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, cast

import torch
import typer
from torch import Tensor, nn
from torch.export import ExportedProgram

from videoattn.cli.arguments import Run
from videoattn.cli.card import PICTURE, card_text, license_of, starting_weights
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.errors import one_of
from videoattn.files import require_empty, write_text, write_whole
from videoattn.models.norms import fold_batch_norms
from videoattn.recipe.config import Config
from videoattn.recipe.console import show
from videoattn.recipe.load import shareable
from videoattn.recipe.run import Predictor, load

Network = Callable[[Tensor], Tensor]
Writer = Callable[[Predictor, Tensor, Path], Network]

TOLERANCE = 1e-4
"""The largest allowed difference of the logits, in standard deviations of the logits."""


def command(
    run: Run,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A new file, or a new folder.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors (a folder to share), torch-export (.pt2) or onnx. The latter two "
            "take normalized video (N, 3, T, H, W) with any N; OUT.json describes the input.",
        ),
    ] = "safetensors",
    video: Annotated[
        Path | None,
        typer.Option(
            help="safetensors: a video whose frames may be shared, for the picture of the model "
            "card; no picture if not given."
        ),
    ] = None,
) -> None:
    """Write a network for other programs, and check its outputs.

    The written network is loaded again, and must give the logits of the original. A folder to share
    also gets a model card, README.md.
    """
    write, suffix = FORMATS[one_of("--format", kind, FORMATS)]
    if suffix and output.suffix != suffix:
        raise ValueError(f"{output}: got another ending; need {suffix} for --format {kind}")
    require_empty(output)
    predictor = load(run)
    network = write(predictor, _clips(predictor.config, 2), output)
    difference = _difference(predictor.model, network, predictor.config)
    if not difference <= TOLERANCE:  # also refuses NaN
        shutil.rmtree(output) if output.is_dir() else output.unlink()
        raise ValueError(
            f"as {kind}, the logits of {run} differ by {difference:.1e} of their standard "
            f"deviation; at most {TOLERANCE:.0e} is allowed; no file is written; please report it"
        )
    if suffix:
        write_text(output.with_name(f"{output.name}.json"), _description(predictor))
    else:
        _write_card(predictor, output, video)
    show(
        f"{output}: differs by {difference:.1e} of the logits' standard deviation from {run}, "
        "for batches of 1 and 3 clips"
    )


def _folder(predictor: Predictor, clips: Tensor, output: Path) -> Network:
    meta = {**predictor.meta, "config": shareable(predictor.meta["config"])}
    if origin := starting_weights(predictor):  # the config to share does not have them
        meta["provenance"] = {"started_from": origin, "licence": license_of(predictor)}
    checkpoint.save_folder(output, predictor.model.state_dict(), cast(CheckpointMeta, meta))
    return load(output).model


def _write_card(predictor: Predictor, output: Path, video: Path | None) -> None:
    if video is not None:
        from videoattn.cli.why import draw_summary  # loads the drawing code
        from videoattn.explain import write_png

        write_png(output / PICTURE, draw_summary(predictor, video))
        show(f"{output / PICTURE}: frames of {video}")
    text = card_text(predictor, name=output.resolve().name, has_picture=video is not None)
    write_text(output / "README.md", text)


def _torch_export(predictor: Predictor, clips: Tensor, output: Path) -> Network:
    program = _program(predictor.model, clips)
    write_whole(output, lambda file: torch.export.save(program, file))
    network: Network = torch.export.load(output).module()
    return network


def _onnx(predictor: Predictor, clips: Tensor, output: Path) -> Network:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        runtime = _require(name)
    program = _program(predictor.model, clips)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own calls of torch
        try:
            exported = torch.onnx.export(
                program, input_names=["video"], output_names=["logits"], dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(_refusal(predictor.model, "ONNX", error)) from error
    assert exported is not None
    data = exported.model_proto.SerializeToString()
    write_whole(output, lambda file: file.write(data))
    session = runtime.InferenceSession(output, providers=["CPUExecutionProvider"])

    def network(video: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"video": video.numpy()})
        return torch.from_numpy(logits)

    return network


FORMATS: dict[str, tuple[Writer, str]] = {
    "safetensors": (_folder, ""),
    "torch-export": (_torch_export, ".pt2"),
    "onnx": (_onnx, ".onnx"),
}
"""Format -> its writer, which returns the written network, and the suffix of its file."""


def _program(model: nn.Module, clips: Tensor) -> ExportedProgram:
    """Exports the network, with folded batch norms, for any number of clips of this size."""
    any_number = {0: torch.export.Dim("clips", min=1)}
    model = copy.deepcopy(fold_batch_norms(model, clips[:1]))
    for parameter in model.parameters():  # torch.export.save damages channels-last parameters
        parameter.data = parameter.data.contiguous()
    try:
        with torch.no_grad():
            return torch.export.export(model, (clips,), dynamic_shapes=(any_number,))
    except (RuntimeError, ValueError) as error:
        raise ValueError(_refusal(model, "torch.export", error)) from error


def _refusal(model: nn.Module, what: str, error: BaseException) -> str:
    while error.__cause__ is not None:  # the cause names the operation; the rest is torch's advice
        error = error.__cause__
    reason = str(error).partition("\n")[0]
    return f"this {type(model).__name__} cannot be exported by {what}: {reason}"


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"--format onnx needs {name}, which is not installed; install the extra: "
            "pip install 'videoattn[export]'"
        ) from error


def _clips(config: Config, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = config.clip.num_frames, *config.test_size
    return torch.randn(number, 3, *size, generator=generator)


def _difference(model: nn.Module, network: Network, config: Config) -> float:
    """Returns the largest difference of the logits of one and three clips, divided by their
    standard deviation."""
    clips = _clips(config, 3)
    with torch.no_grad():
        expected = model(clips)
        logits = torch.cat([network(clips), network(clips[:1])])
    largest = (logits - torch.cat([expected, expected[:1]])).abs().max()
    return float(largest / expected.std())


def _description(predictor: Predictor) -> str:
    clip = predictor.config.clip
    size = [clip.num_frames, *predictor.config.test_size]
    values = {
        "input": {"video": ["N", 3, *size], "axes": "N C T H W", "type": "float32"},
        "output": {"logits": ["N", len(predictor.class_names)]},
        "normalisation": {  # as in earlier versions
            "mean": clip.mean,
            "std": clip.std,
            "of": "RGB between 0 and 1: (x - mean) / std",
        },
        **predictor.meta,
        "config": shareable(predictor.meta["config"]),
    }
    return json.dumps(values, indent=2) + "\n"
