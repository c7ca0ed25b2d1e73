"""The two branches, their training stages and their maps, in float64."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from videoattn.attention import record_attention
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.attention.systems import SYSTEMS
from videoattn.models import info
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN
from videoattn.types import ModelInfo

STRIDE = 4
every_region = pytest.mark.parametrize("region", ["tube", "volume", "frame"])


class Pooled(nn.Module):
    """A network whose f is the clip averaged over STRIDE x STRIDE pixels and two frames."""

    info = ModelInfo("fc")

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 3, 1, bias=False)
        nn.init.dirac_(self.conv.weight)
        self.grid = nn.AvgPool3d((2, STRIDE, STRIDE))
        self.bn = nn.BatchNorm3d(3)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.bn(self.grid(self.conv(x))).mean((2, 3, 4))))


def pooled(**options: object) -> HardCrop:
    torch.manual_seed(0)
    options = {"pool": "backbone", "min_size": 0.0, **options}
    return HardCrop(Pooled(), after="grid", **options).double()


def backbone(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "i3d":
        return ResNet3d("i3d", depth=18, num_classes=5, width=8, dropout=0.0)
    return TSN(torchvision.models.resnet18(), num_classes=5, dropout=0.0)


def cropping(kind: str, region: str = "tube") -> HardCrop:
    model = HardCrop(backbone(kind), after="layer2", region=region, min_size=0.0)
    return model.double().eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def blob(*boxes: tuple[int, int, int, int, int, int], size: tuple[int, int, int]) -> Tensor:
    """Returns a clip (1, 3, T, H, W) with 1 inside the boxes (t0, t1, y0, y1, x0, x1)."""
    clip = torch.zeros(1, 3, *size, dtype=torch.float64)
    for t0, t1, y0, y1, x0, x1 in boxes:
        clip[:, :, t0:t1, y0:y1, x0:x1] = 1
    return clip


def local_input(model: HardCrop, x: Tensor) -> Tensor:
    captured: list[Tensor] = []
    handle = model.local_branch.register_forward_pre_hook(
        lambda _, inputs: captured.append(inputs[0])
    )
    model(x)
    handle.remove()
    return captured[0]


def test_box_surrounds_a_blob_in_space_or_in_space_and_time() -> None:
    x = blob((2, 4, 8, 20, 4, 12), size=(6, 28, 32))
    assert pooled().boxes(x).tolist() == [[[[0, 6], [8, 20], [4, 12]]]]
    assert pooled(region="volume").boxes(x).tolist() == [[[[2, 4], [8, 20], [4, 12]]]]
    by_frame = pooled(region="frame").boxes(x)[0]
    whole = [[0, 6], [0, 28], [0, 32]]  # empty frames select the whole frame
    assert by_frame.tolist() == [whole, [[0, 6], [8, 20], [4, 12]], whole]


def test_larger_of_two_regions_is_chosen_in_space_and_in_time() -> None:
    wide, long = (0, 2, 0, 12, 0, 12), (0, 6, 16, 24, 16, 24)  # 9 cells; 4 cells, 3 times
    x = blob(wide, long, size=(6, 28, 28))
    assert pooled().boxes(x)[0, 0, 1:].tolist() == [[0, 12], [0, 12]]
    assert pooled(region="volume").boxes(x)[0, 0].tolist() == [[0, 6], [16, 24], [16, 24]]
    frames = pooled(region="frame").boxes(x)[0, :, 1:]
    assert frames.tolist() == [[[0, 12], [0, 12]], [[16, 24], [16, 24]], [[16, 24], [16, 24]]]


@every_region
def test_boxes_move_with_the_clip_and_not_with_its_brightness(region: str) -> None:
    model = pooled(region=region, threshold=0.5)
    x = blob((0, 6, 8, 16, 8, 12), size=(6, 32, 32)) * (1 + noise(1, 3, 6, 32, 32).sigmoid())
    boxes = model.boxes(x)
    moved = model.boxes(x.roll((STRIDE, 3 * STRIDE), dims=(3, 4)))
    shift = torch.tensor([0, STRIDE, 3 * STRIDE])[:, None]
    assert torch.equal(moved, boxes + shift)
    for factor in (2.0**-20, 0.3, 1e6):
        assert torch.equal(model.boxes(factor * x), boxes)


def test_threshold_shrinks_the_box_from_the_whole_frame_to_one_cell() -> None:
    x = noise(3, 3, 6, 28, 28).cumsum(3)
    x[..., 0, 0] = 0  # the minimum of H must not be in the corner
    assert (pooled(threshold=0.0).boxes(x)[..., 1] - pooled().boxes(x)[..., 1]).min() >= 0
    assert pooled(threshold=0.0).boxes(x)[:, :, 1:].tolist() == [[[[0, 28]] * 2]] * 3
    cell = pooled(threshold=0.999999, region="volume").boxes(x)
    assert (cell[..., 1] - cell[..., 0]).tolist() == [[[2, STRIDE, STRIDE]]] * 3


@every_region
@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_local_branch_receives_exactly_the_resized_crop(kind: str, region: str) -> None:
    model = cropping(kind, region)
    x = noise(2, 3, 4, 40, 48)
    ours = local_input(model, x)
    boxes = model.boxes(x)
    assert boxes.shape == (2, model.boxes(x).shape[1], 3, 2)
    assert any((box != torch.tensor([[0, 4], [0, 40], [0, 48]])).any() for box in boxes[:, 0])
    for n in range(2):
        (t0, t1), *_ = boxes[n, 0].tolist()
        if region != "frame":
            (y0, y1), (x0, x1) = boxes[n, 0, 1:].tolist()
            cut = x[n : n + 1, :, t0:t1, y0:y1, x0:x1]
            expected = F.interpolate(cut, (4, 40, 48), mode="trilinear", align_corners=False)
            torch.testing.assert_close(ours[n : n + 1], expected, rtol=0, atol=1e-12)
            continue
        for t in range(4):
            (y0, y1), (x0, x1) = boxes[n, t * boxes.shape[1] // 4, 1:].tolist()
            cut = x[n : n + 1, :, t, y0:y1, x0:x1]
            expected = F.interpolate(cut, (40, 48), mode="bilinear", align_corners=False)
            torch.testing.assert_close(ours[n : n + 1, :, t], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_fusion_reads_the_inputs_of_both_classifiers(kind: str) -> None:
    model = cropping(kind)
    x = noise(2, 3, 4, 40, 48)
    captured: dict[str, Tensor] = {}
    for branch in (model.global_branch, model.local_branch):
        branch.fc.register_forward_pre_hook(
            lambda module, inputs: captured.__setitem__(str(id(module)), inputs[0])
        )
    parts = model.parts(x)
    assert list(parts) == ["global", "local", "fused"]
    read = [captured[str(id(b.fc))] for b in (model.global_branch, model.local_branch)]
    if kind == "tsn":  # (N, S, C): the mean over segments, like the logits
        assert read[0].shape == (2, 4, 512)
        read = [features.mean(1) for features in read]
    weight, bias = model.fusion.weight, model.fusion.bias
    torch.testing.assert_close(parts["fused"], torch.cat(read, 1) @ weight.T + bias)
    assert torch.equal(parts["global"], model.global_branch(x))
    assert torch.equal(parts["local"], model.local_branch(local_input(model, x)))
    assert torch.equal(model(x), parts["fused"])
    model(x)
    assert (
        copy.deepcopy(model) is not None
    )  # tensors of a graph, had they been kept, cannot be copied


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_branches_pool_by_a_global_maximum(kind: str) -> None:
    """The paper's Pool5: the classifiers and the fusion read the maximum over all positions."""
    model = cropping(kind)
    x = noise(2, 3, 4, 40, 48)
    taken: dict[str, Tensor] = {}
    branches = {"global": model.global_branch, "local": model.local_branch}
    for name, branch in branches.items():
        branch.layer4.register_forward_hook(
            lambda module, inputs, output, name=name: taken.__setitem__(name, output)
        )
    parts = model.parts(x)
    pooled = {name: f.flatten(2).sort(-1).values[..., -1] for name, f in taken.items()}
    if kind == "tsn":  # of each segment, then the mean over segments
        pooled = {name: f.unflatten(0, (2, -1)).mean(1) for name, f in pooled.items()}
    for name, branch in branches.items():
        expected = pooled[name] @ branch.fc.weight.T + branch.fc.bias
        torch.testing.assert_close(parts[name], expected, rtol=1e-12, atol=1e-12)
    both = torch.cat([pooled["global"], pooled["local"]], 1)
    expected = both @ model.fusion.weight.T + model.fusion.bias
    torch.testing.assert_close(parts["fused"], expected, rtol=1e-12, atol=1e-12)
    mean = HardCrop(backbone(kind), after="layer2", min_size=0.0, pool="backbone").double().eval()
    mean.load_state_dict(model.state_dict())
    assert not torch.allclose(mean.parts(x)["global"], parts["global"])


@every_region
def test_box_selection_has_no_gradient(region: str) -> None:
    model = cropping("i3d", region)
    x = noise(2, 3, 4, 40, 48).requires_grad_()
    boxes = model.boxes(x)
    assert not boxes.requires_grad
    (gradient,) = torch.autograd.grad(model.parts(x)["local"].sum(), x)
    fixed = copy.deepcopy(model)
    fixed._boxes = lambda features, x: boxes
    (expected,) = torch.autograd.grad(fixed.parts(x)["local"].sum(), x)
    assert torch.equal(gradient, expected)
    if region != "frame":
        for n in range(2):
            (t0, t1), (y0, y1), (x0, x1) = boxes[n, 0].tolist()
            outside = torch.ones_like(gradient[n], dtype=torch.bool)
            outside[:, t0:t1, y0:y1, x0:x1] = False
            assert outside.any()
            assert not gradient[n][outside].any()
    for parameter in model.global_branch.parameters():
        parameter.requires_grad_()
    local = model.parts(x)["local"].sum()
    found = torch.autograd.grad(local, list(model.global_branch.parameters()), allow_unused=True)
    assert all(one is None for one in found)


def test_stage_selects_the_logits_to_train() -> None:
    model = cropping("i3d").train()
    x = noise(2, 3, 4, 40, 48)
    evaluated = copy.deepcopy(model).eval()
    cut = local_input(evaluated, x)
    for stage, expected in enumerate(
        (
            lambda: copy.deepcopy(model).global_branch(x),
            lambda: copy.deepcopy(model).local_branch(cut),
            lambda: evaluated(x),
        )
    ):
        model.set_stage(stage)
        assert torch.equal(copy.deepcopy(model)(x), expected())
        assert torch.equal(model.eval()(x), evaluated(x))
        model.train()


PARTS = ("global_branch", "local_branch", "fusion")


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stage_updates_only_its_own_modules(stage: int, optimizer: str) -> None:
    """Weight decay, momentum and batch statistics do not change frozen modules."""
    model = pooled().train()
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    }[optimizer]
    steps = make(model.parameters())
    before: dict[str, Tensor] = {}
    for current in range(stage + 1):
        model.set_stage(current)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for seed in range(2):
            steps.zero_grad(set_to_none=True)
            logits = model(noise(4, 3, 6, 28, 28, seed=seed))
            F.cross_entropy(logits, torch.arange(4)).backward()
            steps.step()
    for name, value in model.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == name.startswith(PARTS[stage]), name
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [
        name for name, _ in model.named_parameters() if name.startswith(PARTS[stage])
    ]


def test_branches_start_equal_and_have_separate_weights() -> None:
    model = cropping("i3d")
    ours, theirs = model.global_branch.state_dict(), model.local_branch.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert len(pointers) == len(list(model.parameters()))
    assert model.fusion.weight.shape == (5, 2 * 64)


@every_region
def test_maps_are_boxes_in_pixels_and_the_heat(region: str) -> None:
    model = pooled(region=region).eval()
    x = blob((2, 4, 8, 20, 4, 12), (2, 4, 0, 4, 0, 4), size=(6, 28, 32))
    with record_attention(model) as maps:
        model(x)
    assert sorted(maps) == ["hard_crop", "hard_crop.heat"]
    box, heat = maps["hard_crop"], maps["hard_crop.heat"]
    assert (box.kind, heat.kind) == ("box", "spatial")
    here, whole, nowhere = [8.0, 4.0, 20.0, 12.0], [0.0, 0.0, 28.0, 32.0], [0.0] * 4
    outside = {"tube": here, "volume": nowhere, "frame": whole}[region]
    assert box.weights.tolist() == [[outside, outside, here, here, outside, outside]]
    assert heat.weights.shape == (1, 3, 7, 8)
    assert heat.weights[0, 1].max() == 1
    assert heat.weights[0, 1].sum() == 3 * 2 + 1
    assert not heat.weights[0, 0].any()


def test_recording_in_training_mode_does_not_update_statistics() -> None:
    model = pooled().train()
    x = noise(2, 3, 6, 28, 28)
    alone = copy.deepcopy(model)
    torch.manual_seed(0)
    alone(x)
    with record_attention(model):
        torch.manual_seed(0)
        model(x)
    state = alone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.global_branch.training
    assert not model.local_branch.training


@pytest.mark.parametrize("kind", ["i3d", "tsn"])
def test_default_position_is_the_last_stage(kind: str) -> None:
    system = SYSTEMS["hard_crop"]
    network = backbone(kind)
    model = system.attach(network, info(network), system.make, (), "hard_crop").eval()
    heat = model.maps(noise(1, 3, 4, 64, 64).float())["heat"].weights
    assert heat.shape == (1, 2 if kind == "i3d" else 4, 2, 2)
    network = backbone(kind)
    other = system.attach(network, info(network), system.make, ["layer3"], "hard_crop").eval()
    assert other.maps(noise(1, 3, 4, 64, 64).float())["heat"].weights.shape[2:] == (4, 4)
    with pytest.raises(ValueError, match=r"after: got \['layer3', 'layer4'\]; hard_crop needs one"):
        system.attach(network, info(network), system.make, ["layer3", "layer4"], "hard_crop")


def test_invalid_arguments_are_rejected() -> None:
    for options, message in (
        ({"region": "clip"}, "region: 'clip' does not exist; choose from tube, volume, frame"),
        ({"statistic": "sum"}, "statistic: 'sum' does not exist; choose from max, l1, l2"),
        ({"scale": "softmax"}, r"scale: 'softmax' does not exist \(did you mean max\?\)"),
        ({"threshold": 1.0}, r"threshold: got 1.0; need 0 or more and below 1"),
        ({"min_size": 1.5}, r"min_size: got 1.5; need a fraction of each side, 0 to 1"),
        ({"pool": "mean"}, "pool: 'mean' does not exist; choose from max, backbone"),
        ({"keep": "first"}, "keep: 'first' does not exist; choose from best, last"),
        ({}, "pool='max' replaces a global pool `avgpool`, which Pooled does not have; use pool="),
    ):
        with pytest.raises(ValueError, match=message):
            HardCrop(Pooled(), after="grid", **options)
    with pytest.raises(
        ValueError, match=r"'fc' returns \(1, 5\); attention needs features \(N, C, T,"
    ):
        HardCrop(Pooled(), after="fc")
    with pytest.raises(ValueError, match=r"cannot insert after 'layer9'"):
        HardCrop(Pooled(), after="layer9")
    with pytest.raises(ValueError, match="info: the structure of Conv3d is unknown; give the netw"):
        HardCrop(nn.Conv3d(3, 3, 1), after="")
    headless = Pooled()
    headless.fc = nn.Identity()
    with pytest.raises(
        ValueError, match=r"Pooled: got the classifier `.*need a linear layer of one vector"
    ):
        HardCrop(headless, after="grid", pool="backbone")
    with pytest.raises(
        ValueError, match=r"stage: got 3; need 0 \(global\), 1 \(local\) or 2 \(fus"
    ):
        HardCrop(Pooled(), after="grid", pool="backbone").set_stage(3)


# Runs in a subprocess, because torch.compile and torch.export cannot read annotations that
# jaxtyping has wrapped.
WHOLE = """
import videoattn, torch, sys
sys.path.insert(0, {root!r})
from tests.attention.test_hard_crop import noise, pooled
x, other = noise(2, 3, 6, 28, 32), noise(2, 3, 6, 28, 32, seed=1)
for region in ("tube", "volume", "frame"):
    model = pooled(region=region, threshold=0.5).eval()
    assert not torch.equal(model.boxes(x), model.boxes(other))
    exported = torch.export.export(model, (x,)).module()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for clip in (x, other):  # the boxes depend on the clip and are not those of the traced clip
        torch.testing.assert_close(exported(clip), model(clip))
        torch.testing.assert_close(compiled(clip), model(clip))
    for stage in range(3):
        model.train().set_stage(stage)
        model.global_branch.dropout.p = model.local_branch.dropout.p = 0.0
        torch._dynamo.reset()
        trained = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(trained, model(x))
    print(region)
"""


def test_compiled_and_exported_networks_find_the_boxes_of_each_clip(
    request: pytest.FixtureRequest,
) -> None:
    root = str(request.config.rootpath)
    words = [sys.executable, "-c", WHOLE.format(root=root)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["tube", "volume", "frame"]
