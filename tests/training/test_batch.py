"""What every micro-batch and every sum can do."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vitwarm.training.batch import Batch, Sums, means


@dataclass(kw_only=True, eq=False)
class Numbers(Batch):
    x: Tensor
    offset: int
    mask: Tensor | None = None


def test_all_tensors_move_and_nothing_else():
    batch = Numbers(weight=3.0, x=torch.ones(2), offset=5)
    moved = batch.to(torch.device("meta"))
    assert type(moved) is Numbers and (moved.weight, moved.offset, moved.mask) == (3.0, 5, None)
    assert moved.x.is_meta and not batch.x.is_meta
    assert list(batch.tensors()) == ["x"]
    masked = Numbers(weight=3.0, x=torch.ones(2), offset=5, mask=torch.zeros(2)).map(lambda tensor: tensor + 1)
    assert masked.x.tolist() == [2, 2] and masked.mask.tolist() == [1, 1]


def test_sums_that_are_counted_are_named():
    loss = torch.ones((), requires_grad=True) * 2
    assert list(Sums(loss).named()) == ["loss"]
    named = Sums(loss, torch.tensor(3)).named()
    assert named == {"loss": 2.0, "correct": 3} and not named["loss"].requires_grad


def test_means_are_over_the_weight_and_a_count_becomes_a_share():
    totals = {"weight": 4.0, "loss": 6.0, "correct": 3.0, "top5": 4.0}
    assert means(totals) == {"loss": 1.5, "accuracy": 0.75, "top5": 1.0, "count": 4.0}
    assert means({"weight": 0.0, "loss": 0.0}) == pytest.approx({"loss": 0.0, "count": 0.0})
