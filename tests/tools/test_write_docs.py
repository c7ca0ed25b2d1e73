"""The documentation contains the tables that the script prints."""

from pathlib import Path

import pytest
import write_docs
from typer.testing import CliRunner

from tests.tools.conftest import Tables
from tests.tools.test_bench import clips, make_clip  # noqa: F401 (fixtures)
from videoattn.attention.systems import SYSTEMS
from videoattn.weights import PUBLIC

PAGE = Path(__file__).parents[2] / "docs" / "attention.md"


def test_the_page_has_the_table_of_attention_systems() -> None:
    table = CliRunner().invoke(write_docs.app, ["attention"]).output.strip()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(SYSTEMS)
    assert table in PAGE.read_text(), "update it: python tools/write_docs.py attention"


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
