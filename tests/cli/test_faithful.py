"""`videoattn faithful` from a trained network to its tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.cli.test_commands import refused
from tests.cli.test_visualize import untrained
from videoattn.cli import faithful_randomize
from videoattn.cli.app import main
from videoattn.cli.faithful_report import Results, write_removal
from videoattn.data.synthetic import MOTIONS, demo_clip, encode_clip
from videoattn.data.transforms import resize
from videoattn.engine.checkpoint import save_weights
from videoattn.explain.faithful import score
from videoattn.explain.faithful.removal import area
from videoattn.explain.faithful.statistics import bootstrap
from videoattn.recipe.data import make_to_video
from videoattn.recipe.load import load as load_recipe
from videoattn.recipe.load import to_dict
from videoattn.recipe.model import make_model
from videoattn.recipe.run import load

MOVES = ("moves_down", "moves_left", "moves_right", "moves_up")
NUM_TRAIN, NUM_TEST, NUM_EPOCHS = 48, 3, 14


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for name in MOVES:
        (root / "train" / name).mkdir(parents=True)  # the classes
        (root / "test" / name).mkdir(parents=True)
        for number in range(NUM_TEST):
            clip = demo_clip(name, seed=0, split="test", number=number)
            encode_clip(root / "test" / name / f"{number:04d}.mp4", clip)
    return root


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of the demo's kind, which recognizes most clips. It is trained on clips in
    memory, because decoding would take most of the time."""
    changes = {
        "clip.num_frames": 8,
        "clip.frame_stride": 3,
        "clip.height": 32,
        "clip.width": 32,
        "test.short_side": 32,
        "model.options.strides": "[1,2,1,1]",
        "model.options.width": 8,
    }
    config = load_recipe("demo", [f"{key}={value}" for key, value in changes.items()])
    torch.manual_seed(0)
    model = make_model(config.model, len(MOVES)).train()
    to_video = make_to_video(config.clip, torch.device("cpu"))
    drawn = [
        resize(demo_clip(name, seed=0, split="train", number=number).frames, (32, 32))
        for name in MOVES
        for number in range(NUM_TRAIN)
    ]
    labels = torch.arange(len(MOVES)).repeat_interleave(NUM_TRAIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    steps = NUM_EPOCHS * len(drawn) // 16
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(NUM_EPOCHS):
        for batch in torch.randperm(len(drawn)).split(16):
            starts = [int(torch.randint(len(drawn[k]) - 21, (1,))) for k in batch.tolist()]
            chosen = zip(batch.tolist(), starts, strict=True)
            frames = torch.stack([drawn[k][start : start + 22 : 3] for k, start in chosen])
            loss = F.cross_entropy(model(to_video(frames)), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    path = tmp_path_factory.mktemp("runs") / "best.safetensors"
    about = {"config": to_dict(config), "class_names": list(MOVES), "preprocessing": {}}
    save_weights(path, model.state_dict(), about)  # type: ignore[arg-type]
    return path


def called(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["faithful", *map(str, words)])
    assert ended.value.code == 0


def test_hires_cam_is_better_than_random_and_center_is_not_better(
    trained: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score, "NUM_RANDOM", 4)
    words = (
        trained,
        f"data.root={clips}",
        "--method",
        "hires_cam",
        "--maps",
        "layer3",
        "--fill",
        "mean",
    )
    called(*words, "--videos", "12")
    folder = trained.parent / "faithful"
    stored = json.loads((folder / "faithfulness.json").read_text())
    table = stored["table"]["mean"]
    mean, low, _ = table["hires_cam"]["gap"]
    assert mean > table["random"]["gap"][2]
    assert low > table["random"]["gap"][0]
    assert table["hires_cam"]["difference"][1] > 0
    assert sum(clip["right"] for clip in stored["clips"]) >= 8
    curves = [clip["fills"]["mean"] for clip in stored["clips"]]
    gaps = torch.tensor([
        [area(torch.tensor(c[name]["insertion"]) - torch.tensor(c[name]["deletion"]), 32)
         for name in ("center", "hires_cam")]
        for c in curves
    ])  # fmt: skip
    assert gaps.mean(0).tolist() == pytest.approx([table["center"]["gap"][0], mean], abs=1e-5)
    # Objects pass the middle, so that center is a strong baseline; it is not shown to be better.
    assert bootstrap(gaps[:, 0] - gaps[:, 1]).low <= 0
    printed = capsys.readouterr().out
    assert "11 more take about" in printed
    text = (folder / "faithfulness.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    for name in ("hires_cam", "hires_cam, frames only", "random", "smooth", "center", "motion"):
        assert name in names
    assert "layer3.1_non_local" in names  # as a map, and as a block
    assert "clips: 12; grid: 2x4x4; right: " in text
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000
    _check_resume(folder, words, stored)


def _check_resume(folder: Path, words: tuple[object, ...], stored: dict[str, Any]) -> None:
    """A clip that is missing is scored again, with the same numbers; others are not."""
    path = folder / "faithfulness.json"
    removed = stored["clips"].pop(3)
    stored["clips"][0]["target"] = 99  # survives, so that this clip was not scored again
    path.write_text(json.dumps(stored))
    called(*words, "--videos", "12")
    again = {clip["clip"]: clip for clip in json.loads(path.read_text())["clips"]}
    assert len(again) == 12
    assert again[removed["clip"]] == removed
    assert again[stored["clips"][0]["clip"]]["target"] == 99
    message = refused("faithful", *words, "--videos", "11")
    assert f"{path} holds results of other settings (videos); move or remove it" in message
    path.write_text('{"settings": 3}')
    assert f"{path} is damaged" in refused("faithful", *words, "--videos", "12")
    path.unlink()


def test_randomized_networks_keep_center_and_lose_saliency(
    trained: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithful_randomize, "NUM_SEEDS", 1)
    before = load(trained).state_dict()
    words = [trained, f"data.root={clips}", "--randomize", "--method", "hires_cam"]
    called(*words, "--videos", "6", "--against", trained)
    stored = json.loads((trained.parent / "faithful/randomization.json").read_text())
    (row,) = stored["clips"]
    assert list(row["cascade"]) == ["head", "layer4", "layer3", "layer2", "layer1", "stem"]
    center = [[1] * 6, [1] * 6, [0] * 6]
    assert all(row[mode][stage]["center"] == center for mode in row if mode != "clip"
               for stage in row[mode])  # fmt: skip
    assert stored["verdicts"]["center"] == "insensitive"
    assert stored["table"]["center"] == {
        "signed": [1, 1, 1],
        "absolute": [1, 1, 1],
        "own": [0, 0, 0],
        "upper": [1, 1, 1],
    }
    upper = torch.tensor(row["cascade"]["layer4"]["hires_cam"][0]).double().mean()
    assert stored["table"]["hires_cam"]["upper"][0] == pytest.approx(float(upper))
    assert stored["bands"]["center"] == [1, 1]
    same = [pytest.approx(1)] * 6  # the maps of the same weights
    assert stored["against"] == {"hires_cam": same, "center": same}
    assert torch.tensor(row["cascade"]["stem"]["hires_cam"][0]).mean() < 0.9
    assert (trained.parent / "faithful/randomize.png").stat().st_size > 10_000
    assert (
        "| map | head and layer4 redrawn | all stages redrawn |"
        in (trained.parent / "faithful/randomization.md").read_text()
    )
    after = load(trained).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_other_run_has_the_same_network(trained: Path, clips: Path, tmp_path: Path) -> None:
    words = [trained, f"data.root={clips}", "--randomize", "--maps", "layer3", "--videos", "2"]
    message = refused("faithful", *words, "--against", untrained(tmp_path, "non_local"))
    assert "has another network or other classes; with --randomize, name a run of the" in message


def test_known_motion_of_an_untrained_network(tmp_path: Path) -> None:
    run = untrained(tmp_path, "non_local", class_names=tuple(MOTIONS))
    words = (run, "--known-motion", "--videos", "2", "--method", "hires_cam", "--maps", "layer3")
    called(*words, "--out", tmp_path / "motion", "--device", "cpu")
    assert not (tmp_path / "faithful").exists()
    stored = json.loads((tmp_path / "motion/known_motion.json").read_text())
    assert [clip["motion"] for clip in stored["clips"]] == list(MOTIONS)[:2]
    for clip in stored["clips"]:
        assert list(clip["maps"]) == ["layer3.1_non_local", "hires_cam"]
        for scores in clip["maps"].values():
            assert 0 < scores["area"] < 1
            assert scores["lift"] == pytest.approx(scores["mass"] / scores["area"])
            assert 0.2 < scores["time_chance"] <= 0.5
            assert 0.5 < scores["right_object_chance"] < 1
    text = (tmp_path / "motion/known_motion.md").read_text()
    assert text.count("chance 0.") >= 8


def test_errors_come_before_the_work(tmp_path: Path, clips: Path, trained: Path) -> None:
    run = untrained(tmp_path, "non_local")
    root = f"data.root={clips}"
    assert "test videos of this run are unknown; set data.root=FOLDER" in refused("faithful", run)
    message = refused("faithful", run, "--known-motion")
    assert "--known-motion: the network does not know 'grows', a class of the demo" in message
    message = refused("faithful", trained, "--known-motion", "--randomize")
    assert "--randomize and --known-motion are two measurements" in message
    message = refused("faithful", trained, "--maps", "layer9")
    assert "--maps layer9: choose from layer2.1_non_local, layer3.1_non_local" in message
    assert "--method: 'gradcam' does not exist" in refused(
        "faithful", trained, "--method", "gradcam"
    )
    assert "--fill: 'black' does not exist" in refused(
        "faithful", trained, root, "--fill", "mean,black"
    )
    assert "--against: 'jumps' does not exist" in refused(
        "faithful", trained, root, "--against", "jumps"
    )


def test_score_lines_of_sheets_and_pages(
    trained: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same line, from the same code, in the titles of sheets and in the explorer's note."""
    from videoattn.cli.clip import Clip
    from videoattn.cli.explore import command as explore
    from videoattn.cli.visualize import command as visualize

    titles: list[str] = []

    def kept(clip: Clip, stem: str, found: object, title: str, **rest: object) -> list[Path]:
        titles.append(title)
        return []

    monkeypatch.setattr(Clip, "save", kept)
    video = clips / "test/moves_left/0000.mp4"
    folder = tmp_path / "out"
    visualize(trained, video, output=folder, score=True)
    visualize(trained, video, method="hires_cam", output=folder, score=True)
    lines = [title.split("; ")[-1] for title in titles]
    assert len(lines) == 5  # two blocks with two queries each, and a method
    page = explore(trained, [video], output=tmp_path / "a.html", score=True).read_text()
    for line in lines:
        assert line.startswith("hiding its top tenth costs ")
        assert line in page
    assert "top tenth" not in explore(trained, [video], output=tmp_path / "b.html").read_text()


SETTINGS = {"fills": ["mean"], "seed": 0}
ROW = {"clip": 0, "right": True, "grid": [2, 2, 2], "target": 1}


@pytest.mark.parametrize(
    "content",
    [
        3, [], {}, {"settings": 3, "clips": []}, {"settings": 3, "clips": [ROW]},
        {"settings": SETTINGS, "clips": 3}, {"settings": SETTINGS, "clips": [3]},
        {"settings": SETTINGS, "clips": [{"clip": "x"}]}, {"settings": SETTINGS, "clips": [ROW]},
        {"settings": SETTINGS, "clips": [{"clip": 0, "right": True}]},
        {"settings": SETTINGS, "clips": [ROW | {"grid": "x", "fills": {}}]},
        {"settings": SETTINGS, "clips": [ROW | {"fills": {"mean": {"random": 3}}}]},
        {"settings": SETTINGS, "clips": [ROW | {"fills": {"mean": {"random": {"deletion": "x"}}}}]},
    ],
    ids=str,
)  # fmt: skip
def test_results_that_were_not_written_by_us(content: object, tmp_path: Path) -> None:
    path = tmp_path / "faithfulness.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"faithfulness\.json is damaged \(.*\); remove it$") as e:
        write_removal(Results(path, SETTINGS))
    assert "\n" not in str(e.value)


def test_results_larger_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "faithfulness.json"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)
    message = "has more than 268,435,456 bytes, the limit; remove it"
    with pytest.raises(ValueError, match=message):
        Results(path, SETTINGS)
