"""`videoattn explore`, and `videoattn test --errors`."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.test_commands import command, refused
from tests.cli.test_visualize import untrained
from videoattn.cli.app import main
from videoattn.cli.clip import read_clip, record_clip
from videoattn.cli.explore import command as explore
from videoattn.cli.visualize import command as visualize
from videoattn.data.synthetic import write_demo_clips
from videoattn.recipe.run import load


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    write_demo_clips(root, num_train_per_class=1, num_test_per_class=1)
    return root


@pytest.fixture
def video(clips: Path) -> Path:
    return clips / "test/moves_left/0000.mp4"


def test_the_command_writes_into_the_run(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "non_local", class_names=("moves_left", "right"))
    main_ended = pytest.raises(SystemExit)
    with main_ended as ended:
        main(["explore", str(run), str(video)])
    assert ended.value.code == 0
    page = tmp_path / "explorer.html"
    assert capsys.readouterr().out.splitlines() == [str(page)]
    text = page.read_text()
    assert '"truth":"moves_left"' in text  # the folder is a class
    assert '"name":"layer3.1_non_local"' in text
    assert '"name":"hires_cam"' in text
    assert re.search(r'"reason":"it adds most to the score of \w+ \(HiResCAM\)"', text)
    assert '"reason":"most moves there"' in text


def test_a_run_by_its_name_and_other_runs(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for name in ("one", "two"):
        (Path("runs") / name).mkdir(parents=True)
        runs.append(untrained(Path("runs") / name, "non_local").relative_to("runs"))
    page = explore(runs[0], [video], runs[1:], output=Path("a.html"))
    text = page.read_text()
    assert page == Path("a.html")
    assert text.count('"clip":0') == 2


def test_errors_of_the_command(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "non_local")

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["explore", *map(str, words)])
        return str(stop.value.code)

    assert "budget: got 1000 MB; browsers open at most 384" in refused(
        run, video, "--budget", "1000"
    )
    assert "note: a page of 1000 MB takes 34 seconds to open" in capsys.readouterr().out
    assert "absent.mp4" in refused(run, tmp_path / "absent.mp4")
    assert refused(tmp_path / "nothing", video) != "0"
    assert not (tmp_path / "explorer.html").exists()
    outside = tmp_path / "outside.html"
    (tmp_path / "explorer.html").symlink_to(outside)
    explore(run, [video])
    assert not outside.exists()  # the link was replaced


@pytest.mark.parametrize("system", ["hard_crop", "cbam", "interaction", "residual_attention"])
def test_networks_without_pairwise_maps(system: str, tmp_path: Path, video: Path) -> None:
    run = untrained(tmp_path, system)
    text = explore(run, [video], budget=4.0).read_text()
    assert '"queries":[]' in text
    assert '"kind":"cam"' in text


def test_without_an_exact_cam_the_query_comes_from_occlusion(tmp_path: Path, video: Path) -> None:
    """A head that is not linear in the last stage's mean."""
    loaded = load(untrained(tmp_path, "non_local"))
    loaded.model.fc.register_forward_hook(lambda module, inputs, output: output.square())
    clip = read_clip(loaded, video)
    queries = record_clip(loaded, clip).chosen
    assert queries[0].reason.endswith("(occlusion)")
    assert [query.title for query in queries] == ["adds most to the score", "most motion"]


def test_visualize_states_the_query_and_names_the_page(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "non_local")
    visualize(run, video, layer="layer3", output=tmp_path / "pictures")
    last = "every other query, in a page to click: "
    assert capsys.readouterr().out.splitlines()[-1] == f"{last}videoattn explore {run} {video}"
    explore(run, [video])
    visualize(run, video, layer="layer3", output=tmp_path / "pictures")
    assert capsys.readouterr().out.splitlines()[-1] == f"{last}{tmp_path / 'explorer.html'}"


def test_the_errors_of_a_run(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in (clips / "test").iterdir())
    torch.manual_seed(0)
    run = untrained(tmp_path, "non_local", class_names=tuple(names))
    words = ["--errors", "--explorers", "2", f"data.root={clips}"]
    with pytest.raises(SystemExit) as ended:
        main(["test", str(run), *words])
    assert ended.value.code == 0
    page = tmp_path / "test/errors.html"
    assert str(page) in capsys.readouterr().out
    pages = sorted((tmp_path / "test/explorers").iterdir())
    assert [path.name[:4] for path in pages] == ["001_", "002_"]
    text = page.read_text()
    assert text.count('"explorer":"explorers/00') == 2
    assert text.count('"command":"videoattn explore ') == len(names)
    assert "of 8 test videos are right" in text


def test_errors_need_labels(tmp_path: Path, video: Path) -> None:
    from videoattn.cli.explore import write_errors_page
    from videoattn.engine.parallel import Parallel

    loaded = load(untrained(tmp_path, "non_local"))
    samples = loaded.samples([video])
    with pytest.raises(ValueError, match="errors: no test video has a label"):
        write_errors_page(
            Path("run"), loaded, loaded.evaluate(samples, Parallel()), samples, tmp_path, 0
        )


def test_errors_of_several_labels_are_refused_before_scoring(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = untrained(tmp_path, "non_local", class_names=("0", "1"))
    (tmp_path / "list.txt").write_text(f"{video.name} 0;1\n")
    words = [
        "data.layout=list",
        "data.columns=path labels",
        f"data.root={video.parent}",
        *(f"data.{part}_split={tmp_path}/list.txt" for part in ("train", "test")),
    ]
    message = refused("test", run, *words, "train.loss=bce", "--errors")
    assert "errors: got several labels for a video; the page needs one class for each" in message
    assert "accuracy" not in capsys.readouterr().out


def test_errors_of_frame_folders_have_frames(tmp_path: Path, clips: Path) -> None:
    torch.manual_seed(0)
    run = untrained(tmp_path, "non_local", class_names=("0", "1"))
    lines = []
    for number in range(2):
        (tmp_path / f"frames/clip{number}").mkdir(parents=True)
        for frame in range(9):
            color = (20 * frame, 80, 120 * number)
            Image.new("RGB", (40, 30), color).save(
                tmp_path / f"frames/clip{number}/{frame:03d}.png"
            )
        lines.append(f"clip{number} 9 {number}\n")
    (tmp_path / "test.txt").write_text("".join(lines))
    words = ["data.layout=frames", f"data.root={tmp_path}/frames", "data.frame_start=0"]
    words += [f"data.{part}_split={tmp_path}/test.txt" for part in ("train", "test")]
    words += ["data.frame_template={:03d}.png"]
    words += ["data.columns=path frames label"]
    assert command("test", run, *words, "--errors", "--explorers", 1) == 0
    text = (tmp_path / "test/errors.html").read_text()
    assert text.count('"explorer":"explorers/001_clip') == 1
    assert '"command":"videoattn' not in text
    assert text.count("data-chunk=") == 2
