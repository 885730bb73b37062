"""Stages: stem + trunk + head + data + objective + evaluation."""

from vitwarm.config import Config
from vitwarm.stages.algorithmic import AlgorithmicStage
from vitwarm.stages.glue import GlueStage
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.mathematics import MathematicsStage
from vitwarm.stages.next_token import NextStateWarmup, NextTokenWarmup
from vitwarm.stages.text import CorpusStage, TextStage
from vitwarm.stages.tokens import TokenStage
from vitwarm.stages.warmup import RuleStage, WarmupStage

_OBJECTIVES = {"masked": WarmupStage, "next_token": NextTokenWarmup, "next_state": NextStateWarmup}


def make_warmup(config: Config, main_samples: int | None) -> RuleStage:
    """The warm-up under the recipe's objective; arguments and errors are those of `RuleStage`."""
    return _OBJECTIVES[config.warmup.objective](config, main_samples)


def make_text(config: Config, workers: int) -> CorpusStage:
    """The text stage of the recipe's task; arguments and errors are those of `CorpusStage`."""
    return {"language": TextStage, "mathematics": MathematicsStage}.get(config.text.task, GlueStage)(config, workers)


__all__ = [
    "AlgorithmicStage",
    "CorpusStage",
    "GlueStage",
    "ImagesStage",
    "MathematicsStage",
    "NextStateWarmup",
    "NextTokenWarmup",
    "RuleStage",
    "TextStage",
    "TokenStage",
    "WarmupStage",
    "make_text",
    "make_warmup",
]
