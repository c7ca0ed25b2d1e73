"""Properties of every attention system in both kinds of backbone."""

import copy
import io
import subprocess
import sys
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from videoattn.attention import record_attention
from videoattn.attention.systems import SYSTEMS
from videoattn.models import info
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

EVERY = [(name, kind) for name in SYSTEMS for kind in ("i3d", "tsn")]


def backbone(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "i3d":
        return ResNet3d("i3d", depth=18, num_classes=3, width=16, dropout=0.0)
    return TSN(torchvision.models.resnet18(), num_classes=3, dropout=0.0)


def build(name: str, kind: str, **options: object) -> nn.Module:
    system = SYSTEMS[name]
    model = backbone(kind)
    return system.attach(model, info(model), partial(system.make, **options), (), name)


def leave_the_start(model: nn.Module) -> nn.Module:
    """Zero and constant weights, at which gradients vanish by design, become small numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if float(parameter.std(unbiased=False)) == 0:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).abs()
    return model


def clip(n: int = 2, t: int = 4, h: int = 32, w: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, t, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_gradients_reach_every_parameter(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).train()
    x = clip(4, 4, 64, 64)
    logits = model(x)
    assert logits.shape == (4, 3)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    loss.backward()
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert trained
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_evaluation_is_deterministic_and_clips_do_not_mix(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).eval()
    x = clip(3, 4, 64, 64)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(model(x), together)
        for index in range(3):
            torch.testing.assert_close(
                model(x[index : index + 1]), together[index : index + 1], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_clip_lengths_and_odd_sizes(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).eval()
    with torch.no_grad():
        for frames in (4, 8, 16):
            assert torch.isfinite(model(clip(1, frames, 32, 32))).all()
        for size in ((33, 47), (49, 31)):
            assert torch.isfinite(model(clip(1, 4, *size))).all()


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_bfloat16_stays_close(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).eval()
    x = clip(2, 8, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x).float()
    # Against the plain backbone's own rounding: a block may not add more than 2e-2 to it.
    plain = leave_the_start(backbone(kind)).eval()
    with torch.no_grad():
        base = plain(x)
        with torch.autocast("cpu", torch.bfloat16):
            own = (plain(x).float() - base).abs().max() / base.abs().max()
    assert (rounded - exact).abs().max() / exact.abs().max() <= 2e-2 + own


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_copies_and_files_are_equal(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).eval()
    x = clip()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        fresh = build(name, kind).eval()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_recording_changes_nothing_and_keeps_nothing(name: str, kind: str) -> None:
    model = leave_the_start(build(name, kind)).eval()
    x = clip(1, 4, 32, 32)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with torch.no_grad():
        expected = model(x)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        with record_attention(model, queries=[(1, 16, 16)]) as maps:
            assert torch.equal(model(x), expected)
    assert maps
    for key, found in maps.items():
        assert not found.weights.requires_grad, key
        assert torch.isfinite(found.weights).all(), key
        assert len(found.weights) == 1, key
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert after == hooks
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


# torch.compile and torch.export read annotations that jaxtyping has wrapped in tests: they run in a
# process of their own, all systems of a backbone in one.
WHOLE = """
import videoattn, torch, sys
sys.path.insert(0, {root!r})
from tests.attention.test_hygiene import SYSTEMS, build, clip, leave_the_start
x = clip(2, 4, 32, 32)
for name in SYSTEMS:
    model = leave_the_start(build(name, {kind!r})).eval()
    with torch.no_grad():
        expected = model(x)
        tolerance = 1e-4 * float(expected.abs().max())
        exported = torch.export.export(model, (x,)).module()(x)
        assert (exported - expected).abs().max() <= tolerance, ("export", name)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        assert (compiled - expected).abs().max() <= tolerance, ("compile", name)
    print(name)
"""


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_the_whole_model_compiles_and_exports(kind: str, request: pytest.FixtureRequest) -> None:
    root = str(request.config.rootpath)
    done = subprocess.run(
        [sys.executable, "-c", WHOLE.format(root=root, kind=kind)],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(SYSTEMS)
