"""Stages: stem + trunk + head + data + objective + evaluation."""

from vitwarm.config import Config
from vitwarm.stages.algorithmic import AlgorithmicStage
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.next_token import NextStateWarmup, NextTokenWarmup
from vitwarm.stages.tokens import TokenStage
from vitwarm.stages.warmup import RuleStage, WarmupStage

_OBJECTIVES = {"masked": WarmupStage, "next_token": NextTokenWarmup, "next_state": NextStateWarmup}


def make_warmup(config: Config, main_samples: int | None) -> RuleStage:
    """The warm-up under the recipe's objective; arguments and errors are those of `RuleStage`."""
    return _OBJECTIVES[config.warmup.objective](config, main_samples)


__all__ = [
    "AlgorithmicStage",
    "ImagesStage",
    "NextStateWarmup",
    "NextTokenWarmup",
    "RuleStage",
    "TokenStage",
    "WarmupStage",
    "make_warmup",
]
