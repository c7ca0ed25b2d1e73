"""`list attention`, `compare` and `bench attention`."""

import json
from pathlib import Path

import pytest
import torch

from tests.test_commands import RECIPE, command, refused
from videoattn.attention.functional import attend
from videoattn.attention.systems import SYSTEMS
from videoattn.cli import bench_attention
from videoattn.cli.bench_attention import SITES, at_site, count, uses_attend
from videoattn.cli.list_attention import rows
from videoattn.data.synthetic import write_demo_clips


def test_the_list_has_every_system_and_the_readme_has_the_list(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("list", "attention", "--markdown") == 0
    table = capsys.readouterr().out.strip()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(SYSTEMS)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert table in readme, "make it anew: videoattn list attention --markdown"
    assert command("list", "attention") == 0
    assert "at the default places" in " ".join(capsys.readouterr().out.split())


def test_counts_are_those_of_the_papers() -> None:
    """Five non-local blocks in R50: 7.34 M weights, and 16,384 of biases and norms."""
    found = {row.name: row for row in rows()}
    assert found["non_local"].parameters == 35_401_936 - 28_043_472
    # 2 blocks at res3 and 3 at res4: 2.29 G and 1.19 G multiply-adds each, by hand
    res3 = 2 * (3136 * 512 * 256 + 784 * 512 * 256) + 2 * 3136 * 784 * 256
    res4 = 2 * (784 * 1024 * 512 + 196 * 1024 * 512) + 2 * 784 * 196 * 512
    assert found["non_local"].macs == 2 * res3 + 3 * res4


def test_a_comparison_goes_on_where_it_stopped(
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
        "error: 'nonlocal' is no system; choose from none, non_local"
    )


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if bench_attention._is_block(s)])
def test_every_block_can_be_measured_alone(name: str) -> None:
    module, inputs = at_site(name, 16, (2, 8, 8), 2, "cpu")
    module(*inputs).sum().backward()
    assert inputs[-1].grad is not None
    for channels, grid in SITES.values():
        parameters, macs = count(name, channels, grid)
        assert parameters > 0
        assert macs > 0


def test_explicit_paths_are_asked_for_where_attend_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert uses_attend("non_local", 8)
    assert not uses_attend("squeeze_excite", 32)
    maps = []

    def spy(*args: torch.Tensor, path: str = "auto", **options: object) -> torch.Tensor:
        maps.append(path)
        return attend(*args, path=path, **options)

    monkeypatch.setattr("videoattn.attention.blocks.pairwise.attend", spy)
    module, inputs = at_site("non_local", 8, (2, 4, 4), 1, "cpu")
    with bench_attention.explicit_paths() as used:
        slow = module(*inputs)
    assert used == ["attend"]
    torch.testing.assert_close(module(*inputs), slow)


def test_bench_attention_prints_every_site(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_attention, "SITES", {"small": (16, (2, 8, 8))})
    monkeypatch.setattr(bench_attention, "GROWTH", (1, 2, 4))

    def here(name: str, channels: int, grid: tuple[int, int, int], *rest: object, **options: bool):
        batch_size, num_rounds, device = rest
        return bench_attention._measure_here(
            name, channels, grid, batch_size, num_rounds, str(device), bool(options)
        )

    monkeypatch.setattr(bench_attention, "measure", here)  # no process of its own
    assert command("bench", "attention", "non_local", "--rounds", 1) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "small: 16 channels, 2x8x8 positions" in text
    assert "linear growth is 4.0, quadratic 16.0" in text
    assert refused("bench", "attention", "hard_crop").startswith("error: 'hard_crop' cannot be")
