from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from videoattn.cli import browse as module
from videoattn.cli.browse import command as browse
from videoattn.data.lists import Samples
from videoattn.data.synthetic import MOTIONS, write_demo_clips
from videoattn.engine.parallel import Parallel
from videoattn.engine.step import StepContext, update
from videoattn.explain.sheet import Clip, draw_clips
from videoattn.recipe.config import Config
from videoattn.recipe.data import make_loader, make_samples, make_to_video
from videoattn.recipe.load import load
from videoattn.recipe.objective import make_mix
from videoattn.recipe.training import make_settings


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browse")
    write_demo_clips(folder / "clips", num_train_per_class=1, num_test_per_class=1)
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: tiny\ndata: {{root: {folder / 'clips'}, num_workers: 0}}\n"
        "clip: {num_frames: 3, frame_stride: 4, height: 24, width: 28}\n"
        "augment: {flip_labels: {moves_left: moves_right, "
        "turns_clockwise: turns_counter_clockwise}}\n"
        "test: {short_side: 32}\ntrain: {batch_size: 4}\n"
    )
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Clip]:
    """Returns a list that receives the rows of each sheet."""
    rows: list[Clip] = []

    def keeping(clips: list[Clip], **words: object) -> Image.Image:
        rows.extend(clips)
        return draw_clips(clips, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "draw_clips", keeping)
    return rows


class Recorder(nn.Module):
    """A network that records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        torch.rand(3)  # as dropout does
        return self.weight.expand(len(x), -1)


def fed_in_training(config: Config, samples: Samples, num_steps: int) -> list[torch.Tensor]:
    """Returns the batches that the engine feeds a network in its first steps."""
    recorder, loader = Recorder(), make_loader(config, "train", Parallel(), samples)
    batches, train = loader.epoch(0), config.train
    for step in range(num_steps):
        update(
            recorder,
            torch.optim.SGD(recorder.parameters(), lr=0.0),
            [next(batches) for _ in range(train.accumulate_steps)],
            to_video=make_to_video(config.clip, torch.device("cpu")),
            settings=make_settings(
                config, 9, "float32", make_mix(config.augment, 8, train.num_clips)
            ),
            context=StepContext(config.seed, 0, step, step, str),
            parallel=Parallel(),
        )
    return recorder.seen


@pytest.mark.parametrize(
    ("words", "steps", "each"),
    [
        (["augment.color_jitter=0.4", "augment.rand_augment=2"], 1, 4),
        (["augment.mixup=0.5", "augment.cutmix=0.5"], 2, 2),
        (["augment.mixup=1.0", "train.num_clips=2"], 4, 1),
        (["augment.cutmix=1.0", "train.batch_size=2", "train.accumulate_steps=2"], 2, 2),
    ],
    ids=["plain", "mixed", "several clips", "accumulated"],
)
def test_the_sheet_shows_the_clips_of_training(
    recipe: Path, drawn: list[Clip], tmp_path: Path, words: list[str], steps: int, each: int
) -> None:
    config = load(recipe, words)
    samples = make_samples(config.data, "train")
    num_clips = config.train.num_clips
    browse(recipe, words, num=steps * each, output=tmp_path / "sheet.png")
    given = fed_in_training(config, samples, steps)[:: config.train.accumulate_steps]
    want = torch.cat([batch[: each * num_clips] for batch in given])
    assert len(drawn) == len(want) == steps * each * num_clips
    mean, std = (torch.tensor(c).view(3, 1, 1, 1) for c in (config.clip.mean, config.clip.std))
    for row, clip in zip(drawn, want, strict=True):
        shown = (row.frames.float().transpose(0, 1) / 255 - mean) / std
        torch.testing.assert_close(shown, clip, atol=0.5 / 255 / 0.225 + 1e-5, rtol=0)
    mixed = "mixup" in str(words) or "cutmix" in str(words)
    assert any("  +  " in row.heading for row in drawn) == mixed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 150 * len(drawn) // num_clips


def test_rows_name_the_clip(recipe: Path, drawn: list[Clip], tmp_path: Path) -> None:
    browse(recipe, num=8, output=tmp_path / "new" / "sheet.png")
    swapped = {"moves_left": "moves_right", "turns_clockwise": "turns_counter_clockwise"}
    swapped |= {b: a for a, b in swapped.items()}
    mirrored = 0
    for row in drawn:
        *said, path = row.details.split("  ·  ")
        _, name, file = path.split("/")
        assert file == "0000.mp4"
        assert said in ([], ["mirrored"])
        mirrored += bool(said)
        assert row.heading == (swapped.get(name, name) if said else name)
        numbers = [int(number) for number, _ in row.labels]
        assert numbers == [numbers[0], numbers[0] + 4, numbers[0] + 8]
        assert all(time.endswith(" s") for _, time in row.labels)
    assert 0 < mirrored < 8


@pytest.mark.parametrize(
    ("words", "rows", "first", "last", "size"),
    [
        ([], 1, "", "", (24, 28)),
        (["test.num_crops=3"], 3, "crop 1 of 3", "crop 3 of 3", (24, 28)),
        (["test.num_clips=2"], 2, "clip 1 of 2", "clip 2 of 2", (24, 28)),
        (["test.num_crops=0"], 1, "", "", (32, 32)),
        (
            ["test.num_clips=5", "test.num_crops=3"], 3,
            "clip 3 of 5  ·  crop 1 of 3", "clip 3 of 5  ·  crop 3 of 3", (24, 28),
        ),
    ],
)  # fmt: skip
def test_each_view_of_a_test_video_is_a_row(
    recipe: Path, drawn: list[Clip], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    words: list[str], rows: int, first: str, last: str, size: tuple[int, int],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    browse(recipe, words, split="test", num=2)
    assert Path("tiny_test.png").exists()
    assert len(drawn) == 2 * rows
    ends = ["test/grows/0000.mp4", "test/turns_counter_clockwise/0000.mp4"]
    assert [row.heading for row in drawn] == [
        *["grows"] * rows,
        *["turns_counter_clockwise"] * rows,
    ]
    assert drawn[0].details == "  ·  ".join(filter(None, [first, ends[0]]))
    assert drawn[-1].details == "  ·  ".join(filter(None, [last, ends[1]]))
    assert all(row.frames.shape == (3, 3, *size) for row in drawn)


def test_a_video_that_fails_is_named(
    recipe: Path, drawn: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MOTIONS:
        broken = tmp_path / "test" / name / "a.mp4"
        broken.parent.mkdir(parents=True)
        broken.write_bytes(b"")
    (tmp_path / "train").symlink_to(recipe.parent / "clips" / "train")
    words = [f"data.root={tmp_path}"]
    with pytest.raises(ValueError, match=r"^no video could be decoded; find broken files"):
        browse(recipe, words, split="test", output=tmp_path / "sheet.png")
    assert f"failed: {broken}: the file is empty (0 bytes)" in capsys.readouterr().out
    assert not drawn


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda recipe: browse(recipe, split="val"),
            "^--split: 'val' does not exist; choose from train, test$",
        ),
        (
            lambda recipe: browse(recipe, ["test.num_crops=10"], split="test"),
            "^test.num_crops: five of ten crops are mirrored, and the mirror image of 'moves_left' "
            "is 'moves_right'; use 3, 1 or 0$",
        ),
        (
            lambda recipe: browse(recipe, ["train.num_clips=3"]),
            "^train.batch_size: got 4; need a multiple of train.num_clips=3 ",
        ),
    ],
)
def test_errors(recipe: Path, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(recipe)


def test_classes_that_differ_by_direction_need_a_pair(recipe: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text(recipe.read_text().replace(", turns_clockwise: turns_counter_clockwise", ""))
    with pytest.raises(
        ValueError, match=r"^augment.flip: a mirrored clip of 'turns_clockwise' is one of "
        r"'turns_counter_clockwise' \(the only such pair\); set flip to false, or flip_labels",
    ):  # fmt: skip
        browse(plain)
    browse(plain, ["augment.flip=false"], num=1, output=tmp_path / "sheet.png")


def test_a_sheet_is_complete_or_absent(recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    target.mkdir()
    with pytest.raises(OSError, match=r"cannot write .*sheet\.png: .*directory"):
        browse(recipe, num=1, output=target)
    assert list(tmp_path.iterdir()) == [target]
