"""The documentation contains the tables that the script prints."""

import json
from pathlib import Path

import evidence
import pytest
import write_docs
import yaml
from typer.testing import CliRunner

from tests.tools.conftest import Tables
from tests.tools.test_bench import clips, make_clip  # noqa: F401 (fixtures)
from videoattn.attention.systems import SYSTEMS
from videoattn.weights import PUBLIC

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "attention.md"


def test_the_page_has_the_table_of_attention_systems() -> None:
    table = CliRunner().invoke(write_docs.app, ["attention"]).output.strip()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(SYSTEMS)
    assert table in PAGE.read_text(), "update it: python tools/write_docs.py attention"


def test_the_page_of_evidence_has_the_stored_results() -> None:
    page = evidence.PAGE.read_text()
    assert evidence.filled(page) == page, "update it: python tools/write_docs.py evidence"
    stored = {path.stem for path in evidence.FOLDER.glob("*.json")}
    assert len(stored) >= 4
    assert all("machine" in json.loads((evidence.FOLDER / f"{x}.json").read_text()) for x in stored)


def test_a_run_is_stored_and_fills_the_tables(tmp_path: Path) -> None:
    run = tmp_path / "task_match"
    run.mkdir()
    attention = {"name": "similarity", "options": {"similarity": "cosine", "key_pool": None}}
    config = {
        "seed": 3,
        "model": {"name": "c2d_r18", "weights": "runs/task_cue", "attention": attention},
        "train": {"batch_size": 32, "num_epochs": 2, "lr": 0.003},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"kind": "validation", "step": 250 * k, "epoch": k, "videos": 500, "video_accuracy": k / 3}
        for k in (1, 2)
    ]
    lines.insert(0, {"kind": "train", "step": 250, "epoch": 1, "seen": 8000})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = dict.fromkeys(evidence.TRUTH, 0.25) | {"clips": 9, "area": 0.018}
    (run / "truth.json").write_text(json.dumps({"layer3.1_similarity, correct": scores}))
    record = evidence.run_record(run, {"task": "match", "identities": 8})
    evidence.store("a", record, tmp_path)
    page = "".join(
        f"<!-- table: {kind} match -->\n\nold\n<!-- end -->\n" for kind in ("accuracy", "truth")
    )
    text = evidence.filled(page, tmp_path)
    assert "| 8 | 8,000 | similarity, cosine | 3 | 33.3 | 66.7 | - |" in text
    row = "layer3.1_similarity, correct | 9 | 25.0 | 1.8 | 25.0 | 25.0 | 25.0 | 25.0 |"
    assert f"| 8 | 8,000 | similarity, cosine | 3 | {row}" in text
    assert "old" not in text
    assert evidence.filled(text, tmp_path) == text


def test_the_page_of_public_models() -> None:
    """Counting the multiply-adds of all takes long; a few rows are counted."""
    page = (DOCS / "models.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and line.count("|") > 9]
    assert [row.split("`")[1] for row in rows] == list(PUBLIC)
    assert page.startswith(write_docs.MODELS), "update it: python tools/write_docs.py models"
    for name in ("torchvision/resnet18", "pyslowfast/C2D_8x8_R50", "mmaction2/tsm_r50_nl_gaussian"):
        cells = write_docs.model_row(name, PUBLIC[name])
        assert f"| {' | '.join(cells)} |" in rows
    for name, row in PUBLIC.items():
        assert (f"`videoattn predict {name} some.mp4`" in page) == (row.url is not None)
        assert row.url is None or f"]({row.url})" in page
        assert row.file.absent in page


def test_the_table_of_weights(tables: Tables) -> None:
    write_docs.weights()
    (table,) = tables()
    assert [row["name"].strip("`") for row in table] == list(PUBLIC)
    (row,) = (row for row in table if row["top-1 (views)"].startswith("[73.66 % (8 segments x 10"))
    assert row["attention"] == "5 non-local (gaussian)"
    assert row["frames x stride"] == "8 segments"
    assert row["file"].startswith("[pth](https://")


def test_the_table_of_decoders(clips: Path, tables: Tables) -> None:  # noqa: F811
    for name in ("decord", "torchcodec"):
        pytest.importorskip(name, reason=f"install videoattn[{name}]")
    write_docs.decoders(clips)
    (table,) = tables()
    assert {row["file"]: row["pyav"] for row in table}["`a.mp4`"] == "right"
