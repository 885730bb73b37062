"""The trunk of a timm model, the stems that feed it, the image model and the decoder around it."""

from vitwarm.trunk.build import build_model, image_size, is_drop_rate, token_grid
from vitwarm.trunk.classifier import Classifier
from vitwarm.trunk.decoder import Decoder, DecoderSize, build_decoder, configured_decoder
from vitwarm.trunk.generation import generate
from vitwarm.trunk.image_model import ImageModel
from vitwarm.trunk.initialise import initialise
from vitwarm.trunk.stems import PREFIX_TOKENS, SymbolStem
from vitwarm.trunk.trunk import Trunk, final_norm_name, merge_causal, refusal, run_blocks, trunk_facts

__all__ = [
    "PREFIX_TOKENS",
    "Classifier",
    "Decoder",
    "DecoderSize",
    "ImageModel",
    "SymbolStem",
    "Trunk",
    "build_decoder",
    "build_model",
    "configured_decoder",
    "final_norm_name",
    "generate",
    "image_size",
    "initialise",
    "is_drop_rate",
    "merge_causal",
    "refusal",
    "run_blocks",
    "token_grid",
    "trunk_facts",
]
