"""Our decoder."""

from collections.abc import Mapping
from typing import ClassVar

from vitwarm.trunk.decoder import Decoder
from vitwarm.trunk.families.family import Family, family


@family(Decoder)
class DecoderFamily(Family):
    """Our decoder, made of timm's ViT blocks: tokens instead of an image."""

    examples = ()
    tensors: ClassVar[Mapping[str, str]] = {**Family.tensors, "token_embed": "embedding"}
    prefix_names = ()
    needs = ()

    def positions(self) -> None:
        """None: its positions are those of a text."""
        return None
