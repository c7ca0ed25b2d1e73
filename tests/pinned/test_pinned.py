"""Compares the results of the package with those of commit 54d2265; see write.py.

The last bits of float sums depend on the machine. Test names end in how closely they compare:
`bit-for-bit` on the kind of machine that wrote the fixtures, `close` on others, and
`other-pixels` if FFmpeg decodes the clips to other pixels there.
"""

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pinned import write

PINNED: dict[str, Any] = json.loads(write.PINNED.read_text())


def _compared() -> str:
    with tempfile.TemporaryDirectory() as folder:
        write.unpack(Path(folder))
        if write.pixels(Path(folder, "clips")) != PINNED["pixels"]:
            return "other-pixels"
    return "bit-for-bit" if write.machine() == PINNED["machine"] else "close"


COMPARED = _compared()
TOLERANCE = {"bit-for-bit": 0.0, "close": 1e-5, "other-pixels": 3e-2}[COMPARED]
"""For losses and weights' norms, absolute and relative."""

numeric = pytest.mark.parametrize("compared", [COMPARED])
"""For the name of the test."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working folder: the files of the archive, one thread."""
    write.unpack(tmp_path)
    with write.in_folder(tmp_path):
        yield tmp_path


def assert_close(got: Any, pinned: Any, tolerance: float = TOLERANCE) -> None:
    """Same structure, strings and integers; floats within the tolerance."""
    assert type(got) is type(pinned)
    if isinstance(pinned, dict):
        for key, value in pinned.items():  # more keys may be logged than were
            assert_close(got[key], value, tolerance)
    elif isinstance(pinned, list):
        assert len(got) == len(pinned)
        for one, other in zip(got, pinned, strict=True):
            assert_close(one, other, tolerance)
    elif isinstance(pinned, float):
        assert got == pytest.approx(pinned, rel=tolerance, abs=tolerance)
    else:
        assert got == pinned


def assert_same_curve(run: Path, pinned: list[dict[str, Any]]) -> None:
    """Same losses. On another machine an accuracy may differ by a clip, a gradient's norm more."""
    curve = write.curve(run)
    if COMPARED != "bit-for-bit":
        keys = ("accuracy", "video_accuracy", "clip_accuracy", "gradient_norm")
        pinned = [{k: v for k, v in line.items() if k not in keys} for line in pinned]
    assert_close(curve, pinned)


def test_commands_keep_their_arguments_and_flags() -> None:
    commands = write.commands()
    for name, pinned in PINNED["commands"].items():
        assert commands[name]["arguments"] == pinned["arguments"], name
        assert set(commands[name]["flags"]) >= set(pinned["flags"]), name


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in write.NAMES for name in write.NAMES[module]]
)
def test_public_names_can_be_imported(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_listed_attention_systems_keep_their_costs() -> None:
    listed = write.attention_list()
    assert {name: listed[name] for name in PINNED["attention_list"]} == PINNED["attention_list"]


def test_listed_weights_keep_their_facts() -> None:
    listed = write.weights_list()
    assert {name: listed[name] for name in PINNED["weights_list"]} == PINNED["weights_list"]


@numeric
@pytest.mark.parametrize("name", write.STREAMS)
def test_batches_are_the_same(folder: Path, name: str, compared: str) -> None:
    """Order, labels and crops of two epochs and of the test videos."""
    stream, pinned = write.stream(write.STREAMS[name]), PINNED["streams"][name]
    got = [*stream["train"][0], *stream["train"][1], *stream["test"]]
    expected = [*pinned["train"][0], *pinned["train"][1], *pinned["test"]]
    for batch, other in zip(got, expected, strict=True):
        sha256, levels = batch.pop("sha256"), batch.pop("levels")
        assert levels == pytest.approx(other.pop("levels"), abs=2.0)
        pinned_sha256 = other.pop("sha256")
        assert batch == other
        assert sha256 == pinned_sha256 or compared != "bit-for-bit"


@numeric
@pytest.mark.parametrize("name", [*write.TRAINED, "tiny"])
def test_training_gives_the_same_losses_and_weights(folder: Path, name: str, compared: str) -> None:
    run = write.train({**write.TRAINED, "tiny": write.RUN}[name])
    pinned = PINNED["runs"][name]
    assert_same_curve(run, pinned["curve"])
    assert_close(write.weights_norms(run), pinned["norms"], max(TOLERANCE, 1e-6))
    assert write.weights_hash(run) == pinned["weights"] or compared != "bit-for-bit"


@numeric
@pytest.mark.parametrize("run", ["run", "shared"])
def test_a_stored_network_predicts_the_same(folder: Path, run: str, compared: str) -> None:
    """The commands `test` and `predict`, of a run folder and of a shared folder."""
    # A folder may come from somebody else, so its data section is not used.
    data = ("data.root=clips", "data.num_workers=0")
    write.command("test", run, *data, "--device", "cpu")
    tested = write.predictions(Path(run, "test/predictions.csv"))
    # Four decimals are stored.
    assert _numbers(tested) == pytest.approx(_numbers(PINNED["predictions"]), abs=TOLERANCE + 1e-4)
    assert [row[:3] for row in tested] == [row[:3] for row in PINNED["predictions"]]
    predicted = write.predicted(write.command("predict", run, write.VIDEO, "--device", "cpu"))
    pinned = PINNED["predicted"]
    assert _shares(predicted) == pytest.approx(_shares(pinned), abs=100 * TOLERANCE + 0.1)
    if compared == "bit-for-bit":
        assert (tested, predicted) == (PINNED["predictions"], PINNED["predicted"])


def _numbers(rows: list[list[str]]) -> list[float]:
    return [float(row[4]) for row in rows]


def _shares(rows: list[list[str]]) -> dict[str, float]:
    return {name: float(share) for share, name in rows}


@numeric
@pytest.mark.parametrize("path", write.LOGITS_OF)
def test_a_loaded_network_gives_the_same_logits(folder: Path, path: str, compared: str) -> None:
    pinned = PINNED["logits"][path]
    tolerance = 0.0 if compared == "bit-for-bit" else 1e-5
    for got, expected in zip(write.logits(Path(path)), pinned, strict=True):
        assert got == pytest.approx(expected, rel=tolerance, abs=tolerance)


@numeric
def test_an_interrupted_run_resumes_to_the_uninterrupted_one(folder: Path, compared: str) -> None:
    """From a checkpoint inside the second epoch: the curve and every weight."""
    Path("runs").mkdir()
    shutil.move("interrupted", "runs/tiny")
    run = write.train(write.RUN, "--resume")
    assert_same_curve(run, write.curve(Path("run")))
    weights, expected = write.final_weights(run), write.final_weights(Path("run"))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        if compared == "bit-for-bit":
            assert torch.equal(value, expected[name]), name
        else:
            tolerance = max(TOLERANCE / 10, 1e-6)
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
