"""Stages: stem + trunk + head + data + objective + evaluation.

Main stages are found by their name, in `vitwarm.stages.registry`; the warm-up by its objective, here.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from vitwarm.config import Config
from vitwarm.stages.next_token import NextStateWarmup, NextTokenWarmup
from vitwarm.stages.warmup import RuleStage, WarmupStage, warmup_decoder

_OBJECTIVES: dict[str, Callable[..., RuleStage[Any]]] = {
    "masked": WarmupStage,
    "next_token": NextTokenWarmup,
    "next_state": NextStateWarmup,
}


def make_warmup(config: Config, main_samples: int | None, start: nn.Module | None = None) -> RuleStage[Any]:
    """The warm-up under the recipe's objective; arguments and errors are those of `WarmupStage`."""
    return _OBJECTIVES[config.warmup.objective](config, main_samples, start)


__all__ = ["NextStateWarmup", "NextTokenWarmup", "RuleStage", "WarmupStage", "make_warmup", "warmup_decoder"]
