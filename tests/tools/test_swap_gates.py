"""Accuracy with the gates of other clips."""

from pathlib import Path

import pytest
import swap_gates
import torch
from torch import nn

from tests.cli.test_visualize import untrained
from tests.tools.conftest import Tables
from videoattn.attention.blocks.cbam import CBAM
from videoattn.attention.blocks.gates import Gate
from videoattn.attention.blocks.refinement import AttentionRefinement
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.data.lists import Samples
from videoattn.data.synthetic import MOTIONS, write_demo_clips


def test_gates_of_another_clip() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 16, 4, 6, 6)
    for gate in (SqueezeExcite(16), AttentionRefinement(16).eval()):
        weights, own = gate.weights(x), gate(x)
        with swap_gates.changed([gate], swap_gates.of_another_clip):
            torch.testing.assert_close(gate(x), x * weights[[2, 0, 1]])
            same = x[:1].expand(3, -1, -1, -1, -1)
            torch.testing.assert_close(gate(same), own[:1].expand_as(same))
        assert torch.equal(gate(x), own)


def test_kinds_of_gates() -> None:
    model = nn.Sequential(CBAM(16), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    kinds = swap_gates.gates_by_kind(model, torch.randn(1, 16, 4, 6, 6))
    assert list(kinds) == ["channels", "frames x rows x columns", "frames"]
    assert [gate for gates in kinds.values() for gate in gates] == [
        module for module in model.modules() if isinstance(module, Gate)
    ]


def test_a_run_with_gates(tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    data = [f"data.root={tmp_path / 'clips'}"]
    run = untrained(tmp_path / "a", "cbam", class_names=tuple(MOTIONS))
    swap_gates.swap_gates(run, data)
    (table,) = tables()
    assert [row["gates of another clip"] for row in table][:2] == ["none", "channels"]
    assert all(0 <= float(row["accuracy"].removesuffix(" %")) <= 100 for row in table)
    with pytest.raises(ValueError, match=r"has no gates; choose a run with cbam, squeeze_excite"):
        swap_gates.swap_gates(
            untrained(tmp_path / "b", "non_local", class_names=tuple(MOTIONS)), data
        )
    samples = Samples(tmp_path, paths=["a.mp4"], labels=[-1], class_names=["x"])
    monkeypatch.setattr(swap_gates, "make_samples", lambda data, subset: samples)
    with pytest.raises(ValueError, match=r"need test videos with one known class each$"):
        swap_gates.swap_gates(run, data)
