"""Damaged copies are reproducible, and crashes and hangs are counted."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fuzz
import fuzz_bytes
import numpy as np
import pytest
from common import videos_under

from tests.data.conftest import decode_all
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
    made = {fuzz_bytes._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
    assert len(made) == 10  # two chunks, five lengths
    assert data.replace(b"\0\0\1\0moov", b"\0\0\0\0moov") in made
    data = b"RIFF\x10\0\0\0AVI LIST\x20\0\0\0hdrl" + bytes(200)
    made = {fuzz_bytes._relength(data, b"", np.random.default_rng(seed)) for seed in range(60)}
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


def test_every_reader_reads_its_own_input(tmp_path: Path) -> None:
    for name, reader in fuzz.READERS.items():
        folder = tmp_path / name
        folder.mkdir()
        reader.make(folder)
        assert list(folder.glob(reader.files)), name
        reader.read(folder)


def test_damaged_inputs_end_in_results_or_errors(tables: Tables) -> None:
    fuzz.fuzz_readers(count=60, workers=1, limit=60.0)
    (table,) = tables()
    assert [row["reader"] for row in table] == list(fuzz.READERS)
    total = Counter({key: sum(int(row[key]) for row in table) for key in ("result", "error")})
    assert total["result"] >= 10
    assert total["error"] >= 10
    assert sum(int(row["damaged or too large"]) for row in table) + total.total() == 60


def test_a_damaged_input_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("lists", "shards"):
        (tmp_path / name).mkdir()
        fuzz.READERS[name].make(tmp_path / name)
        made = []
        for place, seed in [("a", 3), ("b", 3), ("c", 4)]:
            fuzz.damaged_copy(name, tmp_path / name, tmp_path / place, seed=seed, number=7)
            files = sorted(path for path in (tmp_path / place).rglob("*") if path.is_file())
            made.append([path.read_bytes() for path in files])
            shutil.rmtree(tmp_path / place)
        assert made[0] == made[1] != made[2]


def large(folder: Path) -> object:
    return bytearray(2**31)


def wrong(folder: Path) -> object:
    return {}["x"]


def killed(folder: Path) -> object:
    os.kill(os.getpid(), 9)
    return None


@pytest.mark.parametrize(
    ("read", "kind"), [(large, "damaged or too large"), (wrong, "KeyError"), (killed, "crash")]
)
def test_faults_of_readers_are_counted(
    read: Callable[[Path], object], kind: str, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = fuzz.READERS["class list"]._replace(read=read)
    monkeypatch.setitem(fuzz.READERS, "class list", reader)
    fuzz.fuzz_readers(count=3, reader="class list", workers=1)
    ((row,),) = tables()
    assert row[kind] == "3"


def test_unusual_videos(tmp_path: Path) -> None:
    """Each has its form, and decodes exactly."""
    fuzz.write_unusual(tmp_path / "made")
    found = {path.name: path for path in (tmp_path / "made").iterdir()}
    assert found.keys() == fuzz.UNUSUAL.keys()
    forms = {"cover.mp4": b"covr", "fragments.mp4": b"moof", "late_start.mp4": b"elst"}
    for name, form in forms.items():
        assert form in found[name].read_bytes()
    for name, path in found.items():
        every = decode_all(path)
        assert len(every) == (35 if name == "skipped_start.mp4" else 40), name
        for number in (0, 11, 12, 20, 34):
            assert (decode(path, [number])[0] == every[number]).all(), (name, number)
