"""Hygiene of every backbone, with every form of the non-local block inserted."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from videoattn.attention import NonLocal, insert_attention
from videoattn.attention.blocks.non_local import FORMS
from videoattn.attention.capture import capture
from videoattn.models.resnet3d import KERNELS, ResNet3d, Stem
from videoattn.models.tsn import CONSENSUS, TSN, TemporalShift

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{kind}_r{depth}": lambda kind=kind, depth=depth: ResNet3d(
            kind, depth=depth, num_classes=3, width=8
        )
        for kind in KERNELS
        for depth in (18, 50)
    },
    "tsn_r18": lambda: TSN(torchvision.models.resnet18(), num_classes=3),
    "tsm_r18": lambda: TSN(torchvision.models.resnet18(), num_classes=3, shift_div=8),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_form = pytest.mark.parametrize("form", FORMS)


def clip(num_clips: int = 2, num_frames: int = 4, size: tuple[int, int] = (32, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_clips, 3, num_frames, *size, generator=generator)


def make(backbone: str, form: str, *, identity: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = BACKBONES[backbone]()
    insert_attention(model, lambda c: NonLocal(c, form=form), ["layer2.1", "layer3.0"])
    for module in model.modules():
        if isinstance(module, NonLocal) and not identity:
            nn.init.ones_(module.bn.weight)
    return model


@every_backbone
@every_form
def test_hygiene(backbone: str, form: str) -> None:
    model = make(backbone, form)
    model(clip()).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    model.eval()
    scores = model(clip())
    assert torch.equal(model(clip()), scores)
    assert torch.equal(copy.deepcopy(model)(clip()), scores)
    alone = torch.cat([model(one[None]) for one in clip()])
    torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-5)

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = make(backbone, form)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.eval()(clip()), scores)


@every_backbone
@every_form
@pytest.mark.parametrize("training", [True, False])
def test_insertion_is_the_identity_to_the_bit(backbone: str, form: str, training: bool) -> None:
    torch.manual_seed(0)
    plain = BACKBONES[backbone]().train(training)
    inserted = make(backbone, form, identity=True).train(training)
    torch.manual_seed(1)
    expected = plain(clip())
    torch.manual_seed(1)
    assert torch.equal(inserted(clip()), expected)


@every_backbone
@pytest.mark.parametrize(("num_frames", "size"), [(1, (32, 32)), (3, (33, 47)), (16, (40, 56))])
def test_any_length_and_odd_sizes(backbone: str, num_frames: int, size: tuple[int, int]) -> None:
    model = make(backbone, "embedded_gaussian").eval()
    assert model(clip(1, num_frames, size)).shape == (1, 3)


@pytest.mark.parametrize(
    ("kind", "depth", "num_parameters"),
    [
        ("i3d", 50, 28_043_472),
        ("slow", 50, 32_454_096),
        ("c2d", 50, 24_327_632),
    ],
)
def test_parameter_counts(kind: str, depth: int, num_parameters: int) -> None:
    with torch.device("meta"):
        model = ResNet3d(kind, depth=depth, num_classes=400)
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        (Stem(), (4, 7, 7)),
        (Stem(conv1_stride_frames=2, pool1_stride_frames=2), (1, 7, 7)),
        (Stem(pool1_padding=0), (4, 7, 7)),
    ],
)
def test_stem_settings_move_the_grid(stem: Stem, expected: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = ResNet3d("i3d", depth=18, num_classes=2, width=8, stem=stem).eval()
        seen = []
        model.layer4.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[2:])))
        model(torch.zeros(1, 3, 8, 224, 224))
    assert seen == [expected]


def test_zero_init_residual_starts_blocks_as_the_identity() -> None:
    model = ResNet3d("i3d", depth=50, num_classes=2, width=8, zero_init_residual=True).eval()
    x = torch.rand(1, 32, 2, 4, 4)
    assert torch.equal(model.layer1[1](x), x)


def test_a_still_clip_through_c2d_is_its_frame() -> None:
    model = ResNet3d("c2d", depth=18, num_classes=3, width=8).eval()
    frame = clip(1, 1)
    torch.testing.assert_close(model(frame.expand(-1, -1, 8, -1, -1)), model(frame))


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_consensus_over_segments(consensus: str) -> None:
    """Mean and max of the segments' own logits; attention starts as the mean."""
    torch.manual_seed(0)
    model = TSN(torchvision.models.resnet18(), num_classes=3, consensus=consensus).eval()
    x = clip(2, 5)
    each = torch.stack([model(x[:, :, t : t + 1]) for t in range(5)])  # (S, N, K)
    expected = each.amax(0) if consensus == "max" else each.mean(0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.flip(2)), expected, rtol=1e-4, atol=1e-5)


def test_attention_consensus_weighs_segments() -> None:
    model = TSN(torchvision.models.resnet18(), num_classes=3, consensus="attention").eval()
    x = clip(1, 3)
    uniform = model(x)
    nn.init.normal_(model.query)
    assert not torch.allclose(model(x), uniform)
    model.train()
    model(x.expand(2, -1, -1, -1, -1)).square().sum().backward()
    assert model.query.grad is not None
    assert model.query.grad.any()


def test_tsn_has_torchvisions_keys() -> None:
    theirs = torchvision.models.resnet18()
    ours = TSN(torchvision.models.resnet18(), num_classes=1000).state_dict()
    assert set(ours) == set(theirs.state_dict())


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError,
        match=r"kind: 'i2d' does not exist \(did .* from i3d, c2d, slow",
    ):
        ResNet3d("i2d", num_classes=2)
    with pytest.raises(ValueError, match="depth: got 19; choose from 18, 34, 50, 101"):
        ResNet3d("i3d", depth=19, num_classes=2)
    with pytest.raises(
        ValueError, match="consensus: 'vote' does not exist; choose from mean, max, att"
    ):
        TSN(torchvision.models.resnet18(), num_classes=2, consensus="vote")


def shifted_naively(video: torch.Tensor, div: int) -> torch.Tensor:
    """(N, S, C, H, W), element by element."""
    out, fold = video.clone(), video.shape[2] // div
    for s in range(video.shape[1]):
        for c in range(2 * fold):
            source = s + 1 if c < fold else s - 1
            inside = 0 <= source < video.shape[1]
            out[:, s, c] = video[:, source, c] if inside else 0
    return out


@pytest.mark.parametrize(("channels", "div"), [(16, 8), (9, 4), (6, 2), (5, 8)])
def test_a_temporal_shift_moves_channels_one_segment(channels: int, div: int) -> None:
    video = torch.randn(2, 5, channels, 2, 3)
    shift = TemporalShift(div)
    shift.num_segments = 5
    out = shift(torch.nn.Identity(), (video.flatten(0, 1),))
    assert torch.equal(out.unflatten(0, (2, 5)), shifted_naively(video, div))


@pytest.mark.parametrize("place", ["residual", "block"])
def test_tsm_depends_on_the_order_and_tsn_does_not(place: str) -> None:
    x = torch.randn(2, 3, 4, 32, 32)

    def make(**options: object) -> TSN:
        torch.manual_seed(0)
        return TSN(torchvision.models.resnet18(), num_classes=3, **options).eval()

    tsn, tsm = make(), make(shift_div=8, shift_place=place)
    tsm.load_state_dict(tsn.state_dict())  # the same names, no parameter more
    torch.testing.assert_close(tsn(x.flip(2)), tsn(x))
    assert (tsm(x.flip(2)) - tsm(x)).abs().max() > 1e-3
    hooks = [name for name, m in tsm.named_modules() if m._forward_pre_hooks]
    end = ".conv1" if place == "residual" else ""
    assert hooks == [f"layer{i}.{j}{end}" for i in range(1, 5) for j in range(2)]
    longer = torch.randn(1, 3, 6, 32, 32)  # another number of segments
    assert tsm(longer).shape == (1, 3)
    assert torch.equal(copy.deepcopy(tsm)(x), tsm(x))


def test_shift_errors() -> None:
    with pytest.raises(ValueError, match="shift_div: got 1; need 2 or more"):
        TSN(torchvision.models.resnet18(), num_classes=3, shift_div=1)
    with pytest.raises(ValueError, match="shift_place: 'x' does not exist; choose from residual"):
        TSN(torchvision.models.resnet18(), num_classes=3, shift_div=8, shift_place="x")


def test_strides_of_stages_keep_the_grid_and_the_weights() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3, width=8, strides=[1, 2, 1, 1]).eval()
    usual = ResNet3d("i3d", depth=18, num_classes=3, width=8)
    model.load_state_dict(usual.state_dict())
    with capture(model, ["layer1", "layer2", "layer3", "layer4"]) as outputs:
        model(clip(size=(64, 64)))
    sides = {name: output.shape[3:] for name, output in outputs.items()}
    assert sides == {"layer1": (16, 16), "layer2": (8, 8), "layer3": (8, 8), "layer4": (8, 8)}


@pytest.mark.parametrize("strides", [(1, 2, 2), (1, 2, 0, 1)])
def test_wrong_strides_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"strides: got \[1, 2.*\]; need four numbers of 1 or more"
    ):
        ResNet3d("i3d", depth=18, num_classes=3, strides=strides)
