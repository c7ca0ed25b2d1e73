"""`videoattn convert`, and the shared folders that it writes."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import videoattn
from tests.cli.test_commands import command, refused
from videoattn.attention.blocks.non_local import NonLocal
from videoattn.attention.insert import insert_attention
from videoattn.data.lists import Samples
from videoattn.data.synthetic import MOTIONS, demo_clip, encode_clip
from videoattn.engine.checkpoint import CheckpointError
from videoattn.engine.parallel import Parallel
from videoattn.models.table import make_network
from videoattn.recipe.data import make_loader
from videoattn.recipe.run import load
from videoattn.weights import PUBLIC, from_state_dict, to_public


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for split in ("train", "test"):
        for motion in MOTIONS:
            path = root / split / motion / "0000.mp4"
            path.parent.mkdir(parents=True)
            encode_clip(path, demo_clip(motion, seed=0, split=split, number=0))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's ResNet-18 with a classifier of the eight motions."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=8).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = images.with_name("classes.txt")
    names.write_text("\n".join(sorted(MOTIONS)) + "\n")
    out = tmp_path_factory.mktemp("converted") / "resnet18"
    words = ("convert", images, "--as", "torchvision/resnet18", out, "--classes", names)
    assert command(*words) == 0
    edit(out, train={"precision": "float32"}, clip={"num_frames": 3})
    edit(out, test={"short_side": 72, "height": 64, "width": 64})
    return out


def edit(folder: Path, **changes: dict[str, object]) -> None:
    """Changes settings in config.json, as a person would."""
    path = folder / "config.json"
    about = json.loads(path.read_text())
    for part, values in changes.items():
        about["config"][part] |= values
    path.write_text(json.dumps(about))


def views(folder: Path, video: Path) -> Tensor:
    """Returns the frames of each view, RGB in 0 - 1, (V, T, 3, H, W)."""
    config = load(folder, torch.device("cpu")).config
    samples = Samples(Path(), paths=[str(video)], labels=[-1], class_names=["x"])
    (batch,) = make_loader(config, "test", Parallel(), samples).epoch(0)
    return batch.frames[0].float() / 255


def probabilities(folder: Path, video: Path) -> Tensor:
    predictor = load(folder)
    return predictor.evaluate(predictor.samples([video]), Parallel()).probabilities[0]


def test_an_image_network_scores_the_frames_of_a_video(
    folder: Path, images: Path, clips: Path
) -> None:
    video = clips / "test/grows/0000.mp4"
    got = probabilities(folder, video)
    frames = views(folder, video)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pictures = ((frames.movedim(1, -1) - mean) / std).movedim(-1, 1)
    model = from_state_dict("torchvision/resnet18", torch.load(images, weights_only=True))
    with torch.inference_mode():
        expected = model(pictures).mean(0).softmax(0)
    assert len(frames) == 3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_video_network_scores_its_views(tmp_path: Path, clips: Path) -> None:
    name, video = "mmaction2/tsm_r50_nl_gaussian", clips / "test/moves_up/0000.mp4"
    row = PUBLIC[name]
    torch.manual_seed(0)
    state = to_public(name, public_network(name, num_classes=7))
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "tsm.pth")
    out = tmp_path / "tsm"
    assert command("convert", tmp_path / "tsm.pth", "--as", name, out) == 0
    loaded = load(out, torch.device("cpu"))
    assert loaded.class_names == tuple("0123456")
    assert loaded.meta["provenance"]["licence"] == row.license
    assert loaded.config.clip.mean == row.preprocessing.mean
    assert (loaded.config.clip.sampling, loaded.config.clip.num_frames) == ("segments", 8)
    edit(out, train={"precision": "float32"}, clip={"num_frames": 4})
    edit(out, test={"short_side": 40, "height": 32, "width": 32})
    shown = views(out, video)  # (3, 4, 3, 32, 32)
    mean, std = (torch.tensor(v) for v in (row.preprocessing.mean, row.preprocessing.std))
    videos = ((shown.movedim(2, -1) - mean) / std).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        expected = from_state_dict(name, state)(videos).softmax(1).mean(0)
    torch.testing.assert_close(probabilities(out, video), expected)


def public_network(name: str, *, num_classes: int) -> nn.Module:
    """Returns the public model with random weights. No block is the identity."""
    row = PUBLIC[name]
    model = make_network(row.network, row.options, num_classes=num_classes)
    insert_attention(model, partial(NonLocal, **row.non_local), row.after, name="non_local")
    for module in model.modules():
        if isinstance(module, NonLocal):
            nn.init.uniform_(module.bn.weight, 0.5, 1.0)
    return model


def test_the_printed_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "a.pth", tmp_path / "out"
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, file)
    assert command("convert", file, "--as", "torchvision/resnet18", out) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"torchvision/resnet18: 102 keys in {file}, 102 used",
        "  20 not in the file, set to: 0, which has no effect (bn1.num_batches_tracked, "
        "layer1.0.bn1.num_batches_tracked, layer1.0.bn2.num_batches_tracked and 17 more)",
        "tsn_r18, 11,689,512 parameters; license of the weights: BSD-3-Clause",
        "1000 classes: ImageNet's, of torchvision (others by --classes FILE)",
        "tested on 1 x 1 views of 8 frames (clips x crops); published: 69.758 % on ImageNet-1K, "
        "1 crop",
        f"written: {out}; videoattn predict {out} VIDEO",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert videoattn.load(out).class_names[0] == "tench"


def test_the_committed_names_of_kinetics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_network("tsn_r50", {}, num_classes=400)
    torch.save(to_public("mmaction2/tsn_r50", model), tmp_path / "a.pth")
    file = tmp_path / "one.safetensors"
    assert command("convert", tmp_path / "a.pth", "--as", "mmaction2/tsn_r50", file) == 0
    said = capsys.readouterr().out
    assert "24,327,632 parameters; license of the weights: Apache-2.0" in said
    assert "400 classes: Kinetics-400's (others by --classes FILE)" in said
    assert "tested on 1 x 10 views of 25 frames (clips x crops); published: 74.12 %" in said
    assert [path.name for path in tmp_path.glob("one*")] == ["one.safetensors"]
    loaded = videoattn.load(file)
    assert loaded.class_names[:2] == ("abseiling", "air drumming")
    assert torch.equal(loaded.fc.weight, model.fc.weight)


def test_the_other_commands_take_the_folder(
    folder: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("predict", folder, clips / "test/grows/0000.mp4", "--top", 1) == 0
    assert capsys.readouterr().out.splitlines()[1].split("%")[1].strip() in MOTIONS
    assert command("test", folder, f"data.root={clips}") == 0
    assert "8 videos, 8 decoded, 0 failed" in capsys.readouterr().out
    shutil.rmtree(folder / "test")
    words = ("--method", "cam", "--out", tmp_path)
    assert command("visualize", folder, clips / "test/grows/0000.mp4", *words) == 0
    assert list(tmp_path.glob("*.png"))


def test_a_shared_network_in_python(folder: Path) -> None:
    model = videoattn.load(folder)
    assert not model.training
    assert model.class_names == tuple(sorted(MOTIONS))
    assert model.config.clip.mean == (0.485, 0.456, 0.406)
    video = torch.randn(1, 3, 2, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(video), videoattn.load(folder / "model.safetensors")(video))
    assert videoattn.load_public.__name__ == "load_public"
    with pytest.raises(AttributeError, match="module 'videoattn' has no attribute 'lod'"):
        videoattn.lod  # noqa: B018


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has only model.safetensors; a shared folder"),
        (lambda f: (f / "model.safetensors").unlink(), "has only config.json; a shared folder"),
        (lambda f: (f / "config.json").write_text('{"a'), "config.json: is damaged: not JSON "),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json: is damaged: not JSON "),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json: has format None; need"),
        (lambda f: without(f, "class_names"), "config.json: is damaged: it lacks class_names; "),
        (lambda f: set_value(f, "class_names", 8), "class_names: need a list of strings, one"),
        (lambda f: set_value(f, "format", "videoattn/9"), "has format videoattn/9; need"),
        (lambda f: set_value(f, "class_names", ["a"]), r"is of another model: fc.weight is \(8, "),
        (lambda f: edit(f, model={"name": "tsn_r34"}), "is of another model: lacks layer1.2.conv1"),
        (lambda f: edit(f, model={"nam": "x"}), r"the checkpoint's config: unknown key 'model.nam"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors: is truncated or not a safe"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_read(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(ValueError, match=message):
        videoattn.load(copy)


def without(folder: Path, key: str) -> None:
    about = json.loads((folder / "config.json").read_text())
    del about[key]
    (folder / "config.json").write_text(json.dumps(about))


def set_value(folder: Path, key: str, value: object) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {key: value}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"need the folder of a run with checkpoint-last"):
        videoattn.load(tmp_path)
    with pytest.raises(CheckpointError, match=r"a shared folder with model.safetensors and conf"):
        videoattn.load(tmp_path / "nothing")


def test_invalid_arguments_are_rejected(images: Path, folder: Path, tmp_path: Path) -> None:
    words = ("convert", images, "--as", "torchvision/resnet18")
    assert refused(*words, folder) == (
        f"error: {folder} already exists; choose another name, or remove it"
    )
    (tmp_path / "three.txt").write_text("a\nb\n\nc\n")
    three = tmp_path / "three.txt"
    assert refused(*words, tmp_path / "new", "--classes", three) == (
        f"error: --classes: {three} has 3 names, the weights have 8 classes; write one name per "
        "line"
    )
    assert refused("convert", images, "--as", "torchvision/resnet19", tmp_path / "new").startswith(
        "error: --as: 'torchvision/resnet19' does not exist (did you mean torchvision/resnet18?); "
    )
    assert "weights belong to another model" in refused(
        "convert", images, "--as", "mmaction2/tsn_r50", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()
