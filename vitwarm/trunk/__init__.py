"""The trunk of a timm model, the stems that feed it, the image model and the decoder around it."""

from vitwarm.trunk.blocks import merge_causal
from vitwarm.trunk.build import build_model, is_drop_rate
from vitwarm.trunk.classifier import Classifier
from vitwarm.trunk.decoder import Decoder, DecoderSize, build_decoder, configured_decoder
from vitwarm.trunk.families import Family, family, family_of, require_data, require_values, unwrap
from vitwarm.trunk.generation import generate
from vitwarm.trunk.image_model import ImageModel
from vitwarm.trunk.initialisations import initialise
from vitwarm.trunk.rehearsal import rehearse_images, require_memory, weight_bytes
from vitwarm.trunk.stems import SymbolStem
from vitwarm.trunk.trunk import Trunk, trunk_facts

__all__ = [
    "Classifier",
    "Decoder",
    "DecoderSize",
    "Family",
    "ImageModel",
    "SymbolStem",
    "Trunk",
    "build_decoder",
    "build_model",
    "configured_decoder",
    "family",
    "family_of",
    "generate",
    "initialise",
    "is_drop_rate",
    "merge_causal",
    "rehearse_images",
    "require_memory",
    "require_data",
    "require_values",
    "trunk_facts",
    "unwrap",
    "weight_bytes",
]
