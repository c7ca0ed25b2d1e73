import re
import sys
from pathlib import Path

import pytest

from tests.data.conftest import MakeClip, make_clip  # noqa: F401
from videoattn.commands.bench_loader import find_videos, loader_benchmark


def test_rows(make_clip: MakeClip, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("decord", reason="the benchmark compares with decord")
    for i in range(3):
        make_clip(f"a/{i}.mp4", 12, size=(64, 64))  # decord fails on odd row sizes
    (tmp_path / "a" / "text.avi").write_text("no video")
    make_clip("a/short.mp4", 5)
    rows = loader_benchmark(tmp_path, num_workers=0, seconds=0.01)
    assert [row["setting"] for row in rows] == ["dense 32x2", "dense 8x8", "8 segments"]
    for row in rows:
        assert row["videos"] == 3
        ours, decord = row["ours_clips_per_second"], row["decord_clips_per_second"]
        assert min(ours, decord) > 0
        assert row["ratio"] == pytest.approx(ours / decord)


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match=f"^data root {re.escape(str(missing))} does not exist; "):
        find_videos(missing)
    with pytest.raises(ValueError, match=r"holds no video of 8 frames or more that decodes$"):
        find_videos(tmp_path)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(
        ImportError,
        match=r"^the loader benchmark compares with decord, which is not installed; "
        r"install the extra: pip install 'videoattn\[decord\]'$",
    ):
        loader_benchmark(tmp_path, num_workers=0, seconds=1.0)
