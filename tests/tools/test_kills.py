"""A small part of what tools/kills.py measures."""

import os
import subprocess
import sys
from pathlib import Path

import kills
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("stop", "count"), [("KILL", 6), ("TERM", 3)])
def test_killed_runs_end_as_the_uninterrupted_one(tmp_path: Path, stop: str, count: int) -> None:
    """Files and shards, 0 and 2 loader processes, 1 and 2 training processes."""
    words = ["--folder", str(tmp_path / "x"), "--kills", str(count), "--stop", stop]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/kills.py"), *words, "--settings", "3"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("|")
    ]
    assert rows[0] == ["instant", "outcome", "kills"]
    assert sum(int(number) for _, _, number in rows[2:]) == count
    assert {instant for instant, _, _ in rows[2:]} <= set(kills.INSTANTS)
    assert all(outcome.endswith("; equal") for _, outcome, _ in rows[2:])


def test_a_difference_of_one_bit_is_found() -> None:
    one = {"model": {"a": torch.ones(3)}, "metrics": [{"loss": 0.5}], "best": {"epoch": 1}}
    assert kills.equal(one, {**one, "model": {"a": torch.ones(3)}})
    last_bit = torch.nextafter(torch.ones(3), torch.tensor(2.0))
    assert not kills.equal(one, {**one, "model": {"a": last_bit}})
    assert not kills.equal(one, {**one, "model": {"b": torch.ones(3)}})
    assert not kills.equal(one, {**one, "metrics": [{"loss": 0.25}]})
    assert not kills.equal(one, {**one, "metrics": []})
