"""A video of one repeated frame gets that frame's features from inflated weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

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


def test_mean_repeats_and_centre_places() -> None:
    weight = torch.ones(1, 1, 1, 1)
    mean = inflate_weight(weight, num_frames=3, method="mean").flatten()
    centre = inflate_weight(weight, num_frames=3, method="centre").flatten()
    torch.testing.assert_close(mean, torch.full((3,), 1 / 3))
    assert centre.tolist() == [0, 1, 0]


def _image_network() -> nn.Module:
    torch.manual_seed(0)
    network = resnet18(num_classes=7).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return network


def test_a_whole_network_answers_for_a_still_video_as_for_its_frame() -> None:
    """In C2D everywhere; in a network with temporal kernels by "centre", which borders leave."""
    images, frame = _image_network(), torch.randn(2, 3, 32, 32)
    video = frame.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    for kind, method in (("c2d", "mean"), ("i3d", "centre")):
        model = ResNet3d(kind, depth=18, num_classes=7).eval()
        assert load_inflated(model, images.state_dict(), method=method) == []
        with torch.no_grad():
            torch.testing.assert_close(model(video), images(frame), rtol=1e-4, atol=1e-5)


def test_a_classifier_of_other_classes_is_left_as_it_was() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3)
    before = model.fc.weight.clone()
    assert load_inflated(model, _image_network().state_dict()) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before)


def test_weights_of_another_network_are_refused() -> None:
    model = ResNet3d("i3d", depth=18, num_classes=3)
    state = {f"layer1.0.conv{i}.weight": torch.zeros(1) for i in range(3, 10)}
    message = r"7 names are not in ResNet3d: layer1.0.conv3.weight, .*conv7.weight; its own begin"
    with pytest.raises(ValueError, match=message):
        load_inflated(model, state)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(8, 3, 5, 7, 7\) after inf"):
        load_inflated(model, {"conv1.weight": torch.zeros(8, 3, 7, 7)})
