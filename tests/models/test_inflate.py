"""A video of one repeated frame gets that frame's features from inflated weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import get_model

from videoattn.attention import insertion_places
from videoattn.models.inflate import inflate_weight, load_inflated
from videoattn.models.resnet3d import ResNet3d


@pytest.mark.parametrize("num_frames", [1, 3, 4, 5])
@pytest.mark.parametrize("method", ["mean", "centre"])
def test_a_still_video_gets_the_frame_s_features(num_frames: int, method: str) -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    frame = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    inflated = inflate_weight(weight, num_frames=num_frames, method=method)
    video = frame.unsqueeze(2).expand(-1, -1, num_frames, -1, -1)
    torch.testing.assert_close(F.conv3d(video, inflated)[:, :, 0], F.conv2d(frame, weight))


def test_mean_repeats_and_centre_uses_the_center() -> None:
    weight = torch.ones(1, 1, 1, 1)
    mean = inflate_weight(weight, num_frames=3, method="mean").flatten()
    centre = inflate_weight(weight, num_frames=3, method="centre").flatten()
    torch.testing.assert_close(mean, torch.full((3,), 1 / 3))
    assert centre.tolist() == [0, 1, 0]


def _image_network(depth: int = 18) -> nn.Module:
    torch.manual_seed(0)
    network = get_model(f"resnet{depth}", num_classes=7).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return network


def _outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Returns the outputs of the stem, the first pool, every block and the classifier."""
    seen: dict[str, Tensor] = {}
    for name in ("bn1", "maxpool", *insertion_places(model), "fc"):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.clone()})
        )
    with torch.inference_mode():
        model(x)
    return seen


def _borders(model: ResNet3d) -> dict[str, int]:
    """Returns for each module how many frames at either end depend on padding; a temporal kernel
    reaches k // 2 frames to either side."""
    border = model.conv1.kernel_size[0] // 2
    found = {"bn1": border, "maxpool": border}
    for name in insertion_places(model):
        if name == "layer2.0":  # the pool after layer1
            border = -(-border // model.pool_frames)
        conv = model.get_submodule(name).conv1
        assert isinstance(conv, nn.Conv3d)
        border += conv.kernel_size[0] // 2
        found[name] = border
    return found


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("kind", ["i3d", "c2d", "slow"])
@pytest.mark.parametrize("method", ["mean", "centre"])
def test_a_still_video_has_its_frame_s_features_in_every_layer(
    method: str, kind: str, depth: int
) -> None:
    """Compares in float64, module by module. With "centre", all frames and the logits are equal.
    With "mean", all frames that padding does not reach are equal; the next frame differs."""
    images = _image_network(depth).double()
    model = ResNet3d(kind, depth=depth, num_classes=7).eval().double()
    assert load_inflated(model, images.state_dict(), method=method) == []
    borders = _borders(model) if method == "mean" else {}
    num_frames = (2 * max(borders.values(), default=0) + 2) * model.pool_frames
    frame = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    expected = _outputs(images, frame)
    got = _outputs(model, frame.unsqueeze(2).expand(-1, -1, num_frames, -1, -1))
    assert list(got) == list(expected)
    logits, answer = expected.pop("fc"), got.pop("fc")
    for name, features in got.items():
        border = borders.get(name, 0)
        inside = features[:, :, border : features.shape[2] - border]
        assert inside.shape[2] >= 2
        theirs = expected[name].unsqueeze(2)
        torch.testing.assert_close(inside, theirs.expand_as(inside), rtol=1e-9, atol=1e-11)
        if border:
            assert not torch.allclose(features[:, :, border - 1], expected[name], rtol=1e-6)
    if not any(borders.values()):
        torch.testing.assert_close(answer, logits, rtol=1e-9, atol=1e-11)


def test_a_classifier_of_other_classes_is_unchanged() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3)
    before = model.fc.weight.clone()
    assert load_inflated(model, _image_network().state_dict()) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before)


def test_weights_of_another_network_are_refused() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3)
    state = {f"layer1.0.conv{i}.weight": torch.zeros(1) for i in range(3, 10)}
    message = (
        r"7 names are not in ResNet3d: layer1.0.conv3.weight, .*conv7.weight and 2 more; "
        "its first names are"
    )
    with pytest.raises(ValueError, match=message):
        load_inflated(model, state)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(8, 3, 5, 7, 7\) after inf"):
        load_inflated(model, {"conv1.weight": torch.zeros(8, 3, 7, 7)})
