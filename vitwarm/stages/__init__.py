"""Stages: stem + trunk + head + data + objective + evaluation."""

from vitwarm.stages.images import ImagesStage
from vitwarm.stages.warmup import WarmupStage

__all__ = ["ImagesStage", "WarmupStage"]
