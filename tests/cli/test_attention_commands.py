"""`list attention`, `bench` and `compare`."""

import json
from pathlib import Path

import pytest
import torch

from tests.cli.test_commands import RECIPE, command, curve, refused, weights
from videoattn.attention.systems import SYSTEMS
from videoattn.cli.app import main
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
