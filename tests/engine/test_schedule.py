import pytest
import torch

from videoattn.engine.schedule import cosine, multistep, one_cycle


def test_cosine_rises_then_falls_to_the_final_rate() -> None:
    rates = [
        cosine(step, num_steps=110, warmup_steps=10, base=1.0, final=0.1) for step in range(111)
    ]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_cosine_without_warm_up_equals_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=0.01)
    for step in range(20):
        ours = cosine(step, num_steps=20, base=0.3, final=0.01)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("num_steps", [10, 37])
def test_one_cycle_equals_torch(num_steps: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.02, total_steps=num_steps, cycle_momentum=False
    )
    for step in range(num_steps):
        ours = one_cycle(step, num_steps=num_steps, peak=0.02)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        if step < num_steps - 1:
            scheduler.step()


def test_multistep_falls_at_its_milestones() -> None:
    rates = [multistep(step, milestones=[4, 6], base=1.0, warmup_steps=1) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"step: got -1; need 0 or more"):
        cosine(-1, num_steps=5, base=1.0)
    with pytest.raises(ValueError, match=r"num_steps: got 0; need at least 1"):
        cosine(0, num_steps=0, base=1.0)
    with pytest.raises(ValueError, match=r"warmup_steps: got -2; need 0 \(no warm-up\) or more"):
        cosine(0, num_steps=5, base=1.0, warmup_steps=-2)
    with pytest.raises(ValueError, match=r"warmup_share: got 1.5; need a fraction between 0 and 1"):
        one_cycle(0, num_steps=5, peak=1.0, warmup_share=1.5)
    with pytest.raises(ValueError, match=r"milestones: got \[6, 4\]; need increasing steps"):
        multistep(0, milestones=[6, 4], base=1.0)
