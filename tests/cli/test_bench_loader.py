import os
import re
import shutil
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from tests.data.conftest import MakeClip, make_clip  # noqa: F401
from videoattn.cli import bench_loader as bench
from videoattn.cli.app import main
from videoattn.cli.bench_loader import find_videos
from videoattn.data.decode.others import import_torchcodec
from videoattn.data.lists import Samples


def test_tables(
    make_clip: MakeClip,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("decord", reason="the benchmark compares with decord")
    for i in range(3):
        make_clip(f"a/{i}.mp4", 12, size=(64, 64))  # decord fails on odd row sizes
    (tmp_path / "a" / "text.avi").write_text("no video")
    make_clip("a/short.mp4", 5)
    monkeypatch.setattr(bench.out, "width", 200)
    import_torchcodec.cache_clear()  # another test may have found it
    for program in ("pytorchvideo.data", "torchcodec"):
        monkeypatch.setitem(sys.modules, program, None)
    monkeypatch.setattr("videoattn.cli.bench_loader_sides.shutil.which", lambda name: None)
    bench.bench_loader(tmp_path, max_workers=0, seconds=0.01)
    said = capsys.readouterr().out
    for setting in bench.SETTINGS:
        rows = re.findall(rf"{setting} +│ (.+?) +│ ([0-9.]+) +│ ([0-9.]+)", said)
        assert [row[0] for row in rows[:3]] == [bench.BASELINE, "ours, pyav", "ours, decord"]
        assert min(float(value) for row in rows for value in row[1:]) > 0
        assert float(rows[0][2]) == 1.0
        both = rf"{setting} +│ {bench.BASELINE} +(?:│ [0-9.]+ +│ 1\.00 +){{2}}"
        assert re.search(both, said)  # on all cores, and on one
        kinds = ["as they are", "re-encoded", "two clips of each", "both"]
        assert [row[0] for row in rows[-4:]] == kinds
    assert f"3 videos; in turns, 0 s a side; {os.cpu_count()} cores" in said
    for name, what in [
        ("ours, torchcodec", "decoder torchcodec is not installed"),
        ("pytorchvideo, LabeledVideoDataset", "pytorchvideo is not installed"),
        ("FFmpeg, decoding alone", "the ffmpeg program is not installed"),
    ]:
        assert f"missing: {name}: {what}" in said


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux can tell the cores")
def test_one_core_and_thread_for_a_while() -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    with bench._one_thread(), bench._one_core():
        assert len(os.sched_getaffinity(0)) == 1
        assert torch.get_num_threads() == 1
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rates_by_a_clock_that_ticks(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second goes by whenever the clock is looked at: 9 steps in a turn of 11."""
    monkeypatch.setattr(bench.time, "perf_counter", count().__next__)
    sides = {"one": lambda epoch: iter([1] * 5), "two": lambda epoch: iter([2] * 5)}
    rates = bench.compare(sides, 30.0, num_workers)
    assert rates == {"one": 9 / 11, "two": 18 / 11}


def test_ffmpegs_own_time(make_clip: MakeClip, tmp_path: Path) -> None:  # noqa: F811
    make_clip("a/0.mp4", 40, size=(64, 64))
    samples, sampler = find_videos(tmp_path), bench.SETTINGS["8 segments"]
    if shutil.which("ffmpeg"):
        assert bench.ffmpeg_rate(samples, sampler, 0.01) > 0
    else:
        with pytest.raises(ImportError, match=r"^the ffmpeg program is not installed \(apt-get"):
            bench.ffmpeg_rate(samples, sampler, 0.01)


def test_pytorchvideos_clips(make_clip: MakeClip, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("pytorchvideo", reason="the benchmark compares with pytorchvideo")
    make_clip("a/0.mp4", 30, size=(64, 64))
    clips = bench.pytorchvideo_clips(find_videos(tmp_path), 1.0, 8)
    assert sum(clips(0)) == 1


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match=f"^data root {re.escape(str(missing))} does not exist; "):
        find_videos(missing)
    with pytest.raises(ValueError, match=r"holds no video of 8 frames or more that decodes$"):
        find_videos(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: .* holds no video of 8 frames or more"):
        main(["bench", "loader", str(tmp_path)])
    monkeypatch.setitem(sys.modules, "decord", None)
    samples = Samples(tmp_path, paths=["a"], labels=[0], class_names=["any"])
    with pytest.raises(
        ImportError,
        match=r"^the loader benchmark compares with decord, which is not installed; "
        r"install the extra: pip install 'videoattn\[decord\]'$",
    ):
        bench.decord_clips(samples, bench.SETTINGS["dense 8x8"])
