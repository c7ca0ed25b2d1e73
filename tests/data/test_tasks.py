"""Diagnostic tasks: what the clips show, what cannot solve them, and the truth of where to look."""

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from videoattn.data.lists import read_folders
from videoattn.data.tasks import clips as tasks
from videoattn.data.tasks.clips import (
    COLORED,
    CUE,
    EVENTS,
    MOST_IDENTITIES,
    NUM_FRAMES,
    QUADRANTS,
    REGIONS,
    SIDE,
    TASKS,
    TaskClip,
    identity_picture,
    task_classes,
    task_clip,
)
from videoattn.data.tasks.files import read_truth, write_task

NUM_CLIPS = 120
CANDIDATES = slice(13, 16)


@cache
def drawn(task: str, number: int) -> TaskClip:
    return task_clip(task, number % len(TASKS[task]), number=number)


def clips_of(task: str) -> tuple[torch.Tensor, np.ndarray]:
    """Returns clips at an eighth of the size, (n, T, 3, S/8, S/8), and their labels."""
    frames = [
        torch.nn.functional.avg_pool2d(drawn(task, number).frames.float(), 8)
        for number in range(NUM_CLIPS)
    ]
    return torch.stack(frames) / 255, np.arange(NUM_CLIPS) % len(TASKS[task])


def probe(features: torch.Tensor, labels: np.ndarray) -> float:
    """Returns the accuracy of a ridge regression, cross-validated over 4 folds."""
    x = features.flatten(1).double().numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    targets = np.eye(labels.max() + 1)[labels]
    kernel = x @ x.T / x.shape[1] + 1
    hits = []
    fold = np.arange(len(x)) // len(targets[0]) % 4  # each fold has all classes
    for held in range(4):
        train, test = fold != held, fold == held
        weights = np.linalg.solve(kernel[train][:, train] + np.eye(train.sum()), targets[train])
        hits.append((kernel[test][:, train] @ weights).argmax(1) == labels[test])
    return float(np.concatenate(hits).mean())


def highest_by_chance(num_classes: int) -> float:
    """Four standard errors above chance."""
    chance = 1 / num_classes
    return chance + 4 * float(np.sqrt(chance * (1 - chance) / NUM_CLIPS))


@pytest.mark.parametrize("task", TASKS)
def test_clips_are_functions_of_their_arguments(task: str) -> None:
    clip, again = drawn(task, 3), task_clip(task, 3 % len(TASKS[task]), number=3)
    assert clip.frames.shape == (NUM_FRAMES, 3, SIDE, SIDE)
    assert clip.frames.dtype == torch.uint8
    for one, other in zip(clip, again, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    label = 3 % len(TASKS[task])
    others = [
        task_clip(task, label, number=4),
        task_clip(task, label, number=3, seed=1),
        task_clip(task, label, number=3, split="test"),
        task_clip(task, 1 - label if label < 2 else 0, number=3),
    ]
    for different in others:
        assert (different.frames.float() - clip.frames.float()).abs().mean() > 2


def test_identities_differ_in_color_and_shape() -> None:
    pictures = [identity_picture(identity) for identity in range(MOST_IDENTITIES)]
    looks = {(tuple(p.sum((1, 2)).round(decimals=3).tolist())) for p in pictures}
    assert len(looks) == MOST_IDENTITIES
    hues = [p[:3].sum((1, 2)) / p[3].sum() for p in pictures]
    for first in range(8):
        for second in range(first):
            assert (hues[first] - hues[second]).abs().max() > 0.1
        assert torch.allclose(hues[first], hues[first + 8], atol=1e-5)
        assert not torch.equal(pictures[first][3], pictures[first + 8][3])


@pytest.mark.parametrize("task", ["match", "match_unmarked"])
def test_only_the_glyph_of_the_class_equals_the_cue(task: str) -> None:
    for number in range(8):
        clip = drawn(task, number)
        frame, y, x = clip.query
        name = TASKS[task][number % 4]
        assert frame in range(*CANDIDATES.indices(NUM_FRAMES))
        assert (x < SIDE // 2, y < SIDE // 2) == ("left" in name, "top" in name)
        # The cue's color is that of the pixel at its center: of the mask's bounding box.
        rows, columns = clip.evidence[0].nonzero().T
        center = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
        if task == "match":
            edge = clip.frames[0][:, clip.evidence[0]]
            assert (edge > 250).all(0).any()  # the white frame
        elif not clip.evidence[0][center]:
            continue  # a ring
        candidates = []
        for quadrant, (cx, cy) in QUADRANTS.items():
            half = [slice(0, SIDE // 2) if at < 0 else slice(SIDE // 2, SIDE) for at in (cy, cx)]
            mask = clip.distractors[-1][half[0], half[1]]
            assert mask.any() == (quadrant != name)
            if mask.any():
                candidates.append(clip.frames[-1][:, half[0], half[1]][:, mask].float().mean(1))
        cue = clip.frames[0][:, center[0], center[1]].float()
        own = clip.frames[-1][:, y, x].float()
        if clip.evidence[0][center] and own.max() - own.min() > 60:
            assert (own - cue).abs().max() < min((c - cue).abs().max() for c in candidates)
        assert not clip.evidence[CUE.stop :].any()
        assert not clip.distractors[: CUE.stop].any()


@pytest.mark.parametrize("task", ["match", "match_unmarked", "cue"])
def test_wrong_queries_are_on_the_other_glyphs(task: str) -> None:
    for number in range(4):
        clip = drawn(task, number)
        assert len(clip.wrong_queries) == 3
        quadrants = {
            (y < SIDE // 2, x < SIDE // 2) for _, y, x in (clip.query, *clip.wrong_queries)
        }
        assert len(quadrants) == 4
        for frame, y, x in clip.wrong_queries:
            assert frame == NUM_FRAMES - 1
            # A ring is empty in the middle.
            assert clip.distractors[frame, y - 8 : y + 9, x - 8 : x + 9].any()


@pytest.mark.parametrize("dots", [2, 8])
def test_wrong_queries_are_on_the_other_dots(dots: int) -> None:
    clip = task_clip("track", 1, number=1, dots=dots)
    frame, y, x = clip.query
    assert len(clip.wrong_queries) == dots - 1
    for one in clip.wrong_queries:
        assert clip.distractors[one] or abs(one[1] - y) + abs(one[2] - x) < 24  # covered
    assert not clip.distractors[frame, y, x]


@pytest.mark.parametrize("gap", [1, 10, 20])
def test_a_gap_changes_only_the_number_of_frames(gap: int) -> None:
    usual, clip = drawn("match", 3), task_clip("match", 3, number=3, gap=gap)
    assert clip.frames.shape == (gap + 6, 3, SIDE, SIDE)
    shown = clip.evidence.any((1, 2))
    assert shown[:3].all()
    assert not shown[3:].any()
    assert clip.query == (gap + 5, *usual.query[1:])
    assert torch.equal(clip.evidence[:3], usual.evidence[:3])
    assert torch.equal(clip.distractors[-3:], usual.distractors[-3:])
    if gap == 10:
        assert torch.equal(clip.frames, usual.frames)


@pytest.mark.parametrize("gap", [1, 5, 12])
def test_a_shorter_gap_shows_the_end_of_the_same_paths(gap: int) -> None:
    usual, clip = drawn("track", 3), task_clip("track", 3, number=3, gap=gap)
    assert clip.frames.shape == (gap + 4, 3, SIDE, SIDE)
    assert torch.equal(clip.evidence, usual.evidence[-gap - 4 :])
    assert torch.equal(clip.distractors, usual.distractors[-gap - 4 :])
    assert clip.query == (gap + 3, *usual.query[1:])
    dot = clip.evidence.unsqueeze(1).expand_as(clip.frames)
    red, green, _ = (clip.frames[:, c] for c in range(3))
    marks = ((red > 240) & (green < 40) & dot[:, 0]).sum((1, 2))
    assert (marks[:2] > 20).all()
    assert (marks[2:] == 0).all()
    tinted = (clip.frames[-2:].float() - clip.frames[:-2].float().mean(0)).abs().mean()
    assert tinted > 30
    if gap == 12:
        assert torch.equal(clip.frames, usual.frames)


@pytest.mark.parametrize("label", [1, 9, 17])
def test_a_cue_of_24_identities_shows_the_shape_of_its_class(label: int) -> None:
    names = task_classes("cue", 24)
    assert (len(names), names[label]) == (24, f"identity_{label:02}")
    assert list(names) == sorted(names)
    clip = task_clip("cue", label, number=1, identities=24)
    rows, columns = clip.evidence[0].nonzero().T
    width = int(columns.max() - columns.min()) + 1
    half, y, x = round(width / 1.4 / 2), int(rows.float().mean()), int(columns.float().mean())
    glyph = clip.frames[0][:, y - half : y + half, x - half : x + half].float() / 255
    overlaps = {}
    for other in (1, 9, 17):  # of the same color
        picture = identity_picture(other)
        hue = picture[:3].sum((1, 2)) / picture[3].sum()
        like = torch.nn.functional.cosine_similarity(glyph, hue[:, None, None], dim=0) > 0.98
        alpha = torch.nn.functional.interpolate(picture[None, 3:], like.shape)[0, 0] > 0.5
        overlaps[other] = float((like & alpha).sum() / (like | alpha).sum())
    assert max(overlaps, key=overlaps.__getitem__) == label, overlaps
    assert overlaps[label] > 0.8


def test_cues_of_eight_identities_are_the_default() -> None:
    assert task_classes("cue") == task_classes("cue", 8) == TASKS["cue"]
    assert torch.equal(task_clip("cue", 3, number=3, identities=8).frames, drawn("cue", 3).frames)


@pytest.mark.parametrize("dots", [2, 4, 8])
def test_the_marked_dot_ends_on_the_color_of_its_class(dots: int) -> None:
    for number in range(4):
        clip = task_clip("track", number, number=number, dots=dots)
        frame, y, x = clip.query
        assert frame == NUM_FRAMES - 1
        region = torch.tensor(list(REGIONS.values()))
        tint = clip.frames[-1].float().div(255)
        quadrant = [slice(0, 64) if at < 64 else slice(64, 128) for at in (y, x)]
        mean = tint[:, quadrant[0], quadrant[1]].mean((1, 2))
        assert int((region - mean[:, None].T).square().sum(1).argmin()) == number
        assert clip.evidence[: COLORED.start].any((1, 2)).sum() >= 8  # covered in some frames
        assert not clip.evidence[-1].any()
        # Equally many dots end in each quadrant, so that the last frame shows nothing.
        own = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        own[y, x] = True
        for rows in (slice(0, 64), slice(64, 128)):
            for columns in (slice(0, 64), slice(64, 128)):
                shown = (clip.distractors[-1] | own)[rows, columns]
                assert bool(shown.any()) or dots == 2


def amounts(task: str, number: int) -> torch.Tensor:
    """Returns how much red and how much cyan each frame shows, (2, T)."""
    red, green, blue = drawn(task, number).frames.float().div(255).unbind(1)
    looks = [red - torch.maximum(green, blue), torch.minimum(green, blue) - red]
    return torch.stack([(look - 0.35).clamp(min=0).sum((1, 2)) for look in looks])


def test_the_order_of_events_is_the_class_and_permuted_frames_destroy_it() -> None:
    rng = np.random.default_rng(0)
    hits, permuted = [], []
    for number in range(NUM_CLIPS):
        red, cyan = amounts("order", number)
        label = number % 2
        first = [EVENTS[name] for name in TASKS["order"]][label]
        hits.append((int(red.argmax() < cyan.argmax())) == (first == EVENTS["red_disc_first"]))
        mixed = torch.from_numpy(rng.permutation(NUM_FRAMES))
        red, cyan = red[mixed], cyan[mixed]
        permuted.append((int(red.argmax() < cyan.argmax())) == (first == EVENTS["red_disc_first"]))
        clip = drawn("order", number)
        shown = clip.evidence.any((1, 2)).nonzero().flatten()
        assert len(shown) == 2
        assert clip.query[0] - int(shown[0]) >= 8
    assert np.mean(hits) > 0.95
    assert abs(np.mean(permuted) - 0.5) < highest_by_chance(2) - 0.5


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced_and_all_clips_have_16_frames(task: str) -> None:
    _, labels = clips_of(task)
    assert set(np.bincount(labels)) == {NUM_CLIPS // len(TASKS[task])}
    assert {len(drawn(task, number).frames) for number in range(NUM_CLIPS)} == {NUM_FRAMES}
    assert list(TASKS[task]) == sorted(TASKS[task])


@pytest.mark.parametrize("task", [task for task in TASKS if task != "cue"])
def test_the_mean_color_is_at_chance(task: str) -> None:
    frames, labels = clips_of(task)
    assert probe(frames.mean((1, 3, 4)), labels) < highest_by_chance(len(TASKS[task]))


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("still", "cue")])
@pytest.mark.parametrize("frame", [0, 7, 15])
def test_the_pixels_of_a_frame_are_at_chance(task: str, frame: int) -> None:
    frames, labels = clips_of(task)
    if task == "order":  # events move, so that no frame of the video is known to be early
        frames = frames.roll(int(torch.randint(16, ())), 1)
    assert probe(frames[:, frame], labels) < highest_by_chance(len(TASKS[task]))


def test_the_class_of_cue_is_the_identity_in_its_white_frame() -> None:
    for label in range(8):
        clip = task_clip("cue", label, number=label)
        rows, columns = clip.evidence[0].nonzero().T
        y, x = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
        inside = clip.frames[0, :, y - 20 : y + 20, x - 20 : x + 20].float().flatten(1) / 255
        picture = identity_picture(label)
        hue = picture[:3].sum((1, 2)) / picture[3].sum()
        assert (inside - hue[:, None]).abs().amax(0).min() < 0.1
        frame, y, x = clip.query
        match = clip.frames[frame, :, y - 20 : y + 20, x - 20 : x + 20].float().flatten(1) / 255
        assert (match - hue[:, None]).abs().amax(0).min() < 0.15


def test_the_probe_finds_a_class_that_a_frame_shows() -> None:
    frames, labels = clips_of("match")
    shown = frames[:, 15].clone()
    for clip, label in zip(shown, labels, strict=True):
        clip[:, label, :] += 0.1
    assert probe(shown, labels) > 0.9


@pytest.mark.parametrize("task", TASKS)
def test_masks_cover_the_drawn_pixels(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object has the same pixels over black and over white; the background does not."""
    label, pictures = 0, []
    for value in (0.0, 1.0):
        flat = torch.full((NUM_FRAMES, 3, SIDE, SIDE), value)
        monkeypatch.setattr(tasks, "background", lambda *args, flat=flat: flat.clone())
        pictures.append(task_clip(task, label, number=5))
    black, white = pictures
    seen = (white.frames.float() - black.frames.float()).mean(1) / 255
    if task == "track":
        seen[COLORED] /= 0.4  # the rest is the color of the region
    alpha, sure = 1 - seen, (seen - 0.5).abs() > 0.01
    masked = black.evidence | black.distractors
    query = torch.zeros(NUM_FRAMES, dtype=torch.bool)
    if task in ("match", "match_unmarked", "cue"):
        query[CANDIDATES] = True
    elif task == "order":
        query[black.query[0] : black.query[0] + 2] = True
    elif task == "track":
        query[-1] = True
    wrong = (masked != (alpha > 0.5)) & sure
    assert int(wrong[~query].sum()) <= (40 if task == "track" else 0)  # where dots touch
    assert not (masked & (alpha < 0.5) & sure).any()
    frame, y, x = black.query
    if query.any():
        assert alpha[frame, y, x] > 0.5 or task != "track"
        assert not masked[frame, y, x]
    assert not (black.evidence & black.distractors).any()
    assert black.evidence.any()


def decode(path: Path) -> torch.Tensor:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_written_clips_and_truth(tmp_path: Path) -> None:
    seen: list[Path] = []
    options = {"seed": 4, "num_train": 6, "num_test": 5, "identities": 24}
    written = write_task("match", tmp_path, on_clip=seen.append, **options)
    assert seen == written
    assert len(written) == 11
    samples = read_folders(tmp_path, "train")
    assert samples.class_names == TASKS["match"]
    assert list(samples.labels) == [0, 0, 1, 1, 2, 3]
    truth = read_truth(tmp_path / "train.npz")
    assert truth.paths == sorted(str(p.relative_to(tmp_path / "train")) for p in written[:6])
    clip = task_clip("match", 1, number=5, seed=4, identities=24)
    path = "bottom_right/00005.mp4"
    assert torch.equal(truth.masks(path), torch.stack([clip.evidence, clip.distractors]))
    assert tuple(truth.queries[truth.paths.index(path)]) == clip.query
    assert truth.wrong_queries is not None
    wrong = truth.wrong_queries[truth.paths.index(path)]
    assert tuple(map(tuple, wrong)) == clip.wrong_queries
    error = decode(tmp_path / "train" / path).float() - clip.frames.float()
    assert error.abs().mean() < 5
    with pytest.raises(ValueError, match=r"the truth has no clip 'x.mp4'; it has bottom_left/"):
        truth.masks("x.mp4")


def test_threads_do_not_change_what_is_written(tmp_path: Path) -> None:
    for folder, threads in (("a", 1), ("b", 3)):
        write_task("order", tmp_path / folder, num_train=2, num_test=2, num_threads=threads)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"task": "find"},
            r"task: 'find' does not exist; choose from match, match_unmarked, track",
        ),
        ({"label": 4}, r"label: got 4; need 0 to 3"),
        ({"label": -1}, r"label: got -1; need 0 to 3"),
        ({"identities": 3}, r"identities: got 3; need 4 to 48"),
        ({"dots": 5}, r"dots: got 5; choose from 2, 4, 8"),
        ({"gap": 0}, r"gap: got 0; match needs 1 to 42"),
        ({"task": "track", "gap": 13}, r"gap: got 13; track needs 1 to 12"),
        ({"task": "order", "gap": 3}, r"gap: order has no gap; leave it out"),
    ],
)
def test_arguments_outside_their_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_clip(**{"task": "match", "label": 0, "number": 0} | arguments)  # type: ignore[arg-type]


def test_fewer_clips_than_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_test: got 3; need at least 4, one per class"):
        write_task("match", tmp_path, num_train=4, num_test=3)


def test_damaged_truth(tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"train.npz is damaged \(.*write the task again"):
        read_truth(path)
    np.savez(path, paths=np.array(["a"]))
    with pytest.raises(ValueError, match=r"train.npz is not the truth of a task"):
        read_truth(path)
    arrays = {"paths": ["a/0.mp4"], "queries": np.zeros((1, 3), int)}
    arrays["masks"] = np.zeros((2, 1, 2, 8, 1), np.uint8)
    np.savez(path, **arrays)
    assert read_truth(path).wrong_queries is None  # of an earlier version
    for wrong in (np.zeros((1, 3, 3)), np.zeros((2, 3, 3), int), np.zeros((1, 3), int)):
        np.savez(path, **arrays, wrong_queries=wrong)
        with pytest.raises(ValueError, match=r"train.npz is not the truth of a task"):
            read_truth(path)


@pytest.mark.parametrize("name", ["../../a.mp4", "/etc/a.mp4", "top_left/a.mp4", "top_left/1.txt"])
def test_the_truth_names_clips_of_its_folder_only(name: str, tmp_path: Path) -> None:
    masks = np.zeros((2, 1, 2, 8, 1), np.uint8)
    np.savez(tmp_path / "a.npz", paths=[name], queries=np.zeros((1, 3), np.int64), masks=masks)
    with pytest.raises(
        ValueError, match=r"a\.npz is not the truth of a task; write the task again"
    ):
        read_truth(tmp_path / "a.npz")
