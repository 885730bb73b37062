"""A timm model whose blocks run in our loop: stem -> trunk -> head, bit-equal to the model's own forward."""

from torch import Tensor, nn

from vitwarm.trunk.trunk import Trunk, run_blocks


class ImageModel(nn.Module):
    """Logits of a timm model, with gradient checkpointing by our block loop.

    The model is the only registered child (`vit`), so tensor names are timm's behind one prefix. Its final norm
    stays where timm has it: before the pooling (`norm`) or behind it (`fc_norm`).

    Raises:
        UserError: the model's family is not supported.
    """

    def __init__(self, vit: nn.Module, grad_checkpointing: bool = False):
        super().__init__()
        Trunk(vit)  # refuses what has no trunk
        self.vit = vit
        self.grad_checkpointing = grad_checkpointing

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes) logits."""
        vit = self.vit
        tokens = vit._pos_embed(vit.patch_embed(images))
        rope = None
        if isinstance(tokens, tuple):  # EVA family: patch dropout is already applied and the rotation comes along
            tokens, rope = tokens
        else:
            tokens = vit.patch_drop(tokens)
        tokens = vit.norm_pre(tokens)
        tokens = run_blocks(
            vit.blocks,
            tokens,
            rope=rope,
            rope_per_block=getattr(vit, "rope_mixed", False),
            grad_checkpointing=self.grad_checkpointing,
        )
        return vit.forward_head(vit.norm(tokens))
