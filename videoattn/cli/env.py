"""`videoattn env`: prints what a bug report needs: versions, hardware, decoders, folders."""

import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import av
import torch
import typer
from rich.filesize import decimal

from videoattn._version import __version__
from videoattn.data.decode.others import import_decoder
from videoattn.data.loader import num_cores
from videoattn.engine.precision import has_bfloat16
from videoattn.recipe.console import show
from videoattn.weights.download import cache_folder

EXTRAS = ("timm", "pytorchvideo", "webdataset", "onnx", "onnxruntime", "onnxscript")


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Print versions, hardware and decoders, for a bug report."""
    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        lines = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            lines = [f"{key}: {text}" for key, text in value.items()]
        for number, line in enumerate(lines or ["none"]):
            show(f"{'' if number else name:<14}{line}")


def environment() -> dict[str, Any]:
    """Returns the versions, hardware, decoders and folders by name."""
    cache = cache_folder() / "weights"
    files = [path for path in cache.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return {
        "videoattn": f"{__version__} in {Path(__file__).parents[1]}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "CUDA": torch.version.cuda or "none in this build of torch",
        "GPUs": [
            torch.cuda.get_device_properties(index).name
            for index in range(torch.cuda.device_count())
        ],
        "CPU": f"{cpu_name()}, {num_cores()} cores",
        "bfloat16": {
            "CPU": _bfloat16(torch.device("cpu")),
            **({"GPU": _bfloat16(torch.device("cuda"))} if torch.cuda.is_available() else {}),
        },
        "decoders": {
            "pyav": f"{av.__version__}, with FFmpeg {av.ffmpeg_version_info}",
            "decord": _decoder("decord"),
            "torchcodec": _decoder("torchcodec"),
        },
        "extras": {name: _version(name) for name in EXTRAS},
        "cache": f"{cache}, {len(files)} files, {decimal(size)}",
        "variables": {
            name: re.sub(r"//[^/]*@", "//...@", value)  # a password in the address of a mirror
            for name, value in sorted(os.environ.items())
            if name.startswith("VIDEOATTN_")
        },
    }


def machine() -> str:
    """Returns one line with the GPU or CPU, and the version of torch."""
    name = f"{cpu_name()}, {num_cores()} cores"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_properties(0).name
    return f"{name}, torch {torch.__version__}"


def cpu_name() -> str:
    """Returns the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _bfloat16(device: torch.device) -> str:
    if has_bfloat16(device):
        return "in hardware; used unless a recipe chooses float32"
    return "not in hardware; float32 is used unless a recipe chooses bfloat16"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _decoder(name: str) -> str:
    try:
        import_decoder(name)
    except ImportError as error:
        return f"missing: {error}"
    return _version(name)
