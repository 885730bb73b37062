"""Which tensors go from a source trunk to a target model, and how a trained model leaves for plain timm."""

from vitwarm.transfer.compose import Part, compose, merge
from vitwarm.transfer.embeddings import mean_embeddings
from vitwarm.transfer.export import export_model, push_to_hub
from vitwarm.transfer.gpt2 import export_gpt2, read_gpt2
from vitwarm.transfer.groups import GROUPS, canonical, group_of, select
from vitwarm.transfer.initialise import initialise
from vitwarm.transfer.perturb import perturb
from vitwarm.transfer.rates import freeze, with_rates
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
    "export_gpt2",
    "export_model",
    "freeze",
    "group_of",
    "initialise",
    "mean_embeddings",
    "merge",
    "perturb",
    "push_to_hub",
    "read_gpt2",
    "read_source",
    "require_fit",
    "require_same_blocks",
    "resize",
    "select",
    "transfer",
    "warm_start",
    "with_rates",
]
