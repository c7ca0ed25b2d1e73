"""`list attention`, `bench` and `compare`."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.cli.test_commands import RECIPE, command, curve, refused, weights
from videoattn.attention.systems import SYSTEMS
from videoattn.cli.app import main
from videoattn.cli.comparison import Result, difference, read_result
from videoattn.cli.list import attention_rows
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine import train as engine
from videoattn.engine.state import TrainState
from videoattn.recipe.run import load


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
    words += ["--system", "none", "--system", "non_local", "--system", "non_local+self_gating"]
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
    assert {name: len(runs) for name, runs in results.items()} == {
        "none": 2, "non_local": 2, "non_local+self_gating": 2,
    }  # fmt: skip
    both = load("c/non_local+self_gating_seed1").model.state_dict()
    single = load("c/non_local_seed1").model.state_dict()
    assert single.keys() < both.keys()
    assert all("self_gating" in name for name in both.keys() - single.keys())
    added = results["non_local"][0]["num_parameters"] - results["none"][0]["num_parameters"]
    assert added == sum(4 * c * c // 2 + 3 * c // 2 + c + 2 * c for c in (16, 32))
    mean = 50 * sum(run["video_accuracy"] for run in results["none"])
    assert f"| none | {mean:.1f} % (" in table
    assert refused(*words, "--system", "nonlocal").startswith(
        "error: --system: 'nonlocal' does not exist (did you mean non_local?); choose from none, "
    )
    assert "--system: interaction reads what the other systems return; put it last" in refused(
        *words, "--system", "interaction+cbam"
    )


def test_networks_tasks_and_shards_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    Path("tiny.yaml").write_text(RECIPE)
    Path("slow.yaml").write_text(RECIPE)
    words = ["compare", "tiny.yaml", "data.root=clips", "train.num_epochs=1", "--seeds", 1]
    words += ["--task", "slow.yaml", "--system", "none", "--system", "self_gating"]
    words += ["--network", "i3d_r18", "--network", "c2d_r18"]
    assert command(*words, "--folder", "a", "--shard", "1/2") == 0
    assert command(*words, "--folder", "b", "--shard", "2/2") == 0
    done = {str(file.parent) for file in Path().rglob("result.json")}
    assert len(done) == 8
    assert {path.partition("/")[0] for path in done} == {"a", "b"}
    assert "b/slow/c2d_r18-self_gating_seed0" in done
    capsys.readouterr()
    assert command(*words, "--folder", "a", "--merge", "b") == 0
    printed = capsys.readouterr().out
    for name in ("tiny", "slow"):
        table = Path("a", name, "comparison.md").read_text()
        assert table in printed
        assert len(table.splitlines()) == 2 + 4
        assert "| i3d_r18 + none | " in table
        row = next(
            line for line in table.splitlines() if line.startswith("| c2d_r18 + self_gating | ")
        )
        assert " to " in row.split(" | ")[2]
    assert not (Path("a/slow/c2d_r18-self_gating_seed0") / "checkpoint-last.pt").exists()
    for text, message in (
        ("3/2", "--shard: got 3/2; need I/N with I from 1 to N, such as 2/4"),
        ("1", "--shard: got 1; need I/N with I from 1 to N, such as 2/4"),
        ("1/9", "--shard: got 1/9 for 8 runs; choose N up to 8"),
    ):
        assert message in refused(*words, "--shard", text)
    message = "--merge: gone is not a folder; name the --folder of a comparison"
    assert message in refused(*words, "--merge", "gone")


def test_rows_that_cannot_be_trained_are_named_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=1, num_test_per_class=1)
    Path("tiny.yaml").write_text(RECIPE)
    words = ["compare", "tiny.yaml", "data.root=clips", "--folder", "c", "--system", "none"]
    message = refused(*words, "--system", "hard_crop", "train.num_epochs=1", "--network", "i3d_r18")
    assert "error: 1 of 2 rows cannot be trained: i3d_r18 + hard_crop: " in message
    message = refused(*words, "--network", "i3d_r19")
    assert (
        "1 of 1 rows cannot be trained: i3d_r19 + none: model.name: 'i3d_r19' does not" in message
    )
    assert not Path("c").exists()


def test_a_run_that_fails_is_a_row_and_the_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("good", "bad"):
        write_demo_clips(tmp_path / folder, num_train_per_class=1, num_test_per_class=1)
        Path(f"{folder}.yaml").write_text(RECIPE.replace("data: {", f"data: {{root: {folder}, "))
    clip = next(Path("bad/train").rglob("*.mp4"))
    clip.write_bytes(clip.read_bytes()[:200])
    words = ["compare", "bad.yaml", "--task", "good.yaml", "--system", "none", "--seeds", 1]
    words += ["--folder", "c", "train.num_epochs=1"]
    message = refused(*words)
    assert message == "error: 1 of 2 runs failed; correct them and start again"
    (line,) = [x for x in Path("c/bad/comparison.md").read_text().splitlines() if "failed" in x]
    assert line.startswith("| none, seed 0 | failed: ")
    assert clip.name in line
    assert "| none | " in Path("c/good/comparison.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"correct": 5},
        {"correct": "12"},
        {"metric": 3},
        {"mean_class_accuracy": "x"},
        {"truth": 3},
        {"truth": {"a": 3}},
        {"truth": {"a": {"mass": "x"}}},
    ],
    ids=str,
)
def test_damaged_results_are_named(change: dict[str, object], tmp_path: Path) -> None:
    """A result may come from another machine."""
    (tmp_path / "result.json").write_text(json.dumps(result("110")._asdict()))
    assert read_result(tmp_path) == result("110")
    (tmp_path / "result.json").write_text(json.dumps(result("110")._asdict() | change))
    with pytest.raises(ValueError, match=r"result\.json is damaged; remove it"):
        read_result(tmp_path)


def result(correct: str) -> Result:
    accuracy = correct.count("1") / max(len(correct), 1)
    return Result(accuracy, accuracy, len(correct), 1, 1.0, correct=correct)


def test_differences_are_paired_by_seed_and_video() -> None:
    ones, zeros = result("1" * 40), result("0" * 40)
    assert difference({0: ones}, {0: zeros}) == "+100.0 (+100.0 to +100.0)"
    assert difference({0: ones, 1: zeros}, {0: ones, 1: zeros}) == "+0.0 (+0.0 to +0.0), tie"
    assert difference({1: ones}, {0: zeros}) == "-"
    assert difference({0: result("")}, {0: result("")}) == "-"
    assert difference({0: ones}, {0: result("111")}) == "-"
    # 300 of 1,000 videos differ by one, 100 by minus one: a normal interval around 20 points.
    row, bare = result("1" * 300 + "0" * 700), result("0" * 300 + "1" * 100 + "0" * 600)
    deviation = 100 * ((0.3 + 0.1 - 0.2**2) / 1000) ** 0.5
    mean, low, high = (float(x) for x in re.findall(r"[+-][\d.]+", difference({0: row}, {0: bare})))
    assert mean == 20.0
    assert low == pytest.approx(20 - 1.96 * deviation, abs=0.3)
    assert high == pytest.approx(20 + 1.96 * deviation, abs=0.3)
    # The seeds differ, the videos do not: the interval is that of two draws from 0 and 100.
    pair = difference({0: ones, 1: ones}, {0: zeros, 1: ones})
    assert pair == "+50.0 (+0.0 to +100.0), tie"


def test_the_list_counts_several_systems_in_one_network() -> None:
    both, *single = attention_rows(("non_local+cbam", "non_local", "cbam"))
    assert both.parameters == sum(row.parameters for row in single)
    assert both.macs == sum(row.macs for row in single)
    assert both.title == " + ".join(row.title for row in single)
    assert both.map_shape == "; ".join(row.map_shape for row in single)


def test_the_list_shows_the_systems_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("list", "attention", "sagan+refinement") == 0
    text = "".join(capsys.readouterr().out.split())
    assert "sagan+refinement" in text
    assert "cross_layer" not in text
    assert "system: 'sagann' does not exist (did you mean sagan?)" in refused(
        "list", "attention", "sagann"
    )


def test_a_network_of_two_systems_is_trained_resumed_compared_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=2, num_test_per_class=1)
    Path("tiny.yaml").write_text(
        RECIPE.replace("{name: non_local}", "[non_local, {name: cbam, options: {reduction: 4}}]")
    )
    words = ["train", "tiny.yaml", "data.root=clips", "model.attention.1.after=[layer1.1,layer3.0]"]
    assert command(*words, "name=whole") == 0
    original = engine.train_one_epoch

    def stop_in_second_epoch(*args: object) -> None:
        (state,) = [arg for arg in args if isinstance(arg, TrainState)]
        if state.epoch == 1:
            raise InterruptedError("pulled the plug")
        original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "train_one_epoch", stop_in_second_epoch)
        assert "pulled the plug" in refused(*words)
    assert "model.attention was [{'name': 'non_local'" in refused(*words[:-1], "--resume")
    assert command(*words, "--resume") == 0
    resumed = weights(Path("runs/tiny"))
    whole = weights(Path("runs/whole"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert curve(Path("runs/tiny")) == curve(Path("runs/whole"))
    for block in ("layer1.1.bn2.cbam.", "layer3.0.bn2.cbam.", "layer2.1_non_local."):
        assert any(name.startswith(block) for name in whole), block
    assert load("runs/tiny").config.model.attention.systems[1].after == ("layer1.1", "layer3.0")
    assert command("test", "runs/tiny") == 0
    capsys.readouterr()
    video = "clips/test/moves_left/0000.mp4"
    assert command("visualize", "runs/tiny", video, "--layer", "layer3", "--out", "drawn") == 0
    names = {path.name for path in Path("drawn").glob("*.png")}
    assert names == {
        "0000_layer3.1_non_local_1.png",
        "0000_layer3.1_non_local_2.png",
        *(f"0000_layer3.0.bn2.cbam_{gate}.png" for gate in ("channel", "spatial", "temporal")),
    }
