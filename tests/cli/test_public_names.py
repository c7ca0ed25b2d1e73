"""A public name in the place of a run or a file, in every command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import videoattn
from tests.cli.test_commands import command, refused
from tests.weights.published import published_file
from tests.weights.server import Server, body
from tests.weights.test_download import PATH, SMALL, clip, server  # noqa: F401 (fixtures)
from videoattn.recipe.config import Config, ModelConfig
from videoattn.recipe.initial import load_initial_weights
from videoattn.recipe.model import make_model
from videoattn.weights import PUBLIC, load_public


@pytest.fixture
def published(
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Server:
    """Serves one public model, with one small view to save time, in a new folder."""
    server.answers[PATH] = body(published_file(SMALL))
    small = replace(
        PUBLIC[SMALL].preprocessing, num_clips=1, num_crops=1, short_side=40, test_size=32
    )
    monkeypatch.setitem(PUBLIC, SMALL, replace(PUBLIC[SMALL], preprocessing=small))
    monkeypatch.chdir(tmp_path)
    return server


def test_every_command_takes_a_name(
    published: Server,
    clip: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("predict", SMALL, clip, "--top", 1, "--why") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].endswith("%  zumba")  # the last class has the largest bias
    assert out[2] == f"  runs/pytorchvideo_c2d_r50/pictures/{clip.stem}_why.png"
    assert Path(out[2].strip()).is_file()

    Path("videos").mkdir()
    shutil.copy(clip, "videos/a.mp4")
    Path("videos/test.txt").write_text("a.mp4 399\n")
    data = ("data.layout=list", "data.test_split=test.txt", "data.class_list=kinetics400")
    assert command("test", SMALL, "data.root=videos", *data) == 0
    report = json.loads(Path("runs/pytorchvideo_c2d_r50/test/report.json").read_text())
    assert (report["videos_labelled"], report["video_accuracy"]) == (1, 1.0)

    assert command("visualize", SMALL, clip, "--method", "cam") == 0
    assert list(Path("runs/pytorchvideo_c2d_r50/pictures").glob(f"{clip.stem}_cam_*.png"))

    assert command("export", SMALL, "shared") == 0
    card = Path("shared/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Published: 71.46 % top-1 on Kinetics-400, 1 clip x 1 crop (https://github.com/" in card

    for number, words in enumerate(
        ([SMALL, "a"], ["b", "--as", SMALL], [SMALL, "c", "--as", SMALL])
    ):
        assert command("convert", *words) == 0
        loaded = videoattn.load("abc"[number])
        assert torch.equal(loaded.fc.bias, load_public(SMALL).fc.bias)
        assert loaded.meta["provenance"]["url"] == PUBLIC[SMALL].url
    assert published.num_requests == 1


def test_a_recipe_starts_from_a_name(published: Server) -> None:
    model = ModelConfig("c2d_r50", {"head_window": (4, 7, 7)}, weights=SMALL)
    network = make_model(model, 400)
    new, _ = load_initial_weights(network, Config("x", model=model))
    assert new == []
    assert torch.equal(network.fc.bias, load_public(SMALL).fc.bias)
    assert published.num_requests == 1


def test_a_folder_of_that_name_is_preferred(published: Server) -> None:
    Path(SMALL).mkdir(parents=True)
    assert "need the folder of a run with checkpoint-last.pt" in refused("export", SMALL, "out")
    assert published.num_requests == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict {} a.mp4", "if you have the file: videoattn convert FILE --as {} OUT"),
        ("convert {} out", "if you have the file: videoattn convert FILE --as {} OUT"),
        ("predict pytorchvideo/c2d_r51 a.mp4", "; or a public name (did you mean {}?)"),
        ("convert pytorchvideo/c2d_r51 out", "not a public name (did you mean {}?); for a file"),
        ("convert {}", "{}: an output is needed; type: videoattn convert {} OUT"),
        ("convert out --as nothing", "--as: 'nothing' does not exist; choose from torchvision/r"),
    ],
)  # fmt: skip
def test_messages(
    words: str, message: str, published: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOATTN_OFFLINE", "1")
    typed = words.replace("{}", SMALL).split()
    assert message.replace("{}", SMALL) in refused(*typed)
    assert published.num_requests == 0
