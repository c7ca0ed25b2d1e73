"""`videoattn export`: the written network gives the same logits, for any number of clips."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import videoattn
from tests.cli.test_commands import command, refused
from videoattn.cli import export
from videoattn.engine import checkpoint
from videoattn.engine.checkpoint import CheckpointMeta
from videoattn.recipe.config import AttentionConfig, ClipConfig, Config, DataConfig, ModelConfig
from videoattn.recipe.load import shareable, to_dict
from videoattn.recipe.model import make_model
from videoattn.recipe.run import Predictor

CLASSES = ["one", "two", "three", "four", "five"]
CLIP = ClipConfig(num_frames=4, height=32, width=32)
NETWORKS: dict[str, ModelConfig] = {
    "plain": ModelConfig("i3d_r18", {"width": 16}),
    "i3d_non_local": ModelConfig(
        "i3d_r18", {"width": 16}, attention=AttentionConfig("non_local", ("layer2.0", "layer3.1"))
    ),
    "i3d_cbam": ModelConfig(
        "i3d_r18", {"width": 16}, attention=AttentionConfig("cbam", ("layer1.1", "layer3.0"))
    ),
    "tsn_non_local": ModelConfig(
        "tsn_r18", {"shift_div": 8}, attention=AttentionConfig("non_local", ("layer2.1",))
    ),
    "tsn_cbam": ModelConfig(
        "tsn_r18", {"consensus": "attention"}, attention=AttentionConfig("cbam", ("layer2.1",))
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared folder of each network. No layer is the identity."""
    root = tmp_path_factory.mktemp("shared")
    for name, config in NETWORKS.items():
        checkpoint.save_folder(root / name, *made(config))
    return root


def made(config: ModelConfig) -> tuple[dict[str, Tensor], CheckpointMeta]:
    torch.manual_seed(0)
    model = make_model(config, len(CLASSES))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    recipe = to_dict(Config(name="x", data=DataConfig(root="x"), clip=CLIP, model=config))
    about: CheckpointMeta = {
        "config": recipe,
        "class_names": CLASSES,
        "preprocessing": recipe["clip"],
        "provenance": {"licence": "a licence"},
    }
    return model.state_dict(), about


# Each format with both kinds of network and both kinds of attention: a trace takes seconds.
@pytest.mark.parametrize("name", ["i3d_cbam", "tsn_non_local"])
def test_onnx_gives_the_same_logits(
    folders: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.onnx"
    assert command("export", folders / name, file, "--format", "onnx") == 0
    assert "of the logits' standard deviation from" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(file)
    assert session.get_inputs()[0].shape[1:] == [3, 4, 32, 32]
    video = torch.randn(2, 3, 4, 32, 32)
    (got,) = session.run(None, {"video": video.numpy()})
    assert_same(folders / name, video, torch.from_numpy(got))
    about = json.loads((tmp_path / "net.onnx.json").read_text())
    assert about["class_names"] == CLASSES
    assert about["input"]["video"] == ["N", 3, 4, 32, 32]
    assert about["normalisation"]["mean"] == [0.45, 0.45, 0.45]


@pytest.mark.parametrize("name", ["plain", "i3d_non_local", "tsn_cbam"])
def test_torch_export_gives_the_same_logits(folders: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / "net.pt2"
    assert command("export", folders / name, file, "--format", "torch-export") == 0
    video = torch.randn(5, 3, 4, 32, 32)
    with torch.no_grad():
        got = torch.export.load(file).module()(video)
    assert_same(folders / name, video, got)
    assert json.loads((tmp_path / "net.pt2.json").read_text())["class_names"] == CLASSES


def assert_same(folder: Path, video: Tensor, got: Tensor) -> None:
    with torch.no_grad():
        expected = videoattn.load(folder)(video)
    assert (got - expected).abs().max() < 1e-4 * expected.std()


def test_a_run_becomes_a_folder_to_share(tmp_path: Path) -> None:
    state, about = made(NETWORKS["i3d_cbam"])
    payload: Any = {
        "format": checkpoint.FORMAT, "version": "0", "model": state, "optimizer": {},
        "progress": {}, "best": {}, **about,
    }  # fmt: skip
    checkpoint.save(tmp_path / "run" / checkpoint.LAST, payload)
    assert command("export", tmp_path / "run", tmp_path / "shared") == 0
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    text = json.loads((tmp_path / "shared/config.json").read_text())
    config = shareable(about["config"])  # without the data section
    header = {"format": checkpoint.FORMAT, "version": videoattn.__version__}
    assert text == {**header, **about, "config": config}
    loaded = videoattn.load(tmp_path / "shared")
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert refused("export", tmp_path / "run", tmp_path / "shared").endswith(
        "shared already exists; choose another name, or remove it"
    )


@pytest.mark.parametrize(
    ("kind", "out"), [("safetensors", "folder"), ("torch-export", "a.pt2"), ("onnx", "a.onnx")]
)
def test_a_network_with_other_logits_is_not_kept(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, out: str
) -> None:
    def worse(loaded: object, clips: Tensor, output: Path) -> Any:
        output.mkdir() if kind == "safetensors" else output.touch()
        return lambda video: model(video) * 1.001

    model = videoattn.load(folders / "plain")
    ending = export.FORMATS[kind][1]
    monkeypatch.setitem(export.FORMATS, kind, (worse, ending))
    said = refused("export", folders / "plain", tmp_path / out, "--format", kind)
    assert said.startswith(f"error: as {kind}, the logits of {folders / 'plain'} differ by ")
    assert said.endswith(
        "deviation; at most 1e-04 is allowed; no file is written; please report it"
    )
    monkeypatch.setitem(export.FORMATS, kind, (nothing, ending))
    assert "differ by nan" in refused("export", folders / "plain", tmp_path / out, "--format", kind)
    assert list(tmp_path.iterdir()) == []


def nothing(loaded: object, clips: Tensor, output: Path) -> Any:
    output.touch()
    return lambda video: torch.full((len(video), len(CLASSES)), torch.nan)


def test_invalid_arguments_are_rejected(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", folders / "plain")
    assert refused(*words, tmp_path / "a.pt", "--format", "onx").startswith(
        "error: --format: 'onx' does not exist (did you mean onnx?); choose from safetensors, torch"
    )
    assert refused(*words, tmp_path / "a.pt", "--format", "onnx").endswith(
        "a.pt: got another ending; need .onnx for --format onnx"
    )
    absent = importlib.import_module

    def import_module(name: str) -> ModuleType:
        if name == "onnxruntime":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return absent(name)

    monkeypatch.setattr(export.importlib, "import_module", import_module)
    assert refused(*words, tmp_path / "a.onnx", "--format", "onnx") == (
        "error: --format onnx needs onnxruntime, which is not installed; install the extra: "
        "pip install 'videoattn[export]'"
    )
    assert list(tmp_path.iterdir()) == []


class Counting(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        return video * len(video)


class Sorting(nn.Module):
    def forward(self, video: Tensor) -> Tensor:
        return torch.searchsorted(video.flatten(1).sort().values, video[:, :, 0, 0, 0])


@pytest.mark.parametrize(
    ("kind", "network", "message"),
    [
        ("onnx", Sorting(), "this Sorting cannot be exported by ONNX: No ONNX function found for <O"
         "pOverload.op='aten.searchsorted'"),
        ("torch-export", Counting(), "this Counting cannot be exported by torch.export: Constraints"
         r" violated \(clips\)"),
    ],
)  # fmt: skip
def test_a_network_that_a_format_cannot_hold(
    tmp_path: Path, kind: str, network: nn.Module, message: str
) -> None:
    write, ending = export.FORMATS[kind]
    meta = made(NETWORKS["plain"])[1]
    predictor = Predictor(network, Config(), (), tmp_path, meta, tmp_path)
    with pytest.raises(ValueError, match=message):
        write(predictor, torch.randn(2, 3, 4, 8, 8), tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []
