"""Public models answer what their own code answered, for the same weights and the same clip."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.reference import fill
from videoattn.weights import PUBLIC, from_state_dict, load_public

_MM_I3D = "mmaction2_i3d_imagenet-pretrained-r50{}_8xb8-32x2x1-100e_kinetics400-rgb"
RECORDS = {
    "torchvision/resnet50": "torchvision_resnet50",
    "pytorchvideo/i3d_r50": "pytorchvideo_i3d_r50",
    "pytorchvideo/slow_r50": "pytorchvideo_slow_r50",
    "pyslowfast/C2D_8x8_R50": "pyslowfast_C2D_8x8_R50",
    "pyslowfast/I3D_8x8_R50": "pyslowfast_I3D_8x8_R50",
    "pyslowfast/I3D_NLN_8x8_R50": "pyslowfast_I3D_NLN_8x8_R50",
    "pyslowfast/SLOW_NLN_8x8_R50": "pyslowfast_SLOW_NLN_8x8_R50",
    "mmaction2/tsn_r50": ("mmaction2_tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb"),
    "mmaction2/tsm_r50": "mmaction2_tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb",
    "mmaction2/i3d_r50": _MM_I3D.format(""),
    "mmaction2/i3d_r50_nl_embedded_gaussian": _MM_I3D.format("-nl-embedded-gaussian"),
    "mmaction2/i3d_r50_nl_dot_product": _MM_I3D.format("-nl-dot-product"),
}


def _our_layout(name: str, clip: Tensor) -> Tensor:
    if name in ("mmaction2/tsn_r50", "mmaction2/tsm_r50"):  # (N, segments, C, H, W)
        return clip.transpose(1, 2)
    if clip.ndim == 6:  # (N, clips, C, T, H, W), one clip
        return clip.squeeze(1)
    return clip


@pytest.mark.parametrize("name", RECORDS)
def test_logits_are_those_of_the_public_code(name: str) -> None:
    record = fill.read("models", RECORDS[name])
    model = from_state_dict(name, fill.state_dict(record))
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    with torch.inference_mode():
        logits = model(_our_layout(name, fill.clip(record))).flatten()
    assert logits.numel() == record["output_numel"]
    assert logits.argmax() == record["output_argmax"]
    expected = torch.tensor(record["output"])
    error = (logits[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-4


def _without_non_local(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    return {k: v for k, v in shapes.items() if "nonlocal" not in k and "non_local" not in k}


def _slow_kernels(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """mmaction2's I3D keys with SlowOnly's temporal kernels, non-local blocks one place earlier."""
    slow = {}
    for key, shape in shapes.items():
        if "non_local" in key:
            before, number, rest = re.split(r"\.(\d)(?=\.non_local)", key)
            key = f"{before}.{int(number) - 1}{rest}"
        elif key.endswith("conv1.conv.weight"):
            frames = 3 if ".layer3." in key or ".layer4." in key else 1
            shape = [*shape[:2], frames, *shape[3:]]
        slow[key] = shape
    return slow


def _derived(name: str) -> tuple[dict[str, list[int]], int]:
    """Keys and shapes of a public model without a record, and its published parameter count."""
    mm_nl = fill.read("models", RECORDS["mmaction2/i3d_r50_nl_embedded_gaussian"])["keys"]
    match name:
        case "pyslowfast/SLOW_8x8_R50":
            slow_nl = fill.read("models", RECORDS["pyslowfast/SLOW_NLN_8x8_R50"])["keys"]
            return _without_non_local(slow_nl), 32_454_096
        case "mmaction2/i3d_r50_nl_gaussian":  # neither theta nor phi, and full channels in
            return {k: v for k, v in mm_nl.items() if not re.search("theta|phi", k)}, 31_723_728
        case "mmaction2/slowonly_r50":
            return _slow_kernels(_without_non_local(mm_nl)), 32_454_096
        case _:
            return _slow_kernels(mm_nl), 39_808_464


@pytest.mark.parametrize(
    "name",
    [
        "pyslowfast/SLOW_8x8_R50",
        "mmaction2/i3d_r50_nl_gaussian",
        "mmaction2/slowonly_r50",
        "mmaction2/slowonly_r50_nl_embedded_gaussian",
    ],
)
def test_every_key_of_a_model_without_a_record_is_consumed(name: str) -> None:
    shapes, num_parameters = _derived(name)
    model = from_state_dict(name, {key: torch.zeros(shape) for key, shape in shapes.items()})
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@pytest.mark.parametrize("depth", [18, 34, 101])
def test_torchvision_s_own_weights(depth: int) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).eval()
    model = from_state_dict(f"torchvision/resnet{depth}", theirs.state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(x), theirs(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["i3d_r50", "c2d_r50"])
def test_pytorchvideo_s_own_network(name: str) -> None:
    pytest.importorskip("pytorchvideo", reason="install videoattn[pytorchvideo]")
    hub = importlib.import_module("pytorchvideo.models.hub")
    torch.manual_seed(0)
    theirs = getattr(hub, name)().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):  # its residual branches start at zero
            nn.init.uniform_(module.weight, 0.5, 1.0)
    model = from_state_dict(f"pytorchvideo/{name}", theirs.state_dict())
    x = torch.randn(1, 3, 8, 224, 224)
    with torch.inference_mode():
        expected = theirs(x)
        error = (model(x) - expected).abs().max() / expected.std()
    assert error < 1e-4


def _small() -> dict[str, Tensor]:
    """Weights of torchvision/resnet18, uninitialised but whole."""
    return torchvision.models.resnet18(num_classes=3).state_dict()


def test_load_public_reads_a_wrapped_file(tmp_path: Path) -> None:
    state = _small()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    model = load_public("torchvision/resnet18", tmp_path / "a.pth")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_network_owns_its_weights() -> None:
    state = _small()
    model = from_state_dict("torchvision/resnet18", state)
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert state["conv1.weight"].abs().sum() > 0


def test_counters_of_batches_may_be_absent() -> None:
    state = {k: v for k, v in _small().items() if "num_batches" not in k}
    model = from_state_dict("torchvision/resnet18", state)
    assert model.bn1.num_batches_tracked == 0


def test_weights_of_another_model_show_five_keys_of_each_side() -> None:
    state = _small()
    extra = {f"neck.{i}.weight": torch.zeros(1) for i in range(6)}
    left = {k: v for k, v in state.items() if not k.startswith(("layer4.0.", "fc."))}
    message = (
        "torchvision/resnet18: these weights are of another model. In them and not in it: "
        "neck.0.weight, neck.1.weight, neck.2.weight, neck.3.weight, neck.4.weight and 1 more. "
        "In it and not in them (our names): layer4.0.conv1.weight, layer4.0.bn1.weight, "
        "layer4.0.bn1.bias, layer4.0.bn1.running_mean, layer4.0.bn1.running_var and 12 more"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        from_state_dict("torchvision/resnet18", left | extra)


def test_shapes_that_do_not_fit_are_shown() -> None:
    state = _small() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"conv1.weight \(64, 3, 3, 3\), needs \(64, 3, 7, 7\)"):
        from_state_dict("torchvision/resnet18", state)


def test_two_keys_for_one_parameter_are_refused() -> None:
    shapes, _ = _derived("mmaction2/slowonly_r50_nl_embedded_gaussian")
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    state["backbone.layer2.0.non_local_block.g.conv.bias"] = torch.zeros(256)
    with pytest.raises(ValueError, match=r"several keys are one parameter: .*g\.0\.conv\.bias"):
        from_state_dict("mmaction2/slowonly_r50_nl_embedded_gaussian", state)


def test_an_unknown_name_has_the_nearest_beside_it() -> None:
    message = "'torchvision/resnet19' is not a public model .did you mean 'torchvision/resnet1"
    with pytest.raises(ValueError, match=message):
        load_public("torchvision/resnet19", "absent.pth")


def test_every_row_is_tested_here() -> None:
    tested = {*RECORDS, "pytorchvideo/c2d_r50", "pyslowfast/SLOW_8x8_R50"}
    tested |= {f"torchvision/resnet{depth}" for depth in (18, 34, 101)}
    tested |= {f"mmaction2/{n}" for n in ("slowonly_r50", "i3d_r50_nl_gaussian")}
    assert set(PUBLIC) == tested | {"mmaction2/slowonly_r50_nl_embedded_gaussian"}
