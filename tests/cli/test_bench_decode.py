from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.data.conftest import MakeClip, make_clip  # noqa: F401 (a fixture)
from videoattn.cli import bench_decode
from videoattn.cli.bench_decode import bench_fuzz, bench_memory, resident, videos_under
from videoattn.cli.bench_decoders import RIGHT, bench_decoders
from videoattn.data import fuzz
from videoattn.data.workers import in_processes


@pytest.fixture
def clips(make_clip: MakeClip, tmp_path: Path) -> Path:  # noqa: F811
    make_clip("clips/a.mp4", 12, size=(32, 64))
    make_clip("clips/b.mkv", 12, size=(32, 64))
    make_clip("clips/c.avi", 12, size=(32, 64), codec="mpeg4")
    make_clip("clips/d.mpg", 12, size=(32, 64), codec="mpeg1video")
    return tmp_path / "clips"


def test_damaged_copies_end_in_frames_or_errors(clips: Path, capfd: pytest.CaptureFixture) -> None:
    found = bench_fuzz(clips, decoder="pyav", count=60, limit=60.0, num_workers=1)
    counts = Counter(outcome.what for outcome in found)
    assert set(counts) == {fuzz.SAME, fuzz.ERROR}
    assert counts.total() == 60
    assert min(counts.values()) >= 10
    text = capfd.readouterr().out
    assert "60 damaged copies of 4 videos (seed 0)" in text.replace("\n", " ")
    assert str(counts[fuzz.ERROR]) in text


def test_mutants_are_the_same_for_the_same_seed(clips: Path) -> None:
    sources = videos_under(clips)
    made = [fuzz.mutant_bytes(sources, number, seed=1) for number in range(40)]
    assert made == [fuzz.mutant_bytes(sources, number, seed=1) for number in range(40)]
    assert made[0] != fuzz.mutant_bytes(sources, 0, seed=2)
    originals = [path.read_bytes() for path in sources]
    assert sum(mutant in originals for mutant in made) == 0
    assert len(set(made)) == 40


def test_zero_length_parts() -> None:
    data = b"\0\0\0\x10ftypisom" + b"\0\0\1\0moov" + bytes(200)
    made = {fuzz._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
    assert len(made) == 10  # two parts, five lengths
    assert data.replace(b"\0\0\1\0moov", b"\0\0\0\0moov") in made
    data = b"RIFF\x10\0\0\0AVI LIST\x20\0\0\0hdrl" + bytes(200)
    made = {fuzz._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
    assert data.replace(b"LIST\x20\0\0\0", b"LIST\0\0\0\0") in made


def die(mutant: fuzz.Mutant, **_: object) -> tuple[str, str, float]:
    if mutant.number == 1:
        import os

        os.kill(os.getpid(), 9)
    if mutant.number == 2:
        import time

        time.sleep(60)
    return fuzz.OTHER, "a frame differs by 9 of 255", 0.5


def test_crashes_and_hangs_are_counted_and_kept(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(fuzz, "_attempt", die)
    keep = tmp_path / "keep"
    found = bench_fuzz(clips, decoder="decord", count=4, limit=2.0, num_workers=1, keep=keep)
    assert [outcome.what for outcome in found] == [fuzz.OTHER, fuzz.CRASH, fuzz.HANG, fuzz.OTHER]
    assert len(list(keep.iterdir())) == 4
    sources = videos_under(clips)
    kept = keep / f"decord-1{sources[1].suffix}"
    assert kept.read_bytes() == fuzz.mutant_bytes(sources, 1, seed=0)
    text = capfd.readouterr().out
    assert (
        f"decord: crash (ended the process that read it (SIGKILL)): mutant 1 of {sources[1]}"
        in text
    )
    assert f"decord: hang (took more than 2 s): mutant 2 of {sources[2]}" in text


def test_memory_stays(clips: Path, tmp_path: Path) -> None:
    measured = resident(videos_under(clips), "pyav", 400, points=40)
    assert len(measured) == 40
    # 320 decodes; what opens a container each time and forgets it leaves about 40 KiB of each.
    assert max(measured[8:]) - measured[8] < 6
    picture = tmp_path / "plots" / "memory.png"
    grown = bench_memory(clips, picture, decoder="pyav", count=8)
    assert len(grown["pyav"]) == 8
    assert picture.stat().st_size > 5000


def test_table_of_files_and_decoders(clips: Path, capfd: pytest.CaptureFixture) -> None:
    for name in ("decord", "torchcodec"):
        pytest.importorskip(name, reason=f"install videoattn[{name}]")
    (clips / "empty.mp4").touch()
    (clips / "frames.json").write_text(
        '{"a.mp4": {"frames": 13, "mean_gray": []}, "b.mkv": {"frames": 12, "mean_gray": [99.0]}, '
        '"empty.mp4": {"frames": 3, "mean_gray": []}}'
    )
    rows = {row.name: row for row in bench_decoders(clips, markdown=True)}
    assert rows["a.mp4"].cells == ("WRONG: 12 frames instead of 13", RIGHT, RIGHT)
    assert rows["b.mkv"].cells[0].startswith("WRONG: a grey level is off by 8")
    assert rows["c.avi"].cells == (RIGHT, RIGHT, RIGHT)
    no = "error: is not exact in files of the kind mpeg"
    assert rows["d.mpg"].cells == (RIGHT, no, no)
    assert rows["d.mpg"].kind == "mpeg, mpeg1video yuv420p, 12 frames"
    assert rows["empty.mp4"].cells[0] == "WRONG: error: the file is empty (0 bytes)"
    assert f"| `d.mpg` | mpeg, mpeg1video yuv420p, 12 frames | right | {no} | {no} |" in (
        capfd.readouterr().out.splitlines()
    )


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no video$"):
        videos_under(tmp_path)
    with pytest.raises(
        ValueError, match=r"^decoder: got 'x'; choose from all, pyav, decord, torchcodec$"
    ):
        bench_decode.chosen("x")
    (tmp_path / "big.mp4").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"holds no video of 10 bytes or less$"):
        bench_fuzz(tmp_path, max_bytes=10)
    with pytest.raises(ValueError, match="got 0 workers"):
        next(in_processes(die, [1], num_workers=0, seconds=1.0))
