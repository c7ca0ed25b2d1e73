"""`list attention`, `bench` and `compare`."""

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import RECIPE, command, refused
from videoattn.attention.systems import SYSTEMS
from videoattn.cli.app import main
from videoattn.cli.list import attention_rows
from videoattn.data.synthetic import write_demo_clips


def test_the_list_has_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", "attention") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "at the default positions" in text
    assert all(name in text for name in SYSTEMS)


@pytest.mark.parametrize("words", [(), ("decoders", "folder"), ("attention", "--help")])
def test_bench_names_the_scripts(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "run benchmarks in a clone of the repository: python tools/bench/NAME.py\n"
    )


def test_counts_are_those_of_the_papers() -> None:
    """Five non-local blocks in R50: 7.34 M weights, and 16,384 of biases and norms."""
    found = {row.name: row for row in attention_rows()}
    assert found["non_local"].parameters == 35_401_936 - 28_043_472
    # 2 blocks at res3 and 3 at res4: 2.29 G and 1.19 G multiply-adds each, by hand
    res3 = 2 * (3136 * 512 * 256 + 784 * 512 * 256) + 2 * 3136 * 784 * 256
    res4 = 2 * (784 * 1024 * 512 + 196 * 1024 * 512) + 2 * 784 * 196 * 512
    assert found["non_local"].macs == 2 * res3 + 3 * res4


def test_a_comparison_continues_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    Path("tiny.yaml").write_text(RECIPE)
    words = ["compare", "tiny.yaml", "data.root=clips", "train.num_epochs=1", "--folder", "c"]
    words += ["--system", "none", "--system", "non_local"]
    assert command(*words, "--seeds", 1) == 0
    first = json.loads(Path("c/non_local_seed0/result.json").read_text())
    assert first["num_videos"] == 8
    stamp = Path("c/none_seed0/checkpoint-last.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert command(*words, "--seeds", 2) == 0
    assert Path("c/none_seed0/checkpoint-last.pt").stat().st_mtime_ns == stamp
    table = Path("c/comparison.md").read_text()
    assert table in capsys.readouterr().out
    results = json.loads(Path("c/comparison.json").read_text())
    assert {name: len(runs) for name, runs in results.items()} == {"none": 2, "non_local": 2}
    added = results["non_local"][0]["num_parameters"] - results["none"][0]["num_parameters"]
    assert added == sum(4 * c * c // 2 + 3 * c // 2 + c + 2 * c for c in (16, 32))
    mean = 50 * sum(run["video_accuracy"] for run in results["none"])
    assert f"| none | {mean:.1f} % (" in table
    assert refused(*words, "--system", "nonlocal").startswith(
        "error: --system: 'nonlocal' does not exist (did you mean non_local?); choose from none, "
    )
