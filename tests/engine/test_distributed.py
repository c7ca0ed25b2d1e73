import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.engine.fakes import tiny_net
from tests.engine.two_processes import everything
from videoattn.engine.checkpoint import load
from videoattn.engine.parallel import Parallel, init_parallel, resolve_device

ROOT = Path(__file__).parents[2]
Results = list[dict[str, object]]

# The compiler imports code that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> Results:
    """Returns the results of two processes. They get the variables of torchrun, which is slower."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.engine.two_processes", str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "epoch 1/2  step 2/2" in outputs[0][1]
    assert outputs[1] == ("", "")  # only rank 0 prints
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return everything(Parallel(), tmp_path_factory.mktemp("one"))


def flat(weights: object) -> torch.Tensor:
    assert isinstance(weights, dict)
    return torch.cat([value.float().flatten() for value in weights.values()])


RUNS = ["uneven", "idle", "failing", "accumulated", "auxiliary", "compiled", "averaged"]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_as_one(two: Results, one: dict[str, object], run: str) -> None:
    """Also if a rank has fewer clips in a step, or none."""
    assert torch.equal(flat(two[0][run]), flat(two[1][run]))
    torch.testing.assert_close(flat(two[0][run]), flat(one[run]), rtol=0, atol=2e-6)
    assert not torch.allclose(flat(one[run]), flat(one["before"]), atol=1e-3)


def test_two_processes_average_as_one(two: Results, one: dict[str, object], folder: Path) -> None:
    both = [load(Path(str(x["folder"])) / "averaged/checkpoint-last.pt") for x in (two[0], one)]
    torch.testing.assert_close(flat(both[0]["ema"]), flat(both[1]["ema"]), rtol=0, atol=2e-6)
    assert not torch.allclose(flat(both[0]["ema"]), flat(both[0]["model"]), atol=1e-3)


def test_two_machines_train_as_one_process(one: dict[str, object], tmp_path: Path) -> None:
    """Two agents of torchrun with two processes each, against one process with their batch."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=x"]
    words += ["--local-addr=127.0.0.1", "-m", "tests.engine.two_processes", str(tmp_path), "uneven"]
    agents = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [agent.communicate(timeout=200) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    four = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(4)]
    assert all(torch.equal(flat(four[0]["uneven"]), flat(seen["uneven"])) for seen in four)
    torch.testing.assert_close(flat(four[0]["uneven"]), flat(one["uneven"]), rtol=0, atol=2e-6)


def test_auxiliary_losses_are_means_over_both(two: Results, one: dict[str, object]) -> None:
    logs = []
    for seen in (two[0], one):
        path = Path(str(seen["folder"])) / "auxiliary/metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        logs.append([line[key] for line in lines if "wide" in line for key in ("wide", "deep")])
    assert len(logs[0]) == 8
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_two_processes_resume_bit_for_bit(two: Results) -> None:
    assert torch.equal(flat(two[0]["resumed"]), flat(two[0]["uneven"]))


def test_two_processes_train_in_stages_as_one(
    two: Results, one: dict[str, object], folder: Path
) -> None:
    """Gradients are averaged in each stage, and frozen weights keep their bits, resumed or not."""
    assert torch.equal(flat(two[0]["staged"]), flat(two[1]["staged"]))
    torch.testing.assert_close(flat(two[0]["staged"]), flat(one["staged"]), rtol=0, atol=2e-6)
    assert torch.equal(flat(two[0]["staged, resumed"]), flat(two[0]["staged"]))
    states = [load(folder / f"staged/checkpoint-epoch-000{n}.pt")["model"] for n in (1, 2, 3)]
    for number, trained in ((1, "local_branch"), (2, "fusion")):
        for name, value in states[number].items():
            moved = not torch.equal(value, states[number - 1][name])
            assert moved == name.startswith(trained), name


def test_two_processes_fine_tune_as_one(two: Results, one: dict[str, object], folder: Path) -> None:
    """Gradients are averaged for new parameters, and for the backbone once it is unfrozen."""
    assert torch.equal(flat(two[0]["fine-tuned"]), flat(two[1]["fine-tuned"]))
    torch.testing.assert_close(
        flat(two[0]["fine-tuned"]), flat(one["fine-tuned"]), rtol=0, atol=2e-6
    )
    first, second = (
        load(folder / f"fine-tuned/checkpoint-epoch-000{n}.pt")["model"] for n in (1, 2)
    )
    moved = {name for name, value in second.items() if not torch.equal(value, first[name])}
    assert moved == {"1.conv.weight", "1.conv.bias", "1.fc.weight", "1.fc.bias"}
    assert torch.equal(first["0.running_mean"], torch.zeros(3))
    assert torch.equal(first["1.conv.weight"], tiny_net().conv.weight)
    assert not torch.equal(first["1.fc.weight"], tiny_net().fc.weight)


def test_thirteen_clips_are_counted_once_on_two_processes(
    two: Results, one: dict[str, object]
) -> None:
    for seen in (*two, one):
        assert seen["failed"] == [6]
        assert isinstance(seen["indices"], torch.Tensor)
        assert seen["indices"].tolist() == [n for n in range(13) if n != 6]
        assert seen["accuracies"] == pytest.approx(one["accuracies"])
        torch.testing.assert_close(seen["probabilities"], one["probabilities"])


def test_scores_come_in_the_order_of_the_dataset(two: Results, one: dict[str, object]) -> None:
    """The steps are the same on any number of processes, and the scores those of `evaluate`."""
    for seen in (*two, one):
        steps = seen["in order"]
        assert isinstance(steps, list)
        assert [[index for index, _ in step] for step in steps] == [
            [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12],
        ]  # fmt: skip
        scores = [scores for step in steps for index, scores in step if index != 6]
        torch.testing.assert_close(torch.tensor(scores), one["probabilities"])
        assert steps[1][2] == (6, [])


def test_all_ranks_have_the_result_or_the_error_of_the_main_rank(
    two: Results, one: dict[str, object]
) -> None:
    for seen in (*two, one):
        assert seen["of the main rank"] == [0, None]
        assert seen["refused"] == "rank 0 refuses"


def test_validation_within_a_run_counts_thirteen(two: Results, folder: Path) -> None:
    lines = [
        json.loads(line) for line in (folder / "uneven" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["videos"] for line in lines if line["kind"] == "validation"] == [13, 13]


def test_running_statistics_are_the_mean_of_both(two: Results) -> None:
    assert torch.equal(flat(two[0]["statistics"]), flat(two[1]["statistics"]))


def test_checkpoints_inside_an_epoch_do_not_change_running_statistics(two: Results) -> None:
    assert torch.equal(flat(two[0]["saved"]), flat(two[0]["statistics"]))


def test_precise_statistics_use_the_same_clips(two: Results, one: dict[str, object]) -> None:
    """Each rank has half of a batch: the means agree exactly, the variances only nearly."""
    for name in ("0.running_mean", "0.running_var"):
        first, second, alone = (seen["precise"][name] for seen in (*two, one))  # type: ignore[index]
        assert torch.equal(first, second)
        torch.testing.assert_close(first, alone, rtol=0.02, atol=1e-5)
        assert not torch.equal(first, torch.zeros(3))
        assert not torch.equal(first, torch.ones(3))


def test_every_process_stops_and_one_names_the_sample(two: Results) -> None:
    messages = [str(seen["not finite"]) for seen in two]
    assert re.search(r"the loss is not finite; samples of another process", messages[0])
    assert re.search(r"the loss is not finite; samples 3 \(clips/3.mp4\)", messages[1])
    assert all("decoded; at most 1 may fail" in str(seen["lost"]) for seen in two)


def test_values_are_gathered_by_rank(two: Results, one: dict[str, object]) -> None:
    assert [seen["gathered"] for seen in two] == [[0, 1], [0, 1]]
    assert one["gathered"] == [0]


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_parallel("cpu") as group:
        assert group == Parallel()
        assert group.is_main
        assert group.sum([1.0, 2]) == [1.0, 2.0]


def test_a_group_that_cannot_form_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but the environment lacks RANK, LOCAL_"),
        init_parallel("cpu"),
    ):
        pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        with (
            pytest.raises(
                ConnectionError, match=r"rank 1 of 2 could not join the group at 127\.0\.0\.1:"
            ),
            init_parallel("cpu", timeout_seconds=1),
        ):
            pass


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(ValueError, match=r"device: got 'gpu'; choose from auto, cpu, cuda, cuda:N"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match=r"^device: got GPU 1; torch \S+ finds 0 GPUs; use cpu"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"device: got GPU 2; torch \S+ finds 2 GPUs"):
        resolve_device("cuda", local_rank=2)
