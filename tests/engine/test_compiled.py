"""Compiled training steps: equal losses, and the cases that break graphs."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.engine.fakes import FakeBatches, TinyNet, optim_settings, run_in, sgd, to_video
from videoattn.attention import insert_attention
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.blocks.squeeze_excite import SqueezeExcite
from videoattn.engine.compiled import Compile, Compiled, compiled
from videoattn.engine.plan import EpochPlan, FineTuning, Validation
from videoattn.engine.train import fit

CPU = torch.device("cpu")

pytestmark = [  # The compiler imports code that is deprecated, and looks at every tensor.
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Checkpointed(TinyNet):
    """Recomputes its features in the backward pass, as stand-alone attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.features, x, use_reentrant=False, preserve_rng_state=False)
        logits: Tensor = self.fc(x.amax(dim=(2, 3, 4)))
        return logits

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)).relu()
        return y


def network() -> nn.Module:
    """Attention runs after a convolution, through a hook, and inside its gate."""
    torch.manual_seed(0)
    model = Checkpointed()
    insert_attention(model, NonLocal, ["conv"], name="non_local")
    insert_attention(model, partial(SqueezeExcite, reduction=4), ["norm"], name="gate")
    return model


def losses(folder: Path, compile: Compile, model: nn.Module) -> list[float]:
    """Trains for two epochs of a batch of 4 and one of 2, the first with a frozen backbone."""
    frozen = FineTuning(frozenset({"conv.weight", "conv.bias"}), frozen_epochs=1)
    fit(
        model,
        sgd(model),
        FakeBatches(num_samples=6),
        to_video=to_video,
        settings=replace(optim_settings(), compile=compile),
        plan=EpochPlan(2, fine_tuning=frozen),
        run=run_in(folder),
        validation=Validation(FakeBatches(num_samples=5)),
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def test_losses_are_equal_within_rounding(tmp_path: Path) -> None:
    before = set(network().state_dict())
    plain, graph = network(), network()
    expected = losses(tmp_path / "off", "off", plain)
    assert losses(tmp_path / "on", "on", graph) == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == len(expected) == 6
    assert set(graph.state_dict()) == before  # names stay
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(graph.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_a_smaller_batch_runs_without_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def fake_compile(module: nn.Module, **options: object) -> object:
        ran.append(str(options["mode"]))
        return lambda video: ran.append("graph") or module(video)

    monkeypatch.setattr(torch, "compile", fake_compile)
    model = compiled(TinyNet(), "max-autotune", CPU)
    for clips in (4, 2, 4):
        assert model(torch.zeros(clips, 3, 2, 4, 4)).shape == (clips, 4)
    assert ran == ["max-autotune", "graph", "graph"]
    assert isinstance(model, Compiled)
    assert compiled(model.module, "off", CPU) is model.module


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "absent-c++")
    with pytest.raises(
        ValueError,
        match=r"^compile: got on, which needs a C\+\+ compiler, and absent-c\+\+ is not installed; "
        r"install it \(apt-get install g\+\+\), set CXX, or choose off$",
    ):
        compiled(TinyNet(), "on", CPU)


def test_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^compile: got on, which needs triton, and it is not"):
        compiled(TinyNet(), "on", torch.device("cuda"))
