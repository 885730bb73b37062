"""A timm model whose blocks run in our loop: stem -> trunk -> head, bit-equal to the model's own forward."""

from torch import Tensor, nn

from vitwarm.trunk.blocks import run_blocks
from vitwarm.trunk.families import family_of


class ImageModel(nn.Module):
    """Logits of a timm model, with gradient checkpointing by our block loop.

    The model is the only registered child (`vit`), so tensor names are timm's behind one prefix. Its final norm
    stays where timm has it: before the pooling (`norm`) or behind it (`fc_norm`).

    Raises:
        UserError: the model's family is not supported.
    """

    def __init__(self, vit: nn.Module, grad_checkpointing: bool = False):
        super().__init__()
        self.family = family_of(vit)
        self.vit = vit
        self.grad_checkpointing = grad_checkpointing

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        vit = self.family.model
        tokens, arguments = self.family.embed(images)
        tokens = run_blocks(vit.blocks, tokens, arguments, grad_checkpointing=self.grad_checkpointing)
        return self.family.logits(tokens)
