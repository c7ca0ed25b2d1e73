"""Public models return the logits of their own code for the same weights and clip. All keys map to
ours and back. Weights that do not fit are refused."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.reference import fill
from tests.weights.public_states import DERIVED, RECORDS, derived, recorded, state
from videoattn.weights import PUBLIC, explain, from_state_dict, load_public, to_public


def _our_layout(name: str, clip: Tensor) -> Tensor:
    if name in ("mmaction2/tsn_r50", "mmaction2/tsm_r50"):  # (N, segments, C, H, W)
        return clip.transpose(1, 2)
    if clip.ndim == 6:  # (N, clips, C, T, H, W), one clip
        return clip.squeeze(1)
    return clip


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", RECORDS)
def test_logits_match_the_public_code(name: str) -> None:
    record = fill.read("models", RECORDS[name])
    theirs = fill.state_dict(record)
    model = from_state_dict(name, theirs)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == record["n_params"]
    with torch.inference_mode():
        logits = model(_our_layout(name, fill.clip(record))).flatten()
    assert logits.numel() == record["output_numel"]
    assert logits.argmax() == record["output_argmax"]
    expected = torch.tensor(record["output"])
    error = (logits[: len(expected)] - expected).abs().max() / record["output_std"]
    assert error < 1e-4
    assert _same(to_public(name, model), theirs)


@pytest.mark.parametrize("name", DERIVED)
def test_all_keys_of_models_without_a_record(name: str) -> None:
    theirs = state(derived(name))
    model = from_state_dict(name, theirs)
    assert sum(p.numel() for p in model.parameters()) == DERIVED[name]
    explanation = explain(name, theirs)
    assert explanation.used.keys() == theirs.keys()
    assert not explanation.ignored
    assert _same(to_public(name, model), theirs)


def test_every_row_is_tested_here() -> None:
    torchvision_s = {f"torchvision/resnet{depth}" for depth in (18, 34, 101)}
    foreign = {"piergiaj/i3d_rgb", "hassony2/i3d_rgb"}  # in a file of their own
    assert set(PUBLIC) - foreign == RECORDS.keys() | DERIVED.keys() | torchvision_s


@pytest.mark.parametrize("depth", [18, 34, 101])
def test_torchvision_weights(depth: int) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).state_dict()
    theirs = state({key: list(value.shape) for key, value in theirs.items()})
    model = from_state_dict(f"torchvision/resnet{depth}", theirs)
    assert type(model) is torchvision.models.ResNet
    assert _same(model.state_dict(), theirs)
    assert _same(to_public(f"torchvision/resnet{depth}", model), theirs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["i3d_r50", "c2d_r50", "slow_r50"])
def test_logits_match_pytorchvideo(name: str) -> None:
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
    theirs.load_state_dict(to_public(f"pytorchvideo/{name}", model))  # strict: all its keys


@pytest.mark.parametrize("name", [n for n in PUBLIC if n.startswith("nonlocal/")])
def test_output_sizes_of_the_authors_stems(name: str) -> None:
    """55 x 55 after a pool without padding, and 4 x 7 x 7 for both 8 and 32 frames."""
    model = from_state_dict(name, state(derived(name))).to("meta")
    seen = {}
    for layer in ("maxpool", "layer4"):
        model.get_submodule(layer).register_forward_hook(
            lambda module, inputs, y, layer=layer: seen.update({layer: tuple(y.shape[2:])})
        )
    num_frames = PUBLIC[name].preprocessing.num_frames
    model(torch.empty(1, 3, num_frames, 224, 224, device="meta"))
    assert seen == {"maxpool": (8, 55, 55), "layer4": (4, 7, 7)}


def _small() -> dict[str, Tensor]:
    """Random weights of torchvision/resnet18."""
    return torchvision.models.resnet18(num_classes=3).state_dict()


def test_load_public_reads_a_wrapped_file(tmp_path: Path) -> None:
    weights = _small()
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "a.pth")
    model = load_public("torchvision/resnet18", tmp_path / "a.pth")
    assert _same(model.state_dict(), weights)


def test_the_network_owns_its_weights() -> None:
    weights = _small()
    model = from_state_dict("torchvision/resnet18", weights)
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert weights["conv1.weight"].abs().sum() > 0
    again = from_state_dict("torchvision/resnet18", weights)
    assert _same(again.state_dict(), weights)


def test_counters_of_batches_may_be_absent() -> None:
    weights = {k: v for k, v in _small().items() if "num_batches" not in k}
    model = from_state_dict("torchvision/resnet18", weights)
    assert model.bn1.num_batches_tracked == 0
    filled = explain("torchvision/resnet18", weights).filled
    assert filled["bn1.num_batches_tracked"] == "0, which has no effect"
    assert len(filled) == 20


def test_weights_of_another_model_list_five_keys_of_each_side() -> None:
    weights = _small()
    extra = {f"neck.{i}.weight": torch.zeros(1) for i in range(6)}
    left = {k: v for k, v in weights.items() if not k.startswith(("layer4.0.", "fc."))}
    message = (
        "torchvision/resnet18: these weights belong to another model. Unknown keys: "
        "neck.0.weight, neck.1.weight, neck.2.weight, neck.3.weight, neck.4.weight and 1 more. "
        "Missing parameters (our names): layer4.0.conv1.weight, layer4.0.bn1.weight, "
        "layer4.0.bn1.bias, layer4.0.bn1.running_mean, layer4.0.bn1.running_var and 12 more"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        from_state_dict("torchvision/resnet18", left | extra)


@pytest.mark.parametrize(
    ("of", "named", "message"),
    [
        ("pyslowfast/I3D_8x8_R50", "mmaction2/i3d_r50",
         r"These keys are PySlowFast's; try pyslowfast/I3D_8x8_R50$"),
        ("mmaction2/tsm_r50", "mmaction2/tsn_r50",
         r"These keys are mmaction2 \(TSM\)'s; try mmaction2/tsm_r50$"),
        ("pytorchvideo/slow_r50", "pytorchvideo/i3d_r50",
         r"These keys are pytorchvideo \(Slow\)'s; try pytorchvideo/slow_r50$"),
        ("pyslowfast/C2D_8x8_R50", "pyslowfast/I3D_8x8_R50",
         r"shapes do not fit: s1\.pathway0_stem\.conv\.weight \(64, 3, 1, 7, 7\), needs "
         r"\(64, 3, 5, 7, 7\).*\. They fit pyslowfast/C2D_8x8_R50$"),
        ("mmaction2/i3d_r50_nl_dot_product", "mmaction2/i3d_r50",
         r"Unknown keys: backbone\.layer2\.1\.non_local_block.*\. They fit "
         r"mmaction2/i3d_r50_nl_embedded_gaussian, mmaction2/i3d_r50_nl_dot_product$"),
    ],
)  # fmt: skip
def test_a_wrong_name_suggests_the_right_one(of: str, named: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: .*{message}"):
        from_state_dict(named, state(recorded(of)))


def test_fine_tuned_files_suggest_the_right_name() -> None:
    shapes = recorded("pyslowfast/I3D_8x8_R50")
    shapes |= {"head.projection.weight": [11, 2048], "head.projection.bias": [11]}
    with pytest.raises(ValueError, match=r"These keys are PySlowFast's; try pyslowfast/I3D_8x8_R5"):
        from_state_dict("pytorchvideo/i3d_r50", state(shapes))


def test_weights_of_two_pathways_suggest_their_project() -> None:
    """If no public model fits, the models with this layout are listed."""
    shapes = recorded("pyslowfast/I3D_8x8_R50")
    shapes |= {"s1_fuse.conv_f2s.weight": [64, 8, 5, 1, 1]}
    message = r"These keys are PySlowFast's; try pyslowfast/C2D_8x8_R50, pyslowfast/I3D_8x8_R50, "
    with pytest.raises(ValueError, match=message):
        from_state_dict("mmaction2/i3d_r50", state(shapes))


def test_unknown_keys() -> None:
    weights = {f"encoder.{i}.w": torch.zeros(1) for i in range(3)}
    with pytest.raises(ValueError, match="No known project names its parameters like this"):
        from_state_dict("torchvision/resnet18", weights)


def test_wrong_shapes_are_listed() -> None:
    weights = _small() | {"conv1.weight": torch.zeros(64, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"conv1.weight \(64, 3, 3, 3\), needs \(64, 3, 7, 7\)$"):
        from_state_dict("torchvision/resnet18", weights)


def test_two_keys_for_one_parameter_are_refused() -> None:
    weights = state(derived("mmaction2/slowonly_r50_nl_embedded_gaussian"))
    weights["backbone.layer2.0.non_local_block.g.conv.bias"] = torch.zeros(256)
    with pytest.raises(ValueError, match=r"several keys name one parameter: .*g\.0\.conv\.bias"):
        from_state_dict("mmaction2/slowonly_r50_nl_embedded_gaussian", weights)


def test_an_unknown_name_suggests_the_nearest() -> None:
    message = (
        "public model: 'torchvision/resnet19' does not exist .did you mean torchvision/resnet1"
    )
    with pytest.raises(ValueError, match=message):
        load_public("torchvision/resnet19", "absent.pth")
    with pytest.raises(ValueError, match=r"^public model: 'slow' does not exist"):
        explain("slow", {})


def test_another_network_is_not_written_as_a_public_model() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    message = (
        "torchvision/resnet34: the network differs from this public model in "
        "layer1.2.conv1.weight, layer1.2.bn1.weight, "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        to_public("torchvision/resnet34", model)
    model.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    with pytest.raises(ValueError, match=r"public model in conv1\.weight \(missing"):
        to_public("torchvision/resnet18", model)
