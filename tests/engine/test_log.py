import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from videoattn.engine.failures import append_failures, keep_failures
from videoattn.engine.progress import Clock, Display
from videoattn.engine.trackers import JsonLines, TensorBoard, Tracker
from videoattn.types import Failure


def test_a_log_file_gets_a_plain_line_from_time_to_time() -> None:
    out = io.StringIO()
    long = "epoch 1/2  " + "x" * 200
    with Display(console=Console(file=out, width=80), every_seconds=0.0) as display:
        display.update(long, done=1, total=2)
    with Display(console=Console(file=out, width=80), every_seconds=60.0) as display:
        display.update("too soon", done=1, total=2)
        display.line("loss [0.5] stays")
    assert out.getvalue() == f"{long}\nloss [0.5] stays\n"


def test_a_terminal_gets_a_live_line() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Display(console=console) as display:
        display.update("epoch 1/2  loss 0.5", done=1, total=2)
    assert "epoch 1/2  loss 0.5" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_a_disabled_display_prints_nothing() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    with Display(enabled=False, console=console, every_seconds=0.0) as display:
        display.update("line", done=1, total=2)
        display.line("line")
    assert not out.getvalue()


def test_the_clock_counts() -> None:
    clock = Clock(steps_left=3)
    clock.started -= 10.0
    clock.step(clips=20, waited=4.0)
    assert 1.9 < clock.clips_per_second <= 2.0
    assert 0.39 < clock.wait_share <= 0.4
    assert clock.time_left.seconds == 20


def test_trackers_write_json_lines_and_tensorboard_events(tmp_path: Path) -> None:
    for tracker in (JsonLines(tmp_path / "metrics.jsonl"), TensorBoard(tmp_path / "tensorboard")):
        assert isinstance(tracker, Tracker)
        tracker.write("train", 1, {"loss": 0.5, "accuracy": None})
        tracker.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"kind": "train", "step": 1, "loss": 0.5, "accuracy": None}
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
    assert b"train/accuracy" not in events.read_bytes()


def test_a_resumed_log_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in (1, 2, 3):
        log.write("train", step, {"loss": 1.0})
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')  # the process was killed here
    log = JsonLines(path, resumed_at=2)
    log.write("train", 3, {"loss": 2.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_step_that_will_be_validated_again_loses_its_validation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    log.write("train", 2, {})
    log.write("validation", 2, {})
    for validated, count in ((True, 2), (False, 1)):
        JsonLines(path, resumed_at=2, validated=validated)
        assert len(path.read_text().splitlines()) == count


def test_failures_are_appended(tmp_path: Path) -> None:
    for index in (3, 5):
        append_failures(tmp_path / "skipped.jsonl", [Failure(index, "a b.mp4", "no stream")])
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"index": 5, "path": "a b.mp4", "reason": "no stream"}


@pytest.mark.parametrize(
    "line",
    ['{"kind": "train"}', '{"kind": 3, "step": 1}', '{"kind": "train", "step": "9"}',
     '{"a":' * 50_000 + "}", "[1, {}", '{"kind": "train", "step": null}'],
)  # fmt: skip
def test_damaged_records_of_a_run_are_named(line: str, tmp_path: Path) -> None:
    """The files may have come with a shared folder."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "train", "step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is damaged") as raised:
        JsonLines(path, resumed_at=3)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line", ['{"index": "1", "path": "a", "reason": "b"}', '{"index": 1, "path": []}', "{}"]
)
def test_damaged_lists_of_skipped_videos_are_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"skipped\.jsonl line 1 is damaged"):
        keep_failures(path, [1])
    assert path.read_text() == f"{line}\n"
