"""A GPU must give the results of the CPU, up to rounding."""

import copy
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.attention.test_hygiene import EVERY, build, clip, leave_the_start
from tests.cli.test_commands import RECIPE, command
from tests.engine.fakes import FakeBatches, optim_settings, run_in, tiny_net, to_video
from videoattn.attention import NonLocal, record_attention
from videoattn.data.synthetic import write_demo_clips
from videoattn.engine.batches import to_device
from videoattn.engine.compiled import Compile
from videoattn.engine.evaluate import evaluate
from videoattn.engine.parallel import Parallel
from videoattn.engine.plan import EpochPlan
from videoattn.engine.precision import autocast, resolve_precision
from videoattn.engine.train import fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_values_gradients_and_maps_in_float64(name: str, kind: str) -> None:
    here = leave_the_start(build(name, kind)).double().eval()
    there = copy.deepcopy(here).to("cuda")
    x = clip(2, 4, 64, 64).double()
    found = []
    for model, video in ((here, x), (there, x.to("cuda"))):
        with record_attention(model, queries=[(1, 16, 16)]) as maps:
            logits = model(video)
        nn.functional.cross_entropy(logits, torch.tensor([0, 1], device=video.device)).backward()
        found.append(
            {"logits": logits.detach()}
            | {f"map of {key}": value.weights.detach() for key, value in maps.items()}
            | {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        )
    assert found[0].keys() == found[1].keys()
    for key, want in found[0].items():
        scale = float(want.abs().max())
        torch.testing.assert_close(
            found[1][key].cpu(), want, rtol=1e-8, atol=1e-9 * max(scale, 1e-3), msg=key
        )


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_training_step_in_the_gpus_own_precision(name: str, kind: str) -> None:
    """bfloat16 where the GPU has it: the loss is float32's to 5 %, every gradient is finite."""
    place = torch.device("cuda")
    dtype = resolve_precision("auto", place)
    model = leave_the_start(build(name, kind)).to(place).train()
    x, labels = clip(4, 8, 64, 64).to(place), torch.tensor([0, 1, 2, 0], device=place)
    losses = []
    for arithmetic in (torch.float32, dtype):
        torch.manual_seed(0)
        one = copy.deepcopy(model)
        with autocast(arithmetic, place):
            loss = nn.functional.cross_entropy(one(x).float(), labels)
        loss.backward()
        losses.append(loss.item())
        for key, parameter in one.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                assert torch.isfinite(parameter.grad).all(), key
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_no_map_is_built_without_a_request() -> None:
    """28 x 28 positions of 16 frames: a map would hold 12,544^2 numbers, 600 MiB."""
    block = build("non_local", "i3d")
    x = clip(1, 16, 224, 224).to("cuda")
    block.to("cuda").eval()
    peaks = []
    for path in ("auto", "explicit"):
        for module in block.modules():
            if isinstance(module, NonLocal):
                module.path = path
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.no_grad():
            block(x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]


def test_copies_beside_the_computation_lose_nothing() -> None:
    place, scores = torch.device("cuda"), []
    batches = list(FakeBatches(num_samples=19).epoch(0))
    for there, here in zip(to_device(iter(batches), place), batches, strict=True):
        assert there.frames.is_cuda
        assert torch.equal(there.frames.cpu(), here.frames)
    for device in (torch.device("cpu"), place):
        evaluation = evaluate(
            tiny_net().to(device),
            FakeBatches(num_samples=19, failing=(3,), shuffle=False),
            to_video=lambda frames, device=device: to_video(frames).to(device),
            precision="float32",
            parallel=Parallel(device=device),
        )
        scores.append((evaluation.indices, evaluation.probabilities))
    assert torch.equal(scores[0][0], scores[1][0])
    torch.testing.assert_close(scores[0][1], scores[1][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compile", ["on", "max-autotune"])
def test_compiled_steps_on_a_gpu(compile: Compile, tmp_path: Path) -> None:
    place = torch.device("cuda")
    losses = []
    for name in ("off", compile):
        model = tiny_net().to(place)
        result = fit(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, fused=True),
            FakeBatches(num_samples=10),
            to_video=lambda frames: to_video(frames).to(place),
            settings=replace(optim_settings(accumulate_steps=2), compile=name),
            plan=EpochPlan(2),
            run=run_in(tmp_path / name),
            parallel=Parallel(device=place),
        )
        losses.append(result.state.since_log.loss or float(model.fc.weight.sum()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU gives a network that a GPU trained the scores that the GPU gives it, to the third
    digit: cuDNN's float32 convolutions round to TF32."""
    monkeypatch.chdir(tmp_path)
    write_demo_clips(tmp_path / "clips", num_train_per_class=3, num_test_per_class=2)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    assert command("train", "tiny.yaml", "data.root=clips", "--device", "cuda") == 0
    scores = {}
    for device in ("cuda", "cpu"):
        exact = "train.precision=float32"
        assert command("test", "runs/tiny", exact, "--device", device) == 0
        text = (tmp_path / "runs/tiny/test/predictions.csv").read_text()
        scores[device] = list(csv.DictReader(text.splitlines()))
    assert len(scores["cpu"]) == 16
    for there, here in zip(scores["cuda"], scores["cpu"], strict=True):
        assert there["path"] == here["path"]
        assert float(there["probability"]) == pytest.approx(float(here["probability"]), abs=2e-3)
