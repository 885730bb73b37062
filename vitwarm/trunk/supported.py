"""The timm models that can be warmed up, for messages; `python tools/models.py` writes the names."""

import json
from difflib import SequenceMatcher
from math import log2
from pathlib import Path

import timm
from torch import nn

NAMES = Path(__file__).with_name("supported.json")  # {width: names}
PER_DOUBLING = 0.2  # what a factor of 2 in width counts, where the similarity of names lies in [0, 1]


def width_of(model: nn.Module) -> int:
    """Channels of a timm model's tokens, of the widest where there are several kinds."""
    widths = [getattr(model, name, 1) for name in ("embed_dim", "num_features")]
    return max(1, *(n for width in widths for n in (width if isinstance(width, (list, tuple)) else [width])))


def nearest(model: nn.Module) -> str:
    """The timm model that can be warmed up and is most like another one, by name and by width."""
    described = getattr(model, "pretrained_cfg", None) or {}
    name, width = described.get("architecture") or type(model).__name__.lower(), width_of(model)
    names = json.loads(NAMES.read_text(encoding="utf-8"))
    known = [(own, int(channels)) for channels, same in names.items() for own in same if timm.is_model(own)]

    def likeness(candidate: tuple[str, int]) -> float:
        own, channels = candidate
        return SequenceMatcher(None, name, own).ratio() - PER_DOUBLING * abs(log2(channels / width))

    return max(known, key=likeness)[0]
