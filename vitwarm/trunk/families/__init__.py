"""What timm's families do differently: one adapter a family, found by the model's class.

`family_of(model)` is the one place to ask. `Family` itself is the plain ViT; a family that differs is one class in
a module beside it, registered for its timm class and imported here:

    @family(timm_class)
    class Mine(Family):
        examples = ("MyViT",)
        ...

| what | plain ViT | who differs |
|---|---|---|
| masks | `attn_mask`, `is_causal` of a block | BEiT, ViT with relative positions: a bias of the logits |
| positions of an image | added to the tokens | EVA: rotary; BEiT, ViT with relative positions: biases of attention |
| query, key, value | one matrix | EVA: perhaps three; EVA, BEiT: biases of their own |
| embedding | patches, positions, prefix tokens | what each family has for positions; decoders: token table |

Positions of the image grid mean nothing to symbols. So a trunk runs without rotation and without relative-position
biases, and their tensors belong to the embedding: a warm-up neither trains nor transfers them.
"""

from vitwarm.trunk.families.decoder import DecoderFamily
from vitwarm.trunk.families.family import (
    Attention,
    BlockSize,
    Family,
    adapter_of,
    canonical,
    copy_of,
    family,
    family_of,
    require_changeable,
    require_data,
    require_values,
    stacked,
    tensor_group,
    unwrap,
    wrappers,
)
from vitwarm.trunk.families.relative import BeitFamily, RelPosFamily
from vitwarm.trunk.families.rotary import EvaFamily, NaFlexFamily

__all__ = [
    "Attention",
    "BeitFamily",
    "BlockSize",
    "DecoderFamily",
    "EvaFamily",
    "Family",
    "NaFlexFamily",
    "RelPosFamily",
    "adapter_of",
    "canonical",
    "copy_of",
    "family",
    "family_of",
    "require_changeable",
    "require_data",
    "require_values",
    "stacked",
    "tensor_group",
    "unwrap",
    "wrappers",
]
