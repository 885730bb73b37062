"""Which tensors go from a source trunk to a target model."""

from vitwarm.transfer.compose import Part, compose, merge
from vitwarm.transfer.embeddings import mean_embeddings
from vitwarm.transfer.groups import GROUPS, canonical, group_of, select
from vitwarm.transfer.perturb import perturb
from vitwarm.transfer.resize import resize
from vitwarm.transfer.warm_start import (
    TransferReport,
    read_source,
    require_fit,
    require_same_blocks,
    transfer,
    warm_start,
)

__all__ = [
    "GROUPS",
    "Part",
    "TransferReport",
    "canonical",
    "compose",
    "group_of",
    "mean_embeddings",
    "merge",
    "perturb",
    "read_source",
    "require_fit",
    "require_same_blocks",
    "resize",
    "select",
    "transfer",
    "warm_start",
]
