"""The advice about waiting for data, from the times that a loader measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.data.conftest import MakeClip
from tests.data.test_dataset import train_set
from videoattn.data.lists import Samples
from videoattn.data.loader import ClipLoader
from videoattn.recipe import experiment
from videoattn.recipe.config import AugmentConfig, Config, DataConfig

CONFIG = Config(name="x", data=DataConfig(root="clips", num_workers=2))
COLORS = replace(CONFIG, augment=AugmentConfig(color_jitter=0.4))


def loader(decode: float, transform: float, monkeypatch: pytest.MonkeyPatch) -> ClipLoader:
    """Returns a loader that has measured these times, on a machine with 16 cores."""
    dataset = train_set(Samples(Path(), paths=["a.mp4"], labels=[0], class_names=["a"]))
    monkeypatch.setattr(dataset, "seconds_per_video", lambda: (decode, transform))
    monkeypatch.setattr(experiment, "num_cores", lambda: 16)
    return ClipLoader(dataset, batch_size=1, shuffle=False)


@pytest.mark.parametrize(
    ("config", "share", "times", "advice"),
    [
        (CONFIG, 0.5, (0.03, 0.01), "try data.num_workers=4 (16 cores for each process)"),
        (CONFIG, 0.99, (0.03, 0.01), "try data.num_workers=16 (16 cores for each process)"),
        (replace(CONFIG, data=replace(CONFIG.data, num_workers=16)), 0.4, (0.03, 0.01),
         "try train.num_clips=2, or smaller copies of the videos (`prepare reencode`)"),
        (replace(COLORS, data=replace(CONFIG.data, num_workers=16)), 0.4, (0.01, 0.03),
         "try fewer color augmentations (augment.rand_augment, augment.color_jitter)"),
    ],
)  # fmt: skip
def test_advice_names_the_setting_that_the_measurements_point_to(
    config: Config,
    share: float,
    times: tuple[float, float],
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment.show_data_advice(config, share, loader(*times, monkeypatch))
    assert " ".join(capsys.readouterr().out.split()) == (
        f"{100 * share:.0f} % of the time was spent waiting for data: with "
        f"data.num_workers={config.data.num_workers}, a video took {1e3 * times[0]:.0f} ms to "
        f"decode and {1e3 * times[1]:.0f} ms to transform; {advice}"
    )


def test_no_advice_at_20_percent_or_without_measurements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.show_data_advice(CONFIG, 0.2, loader(0.03, 0.01, monkeypatch))
    experiment.show_data_advice(CONFIG, 0.9, loader(0.0, 0.0, monkeypatch))
    assert capsys.readouterr().out == ""


def test_times_are_means_over_videos(make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip("a.mp4", 12)
    dataset = train_set(Samples(tmp_path, paths=["a.mp4"], labels=[0], class_names=["a"]))
    assert dataset.seconds_per_video() == (0.0, 0.0)
    for _ in range(3):
        assert dataset[0, 0].fps == 25
    decode, transform = dataset.seconds_per_video()
    assert 0 < decode < 1
    assert 0 < transform < 1
