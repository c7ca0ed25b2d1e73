"""Compiles the network of a training step with torch.compile."""

import importlib.util
import os
import shutil
from typing import Literal

import torch
from torch import Tensor, nn

Compile = Literal["off", "on", "max-autotune"]

_MODES = {"on": "default", "max-autotune": "max-autotune"}


class Compiled(nn.Module):
    """Runs `module` compiled for inputs of the shape of the first input, and uncompiled for other
    shapes, such as that of the last batch of an epoch."""

    def __init__(self, module: nn.Module, mode: str) -> None:
        super().__init__()
        self.module = module
        self._graph = torch.compile(module, mode=mode, dynamic=False)
        self._shape: torch.Size | None = None

    def forward(self, video: Tensor) -> Tensor:
        self._shape = self._shape or video.shape
        run = self._graph if video.shape == self._shape else self.module
        logits: Tensor = run(video)
        return logits


def compiled(model: nn.Module, compile: Compile, device: torch.device) -> nn.Module:
    """Returns a compiled wrapper that shares the parameters of `model`, which stays uncompiled.

    Args:
        compile: "off" returns the model; "on" compiles it; "max-autotune" also measures kernels,
            which takes minutes, and uses CUDA graphs.

    Raises:
        ValueError: If the compiler that torch.compile needs is missing.
    """
    if compile == "off":
        return model
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compile: got {compile}, which needs a C++ compiler, and {compiler} is not installed; "
            "install it (apt-get install g++), set CXX, or choose off"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError(
            f"compile: got {compile}, which needs triton, and it is not installed; "
            "pip install triton, or choose off"
        )
    return Compiled(model, _MODES[compile])
