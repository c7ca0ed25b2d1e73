from pathlib import Path

import pytest

from videoattn.cli.bench_annotations import bench_annotations, write_lists
from videoattn.data.lists import read_kinetics, read_list


def test_both_lists_name_the_same_videos(tmp_path: Path) -> None:
    names = write_lists(tmp_path, 900)
    listed = read_list(tmp_path / "list.txt", tmp_path, class_names=names)
    from_csv = read_kinetics(tmp_path, "train", class_names=names)
    assert list(listed.paths) == list(from_csv.paths)
    assert listed.labels.tolist() == from_csv.labels.tolist()
    assert set(listed.labels.tolist()) == set(range(700))


def test_costs(capsys: pytest.CaptureFixture[str]) -> None:
    costs = bench_annotations(num_videos=900, num_workers=2)
    assert [cost.name for cost in costs] == ["path label", "Kinetics csv"]
    for cost in costs:
        assert 0 < cost.worker_uss <= cost.worker_pss
        assert cost.arrays == pytest.approx(
            900 * (len("train/class number 123/") + 29 + 4 * 8) / 1e6
        )
    assert "900 videos, 2 workers; MB" in capsys.readouterr().out
