"""The interaction-aware layer inside networks, after one stage or several."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.attention.test_hygiene import backbone, clip, leave_the_start
from tests.reference import formulas
from videoattn.attention.blocks.interaction import InteractionLayer
from videoattn.attention.common import auxiliary_losses
from videoattn.attention.record import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.engine.objective import CrossEntropy
from videoattn.engine.parallel import Parallel
from videoattn.engine.precision import Precision
from videoattn.engine.step import OptimSettings, StepContext, update
from videoattn.types import Batch

PLACES = [("layer2",), ("layer3",), ("layer2", "layer3")]
everywhere = pytest.mark.parametrize("after", PLACES, ids="+".join)
both_networks = pytest.mark.parametrize("kind", ["i3d", "tsn"])


def build(kind: str, after: tuple[str, ...], **options: object) -> nn.Module:
    model, system = backbone(kind), SYSTEMS["interaction_layer"]
    make = partial(system.make, **options)
    return system.attach(model, model.info, make, after, "interaction_layer")


@everywhere
@both_networks
@pytest.mark.parametrize("scope", ["clip", "frame"])
def test_starts_as_exactly_the_network(kind: str, after: tuple[str, ...], scope: str) -> None:
    x = clip(2, 4, 64, 64)
    model = build(kind, after, scope=scope).eval()
    keys = [key for key in model.state_dict() if "interaction_layer" not in key]
    with torch.no_grad():
        assert keys == list(backbone(kind).state_dict())
        assert torch.equal(model(x), backbone(kind).eval()(x))
        assert not torch.equal(leave_the_start(model)(x), backbone(kind).eval()(x))


@everywhere
@both_networks
def test_gradients_reach_every_parameter(kind: str, after: tuple[str, ...]) -> None:
    model = leave_the_start(build(kind, after)).train()
    losses = [nn.functional.cross_entropy(model(clip(4, 4, 64, 64)), torch.tensor([0, 1, 2, 0]))]
    losses += auxiliary_losses(model).values()
    assert len(losses) == 3
    torch.stack(losses).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "interaction_layer" in name:
            assert parameter.grad.any(), name


@everywhere
@both_networks
def test_evaluation_is_deterministic_and_clips_do_not_mix(
    kind: str, after: tuple[str, ...]
) -> None:
    model, x = leave_the_start(build(kind, after)).eval(), clip(3, 4, 64, 64)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(copy.deepcopy(model)(x), together)
        for n in range(3):
            alone = model(x[n : n + 1])
            torch.testing.assert_close(alone, together[n : n + 1], rtol=1e-4, atol=1e-5)
        for frames, height, width in ((1, 33, 47), (8, 32, 32), (16, 49, 31)):
            assert model(clip(1, frames, height, width)).isfinite().all()


@everywhere
@both_networks
@pytest.mark.parametrize("scope", ["clip", "frame"])
def test_maps_are_recorded_at_the_place(kind: str, after: tuple[str, ...], scope: str) -> None:
    """One for the fused rows, and one for each level of the pyramid: the stage and those before."""
    model, x = build(kind, after, scope=scope).eval(), clip(2, 8, 64, 64)
    with torch.no_grad(), record_attention(model) as maps:
        model(x)
    names = []
    for place in after:
        levels = {"layer2": 2, "layer3": 3}[place]
        names += [
            f"{place}.interaction_layer{end}" for end in ("", *map(".{}".format, range(levels)))
        ]
    assert list(maps) == names
    frames = 4 if kind == "i3d" else 8
    for name, found in maps.items():
        size = 8 if name.startswith("layer2") else 4
        assert found.weights.shape == (2, 49, frames, size, size)
        torch.testing.assert_close(found.weights.sum((2, 3, 4)), torch.ones(2, 49))


def test_levels_are_the_stages_before_and_can_be_fewer() -> None:
    for levels, sizes in ((1, [64]), (2, [32, 64]), (3, [16, 32, 64]), (9, [16, 32, 64])):
        model = build("i3d", ("layer3",), levels=levels)
        layer = model.layer3.interaction_layer.block
        assert isinstance(layer, InteractionLayer)
        assert [linear.in_features for linear in layer.pyramid.scores] == sizes
        assert model.eval()(clip(1)).shape == (1, 3)
    block = build("i3d", ("layer2.0",)).layer2[1].block
    assert [linear.in_features for linear in block.pyramid.scores] == [16, 32]


def test_the_paper_s_layer_returns_the_map_of_sums() -> None:
    """M / sqrt(P) in place of x, resized if the grid of x is another."""
    layer = InteractionLayer(4, [3], rows=[2, 3], residual=False).double()
    assert not any("gamma" in name for name, _ in layer.named_parameters())
    x, source = torch.randn(2, 4, 2, 2, 3).double(), torch.randn(2, 3, 2, 4, 6).double()
    reduced = nn.functional.max_pool3d(source, (1, 2, 2))
    m = formulas.tokens(layer, [reduced, x]).transpose(1, 2).unflatten(2, (1, 2, 3))
    expected = (m / 12**0.5).expand_as(x)
    torch.testing.assert_close(layer(x, source), expected, rtol=1e-12, atol=1e-12)
    large = torch.randn(2, 4, 2, 6, 7).double()
    m = formulas.tokens(layer, [nn.functional.adaptive_max_pool3d(source, (2, 6, 7)), large])
    m = m.transpose(1, 2).unflatten(2, (1, 2, 3)) / 84**0.5
    expected = nn.functional.interpolate(m, (2, 6, 7), mode="trilinear")
    torch.testing.assert_close(layer(large, source), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [8, [2, 2, 3]])
def test_rows_without_a_place_are_refused(rows: object) -> None:
    scope = "clip" if rows == 8 else "frame"
    with pytest.raises(ValueError, match=r"rows: got .* with scope='\w+'; need the grid of a feat"):
        InteractionLayer(4, [3], rows=rows, scope=scope)
    with pytest.raises(ValueError, match="levels: got 0; need at least 1"):
        InteractionLayer(4, [3], levels=0)


WHOLE = """
import videoattn, torch, sys
sys.path.insert(0, {root!r})
from tests.attention.test_interaction_layer import PLACES, build, clip, leave_the_start
x = clip(2, 4, 32, 32)
for kind in ("tsn",):  # the I3D is among the systems of test_hygiene.py
    model = leave_the_start(build(kind, PLACES[2])).eval()
    with torch.no_grad():
        expected = model(x)
        tolerance = 1e-4 * float(expected.abs().max())
        exported = torch.export.export(model, (x,)).module()(x)
        assert (exported - expected).abs().max() <= tolerance, ("export", kind)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        assert (compiled - expected).abs().max() <= tolerance, ("compile", kind)
"""


def test_layers_after_two_stages_compile_and_export(request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    words = [sys.executable, "-c", WHOLE.format(root=root)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


# --- a loss per frame ---------------------------------------------------------------------------


def test_loss_per_frame_is_the_papers() -> None:
    """-(1/K) Σ_t Σ_c y_tc log ŷ_tc, in values and gradients, from a step of the training loop."""
    torch.manual_seed(0)
    model = nn.Linear(3, 5).double()
    frames = torch.randn(4, 6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2, 2])
    kept: list[Tensor] = []

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, video: Tensor) -> Tensor:
            kept.append(self.linear(video))
            return kept[-1].mean(1)

    network = Frames()
    precision: Precision = "float32"
    settings = OptimSettings(
        lambda step: 0.0,
        precision=precision,
        objective=CrossEntropy(),
        frame_logits=lambda network: kept[-1],
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    batch = Batch(torch.zeros(4, 1, 1, 3, 1, 1, dtype=torch.uint8), labels, torch.arange(4))
    result = update(
        network, optimizer, [batch], to_video=lambda views: frames, settings=settings,
        context=StepContext(0, 0, 0, 0, str), parallel=Parallel(),
    )  # fmt: skip
    got = [p.grad.clone() for p in model.parameters()]
    expected = formulas.per_frame_loss(model(frames), labels)
    assert result.loss == pytest.approx(expected.sum().item(), rel=1e-6)  # losses are float32
    wanted = torch.autograd.grad(expected.mean(), list(model.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
