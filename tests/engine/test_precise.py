"""Batch-norm statistics are recomputed with the final weights."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.engine.fakes import FakeBatches, TinyNet, optim_settings, run_in, sgd, tiny_net, to_video
from videoattn.attention.blocks.hard_crop import HardCrop
from videoattn.engine.checkpoint import load
from videoattn.engine.evaluate import evaluate
from videoattn.engine.parallel import Parallel
from videoattn.engine.plan import EpochPlan, FineTuning, Validation
from videoattn.engine.precise import PreciseBatchNorm, batch_norms
from videoattn.engine.train import fit

DIMS = (0, 2, 3, 4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.BatchNorm3d(3), nn.BatchNorm3d(3)
    return nn.Sequential(norms[0], nn.Conv3d(3, 3, 1), norms[1], tiny_net(dropout=0.5))


class WithNorm(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(self.conv, nn.BatchNorm3d(8))


def recompute(model: nn.Module, precise: PreciseBatchNorm) -> None:
    precise.recompute(model, to_video=to_video, precision="float32", parallel=Parallel())


@pytest.mark.parametrize(("num_clips", "num_batches"), [(1, 1), (8, 1), (9, 2), (99, 3)])
def test_statistics_are_means_over_batches(num_clips: int, num_batches: int) -> None:
    """Compares with a plain loop in float64; the second norm follows the first."""
    batches = FakeBatches(num_samples=12, batch_size=4, num_views=2, failing=(2, 7))
    model = net().double()
    before = {name: value.clone() for name, value in model.named_parameters()}
    wanted: list[list[torch.Tensor]] = [[], []]
    for batch in list(batches.epoch(0))[:num_batches]:
        x = to_video(batch.frames.flatten(0, 1)).double()
        for place, norm in enumerate((model[0], model[2])):
            mean, var = x.mean(DIMS), x.var(DIMS, unbiased=True)
            wanted[place].append(torch.stack([mean, var]))
            spread = x.var(DIMS, unbiased=False)
            scaled = (x - mean.view(3, 1, 1, 1)) / (spread + norm.eps).sqrt().view(3, 1, 1, 1)
            x = model[1](scaled * norm.weight.view(3, 1, 1, 1) + norm.bias.view(3, 1, 1, 1))
    model.train()
    precise = PreciseBatchNorm(batches, num_clips)
    precise.recompute(
        model, to_video=lambda f: to_video(f).double(), precision="float32",
        parallel=Parallel(),
    )  # fmt: skip
    for norm, stacks in zip((model[0], model[2]), wanted, strict=True):
        mean, var = torch.stack(stacks).mean(0).detach()
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-9, atol=1e-12)
        assert norm.momentum == 0.1
    assert not any(module.training for module in model.modules())
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])


def trained(folder: Path, precise: PreciseBatchNorm | None, **how: object) -> nn.Module:
    """Three epochs, validated after the second and the third."""
    model = net()
    resume = folder / "checkpoint-last.pt"
    fit(
        model,
        sgd(model),
        FakeBatches(num_samples=9, **how),
        to_video=to_video,
        settings=optim_settings(),
        run=run_in(folder, save_every_steps=1),
        validation=Validation(FakeBatches(num_samples=5, shuffle=False), every_epochs=2),
        plan=EpochPlan(3, precise_bn=precise),
        resume=load(resume) if resume.exists() else None,
    )
    return model


def test_training_does_not_use_them_and_can_be_resumed(tmp_path: Path) -> None:
    precise = PreciseBatchNorm(FakeBatches(num_samples=12, batch_size=4), 12)
    plain, recomputed = (trained(tmp_path / name, p) for name, p in (("a", None), ("b", precise)))
    for (name, before), after in zip(
        plain.named_parameters(), recomputed.parameters(), strict=True
    ):
        assert torch.equal(before, after), name
    again = net()
    again.load_state_dict(recomputed.state_dict())
    again.train()
    recompute(again, precise)
    assert not torch.equal(plain[0].running_mean, recomputed[0].running_mean)
    for norm, other in zip(batch_norms(again), batch_norms(recomputed), strict=True):
        assert torch.equal(norm.running_mean, other.running_mean)
        assert torch.equal(norm.running_var, other.running_var)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "c", precise, stop_at=(2, 1))
    resumed = trained(tmp_path / "c", precise)
    for name, value in recomputed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_validation_uses_them(tmp_path: Path) -> None:
    """Its scores are those of the returned network, which the checkpoint stores."""
    precise = PreciseBatchNorm(FakeBatches(num_samples=12, batch_size=4), 12)
    model = trained(tmp_path, precise)
    kept = load(tmp_path / "checkpoint-last.pt")["model"]
    assert torch.equal(kept["0.running_mean"], model[0].running_mean)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [line["loss"] for line in lines if line["kind"] == "validation"]
    batches = FakeBatches(num_samples=5, shuffle=False)
    last = evaluate(model, batches, to_video=to_video, precision="float32")
    assert len(scored) == 2
    assert scored[-1] == last.loss


def test_a_stage_that_ends_unvalidated_leaves_precise_norms(tmp_path: Path) -> None:
    """The global branch gets two epochs, the others one each; only the last epoch is validated."""
    precise = PreciseBatchNorm(FakeBatches(num_samples=12, batch_size=4), 12)
    kept = []
    for name, given in (("a", None), ("b", precise)):
        torch.manual_seed(0)
        model = HardCrop(WithNorm(), after="conv", pool="backbone", keep="last")
        fit(
            model,
            sgd(model),
            FakeBatches(num_samples=9),
            to_video=to_video,
            settings=optim_settings(),
            run=run_in(tmp_path / name),
            validation=Validation(FakeBatches(num_samples=5, shuffle=False), every_epochs=4),
            plan=EpochPlan(4, precise_bn=given),
        )
        kept.append(model)
    assert torch.equal(kept[0].global_branch.conv[0].weight, kept[1].global_branch.conv[0].weight)
    for place in ("global_branch", "local_branch"):
        norms = [batch_norms(getattr(model, place))[0] for model in kept]
        assert not torch.equal(norms[0].running_mean, norms[1].running_mean), place
    model = kept[1]
    found = batch_norms(model.global_branch)[0].running_mean.clone()
    model.set_stage(0)
    model.train()
    recompute(model, precise)
    torch.testing.assert_close(batch_norms(model.global_branch)[0].running_mean, found)


def test_frozen_norms_keep_their_statistics() -> None:
    model = net().train()
    tuning = FineTuning(frozenset({"0.weight", "0.bias"}), freeze_batch_norm=True)
    EpochPlan(1, (1,), tuning).set_train_mode(model, 0)
    recompute(model, PreciseBatchNorm(FakeBatches(num_samples=4), 4))
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert not torch.equal(model[2].running_mean, torch.zeros(3))


def test_a_rank_without_clips_is_an_error() -> None:
    batches = replace(FakeBatches(num_samples=2, batch_size=2), failing=(0, 1))
    with pytest.raises(ValueError, match=r"^precise batch norm: a process could not decode any"):
        recompute(net().train(), PreciseBatchNorm(batches, 2))
