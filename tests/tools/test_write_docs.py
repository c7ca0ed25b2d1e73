"""The documentation contains the tables that the script prints."""

import json
import re
from pathlib import Path

import evidence
import figures
import pytest
import write_docs
import yaml
from typer.testing import CliRunner

from tests.tools.conftest import Tables
from tests.tools.test_bench import clips, make_clip  # noqa: F401 (fixtures)
from videoattn.attention.systems import SYSTEMS
from videoattn.cli.comparison import TRUTH_COLUMNS, Result
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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on `match`, with the truth of two checkpoints and tests on another gap."""
    run = tmp_path / "task_match"
    (run / "gap4").mkdir(parents=True)
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
    scores = dict.fromkeys(TRUTH_COLUMNS, 0.25) | {"clips": 9, "area": 0.018}
    del scores["wrong_mass"]  # of an earlier version
    (run / "truth.json").write_text(json.dumps({"layer3.1_similarity, correct": scores}))
    (run / "gap4/report.json").write_text('{"video_accuracy": 0.5}')
    for epoch, mass in enumerate((0.1, 0.4), start=1):
        rows = {"b, correct": {"clips": 3, "mass": mass}, "b, wrong": {"clips": 1, "mass": 0.0}}
        (run / f"truth-epoch-{epoch:04d}.json").write_text(json.dumps(rows))
    return run


def page(*parts: str) -> str:
    return "".join(f"<!-- {part} -->\n\nold\n<!-- end -->\n" for part in parts)


def test_a_run_is_stored_and_fills_the_tables(run: Path, tmp_path: Path) -> None:
    for name, number in (("a", 8), ("b", 24)):
        about = {"task": "match", "identities": number}
        evidence.store(name, evidence.record_of(run, about), tmp_path)
    text = evidence.filled(page("table: accuracy match", "table: truth match"), tmp_path)
    assert (
        "clips: 8,000; start: task_cue; attention: similarity, cosine; seed: 3\n\n| glyphs | 8k"
        in text
    )
    assert "| 24 | 33.3 | 66.7 | - |" in text
    row = "layer3.1_similarity, correct | 9 | 25.0 | 1.8 | - | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 |"
    assert f"| 8 | {row}" in text
    assert "old" not in text
    assert evidence.filled(text, tmp_path) == text


def test_figures_show_what_is_stored(run: Path, tmp_path: Path) -> None:
    stored = evidence.store(
        "a", evidence.record_of(run, {"task": "match", "identities": 8}), tmp_path
    )
    record = json.loads(stored.read_text())
    (label, points), *others = figures.PLOTS["mass"].curves([record])
    assert label == "similarity, cosine, 8 glyphs, 8,000 clips, from task_cue: b"
    assert points == [(8, pytest.approx(7.5)), (16, pytest.approx(30))]
    assert others == []
    ((_, points),) = figures.PLOTS["gap"].curves([record])
    assert points == [(4, 50)]
    kinds = ("seen", "gap", "mass", "dots", "deletion")
    text = evidence.filled(page(*(f"figure: {kind} match" for kind in kinds)), tmp_path, tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {f"{kind}_match.svg" for kind in kinds[:3]}
    assert all(f"](../data/pictures/{name})" in text for name in drawn)
    assert "dots_match" not in text
    assert "old" not in text
    first = (tmp_path / "seen_match.svg").read_bytes()
    figures.draw("seen", [record], tmp_path / "seen_match.svg")
    assert (tmp_path / "seen_match.svg").read_bytes() == first


def test_a_comparison_is_stored(tmp_path: Path) -> None:
    for dots in (2, 4):
        folder = tmp_path / f"compare{dots}"
        for name, correct in (("none", "0101"), ("i3d_r18-non_local", "0111")):
            for seed in (0, 1):
                right = correct.count("1") / 4
                result = Result(right, right, 4, 10**6, 100.0, correct=correct)
                (folder / f"{name}_seed{seed}").mkdir(parents=True)
                path = folder / f"{name}_seed{seed}/result.json"
                path.write_text(json.dumps(result._asdict()))
        (folder / "comparison.json").write_text("{}")
        about = {"task": "track", "dots": dots, "machine": "a machine"}
        evidence.store(f"track_{dots}", evidence.record_of(folder, about), tmp_path)
    text = evidence.filled(page("table: compare track", "table: compare order"), tmp_path)
    assert text.index("`track`, 2 dots: 4 test clips; a machine") < text.index("4 dots")
    assert "| i3d_r18 + non_local | 75.0 % (75.0 - 75.0) |" in text
    assert "| none | 50.0 % (50.0 - 50.0) |  | - | 2 | 1.00 M | 100 |" in text
    assert text.count(evidence.NONE) == 1
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("track_*.json"))]
    curves = dict(figures.PLOTS["dots"].curves(records))
    assert curves == {"none": [(2, 50), (4, 50)], "i3d_r18 + non_local": [(2, 75), (4, 75)]}


def test_tables_of_maps_have_the_two_blocks_that_find_most(tmp_path: Path) -> None:
    folder = tmp_path / "compare/stand_alone_seed0"
    folder.mkdir(parents=True)
    score = {"clips": 4, "mass": 0.1, "area": 0.1, "chance": 0.1}
    found = {"a": 0.2, "b": 0.0, "c": 0.7}
    truth = {f"{block}, wrong": {**score, "pointing": share} for block, share in found.items()}
    truth |= {
        f"{block}, before training": {**score, "pointing": 1 - s} for block, s in found.items()
    }
    result = Result(0.5, 0.5, 4, 10**6, 100.0, correct="0101", truth=truth)
    (folder / "result.json").write_text(json.dumps(result._asdict()))
    (tmp_path / "compare/comparison.json").write_text("{}")
    about = {"task": "order", "machine": "a machine"}
    evidence.store("order", evidence.record_of(tmp_path / "compare", about), tmp_path)
    text = evidence.filled(page("table: compare order"), tmp_path)
    shown = re.findall(r"\| stand_alone \| (\w), ([\w ]+) \|", text)
    assert shown == [(b, a) for b in "ac" for a in ("before training", "wrong")]


def test_files_of_faithful_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "randomization.json"
    scores = {"signed": [1, 1, 1], "absolute": [1, 1, 1], "own": [0.5, 0, 0.75]}
    scores["upper"] = [0.25, 0, 0.5]
    found = {
        "settings": {"run": "task_match", "videos": 6, "seed": 0, "seeds": 3, "machine": "it"},
        "table": {"center": scores, "hires_cam": scores},
        "bands": {"center": [1, 1], "hires_cam": [0.2, 0.5]},
        "verdicts": {"center": "insensitive", "hires_cam": "insensitive"},
        "against": {"center": [1.0, 1.0], "hires_cam": [0.25, 0.25]},
        "clips": [],
    }
    path.write_text(json.dumps(found))
    evidence.store("random", evidence.record_of(path, {}), tmp_path)
    curves = {"deletion": [0.75, 0.5, 0.25]}
    clip = {"right": True, "grid": [2, 1, 1], "fills": {"mean": {"random": curves}}}
    table = {"mean": {"random": {"gap": [0, -0.125, 0.5]}}}
    path = tmp_path / "faithfulness.json"
    settings = found["settings"] | {"fills": ["mean"]}
    content = {"settings": settings, "table": table, "blocks": {}, "clips": [clip, clip]}
    path.write_text(json.dumps(content))
    record = evidence.record_of(path, {})
    evidence.store("removed", record, tmp_path)
    assert list(figures.PLOTS["deletion"].curves([record])) == [
        ("random", [(0, 0.75), (50, 0.5), (100, 0.25)])
    ]
    text = evidence.filled(page("table: randomization random", "table: removal removed"), tmp_path)
    assert "task_match, 6 clips, 3 seeds; it" in text
    upper, whole = "0.25 (0.00 to 0.50)", "1.00 (1.00 to 1.00)"
    assert f"| center | {upper} | {whole} | 1.00 to 1.00 | insensitive | insensitive |" in text
    row = f"| {upper} | {whole} | 0.20 to 0.50 | insensitive |  | 0.50 (0.00 to 0.75) |"
    row += " 0.25 (0.25 to 0.25) |"
    assert f"| hires_cam {row}" in text
    assert "| random | 0.00 (-0.12 to 0.50) | - | - | - |" in text


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
