"""tools/evidence.py: results of a task as files, errors as rows, and the table."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tools.conftest import Tables
from videoattn.data.tasks.files import write_task

evidence: Any = importlib.import_module("evidence")
SMALL = [
    "clip.height=32",
    "clip.width=32",
    "test.short_side=32",
    "model.options.width=4",
    "train.num_epochs=1",
    "train.batch_size=4",
    "train.validate_every=0",
    "data.num_workers=0",
]


def run(*words: str) -> Any:
    changes = [word for change in SMALL for word in ("--change", change)]
    return CliRunner().invoke(evidence.app, ["run", *words, *changes])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence")
    write_task("match", folder / "match/clips", num_train=4, num_test=4)
    return folder


def test_results_are_files_that_are_not_made_again(runs: Path, tables: Tables) -> None:
    results = runs / "results"
    words = ["match", "--seeds", "1", "--folder", str(runs), "--results", str(results)]
    words += ["--system", "none", "--system", "non_local"]
    assert run(*words, "--shard", "0/2").exit_code == 0
    bare = results / "match_none_seed0.json"
    assert [path.name for path in results.iterdir()] == [bare.name]
    kept = bare.read_bytes()
    assert run(*words).exit_code == 0
    assert bare.read_bytes() == kept
    found = json.loads((results / "match_non_local_seed0.json").read_text())
    assert found["num_videos"] == 4
    assert found["truth"][
        "layer2.1_non_local, " + ("wrong" if not found["video_accuracy"] else "correct")
    ]
    # A failed run is a row.
    (results / "match_cbam_seed0.json").write_text(
        json.dumps({"task": "match", "system": "cbam", "seed": 0, "error": "out of paper"})
    )
    evidence.write(results)
    (table,) = tables()
    rows = {row["system"]: row for row in table}
    accuracy = 100 * json.loads(kept)["video_accuracy"]
    assert rows["none"]["accuracy: mean (range)"].startswith(f"{accuracy:.1f} %")
    assert rows["none"]["seeds"] == "1 of 1"
    assert rows["cbam"]["accuracy: mean (range)"] == "failed: out of paper"
    assert rows["cbam"]["seeds"] == "0 of 1"


def test_every_recipe_is_built_before_the_first_run(runs: Path) -> None:
    words = ["match", "--folder", str(runs), "--results", str(runs / "none")]
    failed = run(*words, "--system", "none", "--system", "hard")
    assert "--system: 'hard' does not exist" in str(failed.exception)
    assert not (runs / "none").exists()
