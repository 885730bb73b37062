"""The trunk: `norm_pre -> blocks -> final norm` of a real timm model, run on any tokens.

Shapes: B sequences, N tokens, D channels (the trunk's width).
"""

from torch import Tensor, nn

from vitwarm.trunk.blocks import in_order, run_blocks
from vitwarm.trunk.families import family_of


def trunk_facts(model: nn.Module) -> dict[str, str | int | None]:
    """Block type, width, depth and heads of a timm model or decoder; see `Family.facts`."""
    return family_of(model).facts


class Trunk(nn.Module):
    """The shared part of every stage. Holds the modules of the model it is made from, not copies.

    Tensor names are the same for every source: `norm_pre.*`, `blocks.N.*`, `norm.*`, whichever of `norm` and
    `fc_norm` is real in the model. Symbols have no place on the image grid: models with rotary positions run without
    rotation, those with relative-position biases without these, and such tensors are not the trunk's.

    Args:
        model: timm model, or a decoder.
        grad_checkpointing: recompute each block in the backward pass.
        middle_runs: how often the middle one of three blocks runs, one time after the other and with the same weights.

    Raises:
        UserError: the model's family is not supported; the message says why. Not three blocks, where one is to repeat.
    """

    def __init__(self, model: nn.Module, grad_checkpointing: bool = False, middle_runs: int = 1):
        super().__init__()
        family = family_of(model)
        self.norm_pre = getattr(family.model, "norm_pre", nn.Identity())
        self.blocks = family.blocks()
        self.norm = getattr(family.model, family.final_norm)
        self.mask_arguments = family.mask_arguments  # of the class: the model's other parts are not held
        self.width = int(family.model.embed_dim)
        self.grad_checkpointing = grad_checkpointing
        in_order(self.blocks, middle_runs)  # refuses a middle of other than three blocks
        self.middle_runs = middle_runs

    def forward(self, x: Tensor, *, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, D) tokens to (B, N, D) normalised features.

        Args:
            x: tokens.
            attn_mask: broadcastable to (B, heads, N, N); bool (True attends) or additive float.
            is_causal: token i attends to tokens <= i.
        """
        x = self.norm_pre(x)
        x = run_blocks(
            in_order(self.blocks, self.middle_runs),
            x,
            self.mask_arguments(x, attn_mask, is_causal),
            grad_checkpointing=self.grad_checkpointing,
        )
        normalised: Tensor = self.norm(x)
        return normalised
