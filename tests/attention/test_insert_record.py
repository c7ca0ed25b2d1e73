import copy
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from videoattn.attention import NonLocal, insert_attention, insertion_places, record_attention
from videoattn.attention.insert import VideoView, dry_run, output_shapes
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

PLACES = ["layer2.1", "layer3.0"]


def i3d() -> ResNet3d:
    return ResNet3d("i3d", depth=18, num_classes=3, width=8).eval()


def tsn() -> TSN:
    return TSN(torchvision.models.resnet18(), num_classes=3).eval()


def video(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 4, 32, 48, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [i3d, tsn])
def test_inserted_blocks_change_no_key_and_no_output(make: type) -> None:
    model = make()
    keys, before = list(model.state_dict()), model(video())
    names = insert_attention(model, NonLocal, PLACES, name="non_local")
    assert names == ["layer2.1_non_local", "layer3.0_non_local"]
    assert [key for key in model.state_dict() if "non_local" not in key] == keys
    assert torch.equal(model(video()), before)
    assert torch.equal(copy.deepcopy(model)(video()), before)


def test_blocks_run_right_after_their_position() -> None:
    model = i3d()
    insert_attention(model, NonLocal, ["layer3.0"], name="non_local")
    assert [name for name, _ in model.layer3.named_children()] == ["0", "0_non_local", "1"]
    block = model.layer3.get_submodule("0_non_local")
    nn.init.ones_(block.bn.bias)
    seen = {}
    model.layer3[0].register_forward_hook(lambda m, i, o: seen.update(before=o))
    block.register_forward_hook(lambda m, i, o: seen.update(into=i[0], out=o))
    model(video())
    assert torch.equal(seen["into"], seen["before"])
    torch.testing.assert_close(seen["out"], seen["before"] + 1)


def test_foreign_backbones() -> None:
    timm = pytest.importorskip("timm")
    resnet = insert_attention(
        timm.create_model("resnet18"), NonLocal, ["layer2.1"], name="non_local", num_frames=2
    )
    assert resnet == ["layer2.1_non_local"]
    model = torchvision.models.video.r3d_18().eval()
    x = torch.randn(1, 3, 4, 32, 32)
    before = model(x)
    insert_attention(model, NonLocal, ["layer2.1"])
    assert torch.equal(model(x), before)


def test_pytorchvideo_stages() -> None:
    hub = pytest.importorskip("pytorchvideo.models.resnet", reason="extra pytorchvideo")
    model = hub.create_resnet(model_depth=50, model_num_class=3).eval()
    assert "blocks.2.res_blocks.1" in insertion_places(model)
    x = torch.randn(1, 3, 8, 224, 224)
    before = model(x)
    insert_attention(model, NonLocal, ["blocks.2.res_blocks.1"], name="non_local")
    assert torch.equal(model(x), before)
    with record_attention(model, queries=[(0, 0, 0)]) as maps:
        model(x)
    assert list(maps) == ["blocks.2.res_blocks.1_non_local"]


def test_after_a_whole_stage_a_block_runs_once() -> None:
    """The output of a stage, an nn.Sequential, goes to the block once: not by a hook as well."""
    model = i3d()
    assert insert_attention(model, lambda _: nn.Identity(), ["layer2"]) == ["layer2.attention"]
    calls = []
    model.layer2.attention.register_forward_hook(lambda *seen: calls.append(seen))
    model(torch.randn(1, 3, 4, 32, 32))
    assert len(calls) == 1


def test_wrong_positions_and_names_are_rejected() -> None:
    model = i3d()
    with pytest.raises(
        ValueError,
        match=r"cannot insert after 'layer2\.2' \(did you mean layer2\.1\?\); choose from "
        r"layer1\.0, layer1\.1, layer2\.0, .*layer4\.1$",
    ):
        insert_attention(model, NonLocal, ["layer2.2"])
    insert_attention(model, NonLocal, ["layer2.1"])
    with pytest.raises(ValueError, match="'1_attention' already exists; choose another name"):
        insert_attention(model, NonLocal, ["layer2.1"])
    model = i3d()
    model.extra = nn.Sequential(nn.ModuleDict({"never": nn.Conv3d(3, 3, 1)}))
    with pytest.raises(ValueError, match=r"ResNet3d does not run \['extra.0'\]; choose other"):
        insert_attention(model, NonLocal, ["extra.0"])


def test_a_view_refuses_half_clips() -> None:
    view = VideoView(NonLocal(4), num_frames=4)
    with pytest.raises(ValueError, match="6 images do not divide into clips of 4 frames"):
        view(torch.zeros(6, 4, 2, 2))


@pytest.mark.parametrize("make", [i3d, tsn])
def test_recorded_queries_are_the_cells_that_hold_them(make: type) -> None:
    model = make()
    insert_attention(model, NonLocal, PLACES, name="non_local")
    with record_attention(model, queries=[(0, 0, 0), (3, 31, 47)], received=True) as some:
        model(video())
    with record_attention(model) as everything:
        model(video())
    for name, recorded in some.items():
        whole = everything[name]
        t, h, w = whole.grid_q
        assert recorded.queries.tolist() == [[0, 0, 0], [t - 1, h - 1, w - 1]]
        torch.testing.assert_close(recorded.weights, whole.weights[:, [0, t * h * w - 1]])
        assert recorded.received is not None
        torch.testing.assert_close(recorded.received, whole.weights.mean(1))
        torch.testing.assert_close(whole.weights.sum((2, 3, 4)), torch.ones(2, t * h * w))
    assert list(some) == ["layer2.1_non_local", "layer3.0_non_local"]


def test_nothing_is_kept_without_recording() -> None:
    model = i3d()
    insert_attention(model, NonLocal, PLACES)
    with record_attention(model) as maps:
        model(video())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0
    first = dict(maps)
    model(video(1))
    assert maps == first


def test_recording_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ValueError, match="ResNet3d has no attention block whose map can be rec"),
        record_attention(i3d()),
    ):
        pass
    model = i3d()
    insert_attention(model, NonLocal, PLACES)
    with (
        pytest.raises(
            ValueError,
            match=r"query \(4, 0, 0\): frame 4 is outside the clip; frame "
            "must be 0 to 3",
        ),
        record_attention(model, queries=[(4, 0, 0)]),
    ):
        model(video())
    monkeypatch.setattr("videoattn.attention.record.MOST_ENTRIES", 10)
    with (
        pytest.raises(ValueError, match=r"all rows of a 48 x 12 map are too many to keep; name"),
        record_attention(model),
    ):
        model(video())


GRAPHS = """
import videoattn
import torch, torchvision
from videoattn.attention import NonLocal, insert_attention
from videoattn.attention.blocks.non_local import FORMS
from videoattn.models.resnet3d import ResNet3d
from videoattn.models.tsn import TSN

torch.manual_seed(0)
video = torch.randn(2, 3, 4, 32, 48)
for form in FORMS:
    for model in (
        ResNet3d("i3d", depth=18, num_classes=3, width=8),
        TSN(torchvision.models.resnet18(), num_classes=3),
    ):
        names = insert_attention(model, lambda c: NonLocal(c, form=form), ["layer2.1", "layer3.0"])
        for module in model.modules():
            if isinstance(module, NonLocal):
                torch.nn.init.ones_(module.bn.weight)
        model.eval()
        expected = model(video)
        exported = torch.export.export(model, (video,)).module()(video)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(video)
        for got in (exported, compiled):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
print("equal")
"""


def test_compiled_and_exported_networks_equal_eager_ones() -> None:
    """In a process of its own: tracing must not see the shape checks that tests switch on."""
    words = [sys.executable, "-c", GRAPHS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


class NeedsAClip(nn.Module):
    """A network that cannot run on no clips, because it infers a size from the others."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
        self.stages = nn.Sequential(block, nn.Sequential(nn.Conv3d(4, 6, 1)))
        self.fc = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(x)
        return self.fc(x.view(len(x), 6, -1).mean(2))


def test_a_network_that_cannot_run_on_no_clips() -> None:
    with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
        NeedsAClip().eval()(torch.zeros(0, 3, 2, 4, 4))
    shapes = output_shapes(NeedsAClip(), ["stages.0", "stages.1"])
    assert [shape[1:] for shape in shapes.values()] == [(4, 8, 224, 224), (6, 8, 224, 224)]
    inputs = dry_run(NeedsAClip(), ["fc"], inputs=True)["fc"]
    assert inputs.shape == (1, 6)
    assert inputs.is_meta


def test_shapes_are_found_without_memory_for_weights() -> None:
    model = NeedsAClip()
    model.stages.add_module("2", nn.Conv3d(6, 6, 3, padding=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = dry_run(model, ["stages.2"])["stages.2"]
    assert found.shape == (0, 6, 8, 224, 224)
    assert found.device.type == "cpu"
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
