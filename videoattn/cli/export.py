"""`videoattn export`: a network in a format that needs less than this package, checked on the spot.

torch-export: a .pt2 file, which torch.export.load reads. onnx: a .onnx file, for onnxruntime and
others. safetensors: a folder to share, for this package.
"""

import copy
import importlib
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.errors import one_of
from videoattn.recipe.config import Config
from videoattn.recipe.console import console as out
from videoattn.recipe.load import shareable
from videoattn.recipe.run import Predictor, load, require_empty

Network = Callable[[Tensor], Tensor]
Writer = Callable[[Predictor, Tensor, Path], Network]

TOLERANCE = 1e-4
"""The largest difference from the network's own logits, as a share of their standard deviation."""


def export(run: Path, output: Path, *, kind: str) -> float:
    """Writes the network of a run or a shared folder; returns the difference that it checked.

    kind: "safetensors", "torch-export" or "onnx". The input of the latter two is (N, 3, T, H, W),
    normalized, of any N and of the T, H and W that the run is tested on; OUT.json beside the file
    has these, the mean and std, and the class names.

    Raises:
        ValueError: an output that exists; a network that the format cannot hold, or whose answers
            differ in it.
        ImportError: onnx without its packages.
    """
    write, ending = FORMATS[one_of("--format", kind, FORMATS)]
    if ending and output.suffix != ending:
        raise ValueError(f"{output}: {kind} is written to a file that ends in {ending}")
    require_empty(output)
    loaded = load(run, torch.device("cpu"))
    network = write(loaded, _clips(loaded.config, 2), output)
    difference = _difference(loaded.model, network, loaded.config)
    if not difference <= TOLERANCE:  # nor where it is not a number
        shutil.rmtree(output) if output.is_dir() else output.unlink()
        raise ValueError(
            f"as {kind}, {run} answers otherwise: by {difference:.1e} of the logits' standard "
            f"deviation, {TOLERANCE:.0e} is allowed; nothing is kept; please report it"
        )
    if ending:
        _write_about(loaded, output.with_name(f"{output.name}.json"))
    out.print(
        f"{output}: differs by {difference:.1e} of the logits' standard deviation from {run}, "
        "for 1 clip and 3",
        markup=False,
    )
    return difference


def _folder(loaded: Predictor, clips: Tensor, output: Path) -> Network:
    about = {**loaded.meta, "config": shareable(loaded.meta["config"])}
    checkpoint.save_folder(output, loaded.model.state_dict(), cast(CheckpointMeta, about))
    return load(output).model


def _torch_export(loaded: Predictor, clips: Tensor, output: Path) -> Network:
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(_program(loaded.model, clips), output)
    network: Network = torch.export.load(output).module()
    return network


def _onnx(loaded: Predictor, clips: Tensor, output: Path) -> Network:
    for name in ("onnx", "onnxscript"):
        _needed(name)
    runtime = _needed("onnxruntime")
    output.parent.mkdir(parents=True, exist_ok=True)
    program = _program(loaded.model, clips)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the exporter calls in torch and in its packages
        try:
            made = torch.onnx.export(
                program, input_names=["video"], output_names=["logits"], dynamo=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(_cannot(loaded.model, "ONNX", error)) from error
    assert made is not None
    made.save(output)
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


def _program(model: nn.Module, clips: Tensor) -> ExportedProgram:
    """The network for any number of such clips."""
    free = {0: torch.export.Dim("clips", min=1)}
    model = copy.deepcopy(model)
    for parameter in model.parameters():  # torch.export.save cannot tell channels-last ones whole
        parameter.data = parameter.data.contiguous()
    try:
        with torch.no_grad():
            return torch.export.export(model, (clips,), dynamic_shapes=(free,))
    except (RuntimeError, ValueError) as error:
        raise ValueError(_cannot(model, "torch.export", error)) from error


def _cannot(model: nn.Module, what: str, error: Exception) -> str:
    first: BaseException = error
    while first.__cause__ is not None:  # what went wrong; what was tried then is for torch's people
        first = first.__cause__
    reason = str(first).partition("\n")[0]
    return f"this {type(model).__name__} cannot be exported by {what}: {reason}"


def _needed(name: str) -> ModuleType:
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
    height, width = config.test.height or config.clip.height, config.test.width or config.clip.width
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, 3, config.clip.num_frames, height, width, generator=generator)


def _difference(model: nn.Module, network: Network, config: Config) -> float:
    """The largest, for three clips and for one, over the standard deviation of the logits."""
    clips = _clips(config, 3)
    with torch.no_grad():
        expected = model(clips)
        got = torch.cat([network(clips), network(clips[:1])])
    largest = (got - torch.cat([expected, expected[:1]])).abs().max()
    return float(largest / expected.std())


def _write_about(loaded: Predictor, path: Path) -> None:
    _, channels, *sizes = _clips(loaded.config, 1).shape
    about = {
        "input": {"video": ["N", channels, *sizes], "axes": "N C T H W", "type": "float32"},
        "output": {"logits": ["N", len(loaded.class_names)]},
        "normalisation": {
            "mean": loaded.config.clip.mean,
            "std": loaded.config.clip.std,
            "of": "RGB between 0 and 1: (x - mean) / std",
        },
        **loaded.meta,
    }
    path.write_text(json.dumps(about, indent=2) + "\n")
