"""The learning rate is a function of the step alone, and the one that timm and the papers mean."""

import math

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from vitwarm.config import OptimConfig
from vitwarm.errors import UserError
from vitwarm.training.schedule import check_lengths, learning_rate


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (100, 0), (37, 36), (1, 0), (5, 5)])
def test_cosine_is_timms_with_warmup_prefix(steps, warmup):
    optim = OptimConfig(lr=3e-3, start_lr=1e-6, min_lr=2e-5)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    timms = CosineLRScheduler(
        sgd,
        t_initial=max(1, steps - warmup),
        lr_min=optim.min_lr,
        warmup_t=warmup,
        warmup_lr_init=optim.start_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(steps):
        timms.step_update(step)
        assert learning_rate(step, steps, optim, warmup, 0) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-12)


def test_cosine_floor_heads_for_zero_and_stays_at_the_floor():
    optim = OptimConfig(lr=2.0, start_lr=0.0, min_lr=0.2, schedule="cosine_floor")
    rates = [learning_rate(s, 110, optim, 10, 0) for s in range(110)]
    assert rates[60] == pytest.approx(1.0)  # half way
    assert rates[10:] == pytest.approx([max(0.2, 1 + math.cos(math.pi * s / 100)) for s in range(100)])
    assert rates[90:] == [0.2] * 20 and rates[89] > 0.2  # arccos(-0.8) is 0.795 pi


def test_wsd_is_flat_then_falls_in_a_straight_line_to_the_floor():
    optim = OptimConfig(lr=1.0, start_lr=0.0, min_lr=0.1, schedule="wsd")
    rates = [learning_rate(s, 100, optim, 10, 20) for s in range(101)]
    assert rates[:11] == pytest.approx([s / 10 for s in range(11)])
    assert set(rates[10:81]) == {1.0}
    falls = [a - b for a, b in zip(rates[80:100], rates[81:101], strict=True)]
    assert falls == pytest.approx([0.9 / 20] * 20)
    assert rates[100] == pytest.approx(0.1)


def test_constant_stays_at_the_peak():
    optim = OptimConfig(lr=0.5, start_lr=0.0, schedule="constant")
    assert [learning_rate(s, 10, optim, 2, 5) for s in range(10)] == [0.0, 0.25] + [0.5] * 8


def test_cosine_ends_one_step_short_of_the_floor_and_never_rises_after_the_warmup():
    optim = OptimConfig(lr=1.0, min_lr=0.0)
    rates = [learning_rate(s, 50, optim, 5, 0) for s in range(50)]
    assert all(a >= b for a, b in zip(rates[5:], rates[6:], strict=False))
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 44 / 45)))


@pytest.mark.parametrize(
    ("schedule", "warmup", "cooldown", "fits"),
    [("cosine", 10, 10, True), ("cosine", 11, 0, False), ("wsd", 6, 4, True), ("wsd", 6, 5, False)],
)
def test_a_schedule_longer_than_its_stage_is_refused(schedule, warmup, cooldown, fits):
    optim = OptimConfig(schedule=schedule)
    if fits:
        check_lengths("train", 10, optim, warmup, cooldown)
        return
    with pytest.raises(UserError, match=r"train\.lr_warmup .*10 steps"):
        check_lengths("train", 10, optim, warmup, cooldown)
