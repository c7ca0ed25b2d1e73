"""Wrappers are removed; every kind of failed download has its own message."""

import argparse
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videoattn.weights.read import read_state_dict

WEIGHTS = {"conv1.weight": torch.arange(4.0), "fc.bias": torch.ones(2)}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "wrapped",
    [
        WEIGHTS,
        {"meta": {"epoch": 3}, "state_dict": WEIGHTS, "optimizer": {"state": {}}},
        {"epoch": 7, "model_state": WEIGHTS, "cfg": "MODEL: x"},
        {"model": WEIGHTS, "epoch": 1, "optimizer": {}},
        {"epoch": 1, "state_dict": {f"module.{key}": value for key, value in WEIGHTS.items()}},
        {
            "arch": "resnet50",
            "state_dict": {
                "module.base_model.conv1.weight": WEIGHTS["conv1.weight"],
                "module.new_fc.bias": WEIGHTS["fc.bias"],
            },
            "best_prec1": torch.tensor(70.0),
        },
        {"model": WEIGHTS, "epoch": 1, "args": argparse.Namespace(model="r3d_18", lr=0.01)},
    ],
    ids=["none", "mmaction2", "pyslowfast", "ours", "parallel", "tsn", "torchvision"],
)
def test_known_wrappers_are_removed(tmp_path: Path, wrapped: dict[str, object]) -> None:
    torch.save(wrapped, tmp_path / "a.pth")
    assert _same(read_state_dict(tmp_path / "a.pth"), WEIGHTS)


def test_a_training_log_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of mmengine has arrays and bound methods; its class is never imported."""
    module = ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.log = np.array([2.5, 1.5])
            self.statistics = {"mean": self.mean}

        def mean(self) -> float:
            return float(self.log.mean())

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    log = {"log_scalars": {"loss": HistoryBuffer()}, "best": np.float64(0.5)}
    torch.save({"state_dict": WEIGHTS, "message_hub": log}, tmp_path / "a.pth")
    monkeypatch.undo()
    assert _same(read_state_dict(tmp_path / "a.pth"), WEIGHTS)


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert _same(read_state_dict(tmp_path / "a.safetensors"), WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer.*pull"),
        (b"just some text, no weights", "not a PyTorch checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_file_that_is_not_a_checkpoint(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith("safetensors") and "PyTorch" in message:
        message = "not a whole safetensors file"
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
        read_state_dict(path)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.2, 0.9])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_truncated_checkpoint(tmp_path: Path, share: float, as_zip: bool) -> None:
    path = tmp_path / "a.pth"
    weights = {"state_dict": {"a": torch.zeros(5000)}}
    torch.save(weights, path, _use_new_zipfile_serialization=as_zip)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match="cut short or damaged; fetch it again"):
        read_state_dict(path)


def test_a_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_state_dict(path)


def test_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "meta": Path("x")}, tmp_path / "a.pth")
    message = r"holds Python objects besides tensors \(pathlib\S*\), which could run code"
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_an_unknown_wrapper_shows_its_keys(tmp_path: Path) -> None:
    torch.save({"net": WEIGHTS, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, tmp_path / "a.pth")
    message = r"its keys are net, a, b, c, d and 1 more; .* state_dict, model_state, model, blobs"
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_a_list_is_not_a_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds a list; need a mapping"):
        read_state_dict(tmp_path / "a.pth")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_a_checkpoint_that_is_too_large(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    torch.save(WEIGHTS, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", exhausted)
    with pytest.raises(ValueError, match=r"a.pth: the checkpoint is damaged or too large; fetch"):
        read_state_dict(tmp_path / "a.pth")
