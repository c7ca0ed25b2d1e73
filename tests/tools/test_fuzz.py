"""Damaged copies are reproducible, and crashes and hangs are counted."""

import os
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
from common import videos_under

from tests.tools.conftest import Tables
from tests.tools.test_bench import clips, make_clip  # noqa: F401 (fixtures)
from videoattn.data.decode import decode
from videoattn.data.workers import in_processes


def test_damaged_copies_end_in_frames_or_errors(clips: Path, tables: Tables) -> None:  # noqa: F811
    fuzz.main(clips, decoder="pyav", count=60, limit=60.0, workers=1)
    (table,) = tables()
    (row,) = table
    assert int(row["frames"]) >= 10
    assert int(row["DecodeError"]) >= 10
    assert int(row["frames"]) + int(row["DecodeError"]) == 60


def test_the_reference_reads_the_same_frames(clips: Path) -> None:  # noqa: F811
    indices = np.array([0, 3, 11])
    for path in videos_under(clips):
        reference = fuzz._read_from_start(path, indices)
        assert reference is not None
        assert (reference == decode(path, indices)).all()


def test_mutants_are_the_same_for_the_same_seed(clips: Path) -> None:  # noqa: F811
    sources = videos_under(clips)
    made = [fuzz.mutant_bytes(sources, number, seed=1) for number in range(40)]
    assert made == [fuzz.mutant_bytes(sources, number, seed=1) for number in range(40)]
    assert made[0] != fuzz.mutant_bytes(sources, 0, seed=2)
    originals = [path.read_bytes() for path in sources]
    assert sum(mutant in originals for mutant in made) == 0
    assert len(set(made)) == 40


def test_lengths_of_chunks_are_damaged() -> None:
    data = b"\0\0\0\x10ftypisom" + b"\0\0\1\0moov" + bytes(200)
    made = {fuzz._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
    assert len(made) == 10  # two chunks, five lengths
    assert data.replace(b"\0\0\1\0moov", b"\0\0\0\0moov") in made
    data = b"RIFF\x10\0\0\0AVI LIST\x20\0\0\0hdrl" + bytes(200)
    made = {fuzz._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
    assert data.replace(b"LIST\x20\0\0\0", b"LIST\0\0\0\0") in made


def die(mutant: fuzz.Mutant, **_: object) -> tuple[str, str, float]:
    if mutant.number == 1:
        os.kill(os.getpid(), 9)
    if mutant.number == 2:
        time.sleep(60)
    return fuzz.OTHER, "a frame differs by 9 of 255", 0.5


def test_crashes_and_hangs_are_counted_and_kept(
    clips: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fuzz, "_attempt", die)
    keep = tmp_path / "keep"
    fuzz.main(clips, decoder="pyav", count=4, limit=2.0, workers=1, keep=keep)
    text = capsys.readouterr().out
    assert "| pyav | 0 | 0 | 2 | 1 | 1 | 2.0 |" in text.splitlines()
    assert len(list(keep.iterdir())) == 4
    sources = videos_under(clips)
    kept = keep / f"pyav-1{sources[1].suffix}"
    assert kept.read_bytes() == fuzz.mutant_bytes(sources, 1, seed=0)
    crash = f"pyav: crash (ended the process that read it (SIGKILL)): mutant 1 of {sources[1]}"
    assert crash in text
    assert f"pyav: hang (took more than 2 s): mutant 2 of {sources[2]}" in text


def test_workers_are_checked() -> None:
    with pytest.raises(ValueError, match="got 0 and 1; need 1 or more"):
        next(in_processes(die, [1], num_workers=0, seconds=1.0))
