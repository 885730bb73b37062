"""Cross-entropy of a large vocabulary in chunks: (B, N, vocabulary) logits never exist.

The loss needs, of each row of logits, one number and a gradient, and the gradient of a cross-entropy is known as soon
as the logits are: softmax minus the target. So each chunk computes both and throws its logits away. Against
recomputing the chunk in the backward pass (checkpointing) this saves one of four matrix products.

PyTorch's own chunked `linear_cross_entropy` (2.15) has no weight for each token and does not say which answers were
right, and earlier versions lack it.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOGITS = 2**27  # elements of a chunk: 2048 rows of GPT-2's 50257 logits, 0.4 GB in fp32
IGNORED = -100  # as a target, as in `F.cross_entropy`: the token counts nothing
ALIGN = 64  # the vocabulary is padded to a multiple: products with 50257 columns are slow, on GPUs and on CPUs


class TokenLoss(NamedTuple):
    """Sums over the tokens of a batch, each times the token's weight.

    Attributes:
        loss: (), cross-entropy in nats; differentiable.
        correct: (), how often the largest logit was the target's.
    """

    loss: Tensor
    correct: Tensor


class HeadChunk(nn.Module):
    """Loss and gradients of some tokens. A module without parameters, so that it is compiled in place like a block."""

    def forward(
        self, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, vocab_size: int, gradients: bool
    ) -> tuple[Tensor, ...]:
        """Compute the sums of `TokenLoss`, and on request the gradients of their loss.

        Args:
            x: (R, D) features.
            weight: (V, D) output weights; its rows from `vocab_size` on are padding and never predicted.
            targets: (R,) ids.
            weights: (R,), what each token counts.
            vocab_size: number of ids.
            gradients: whether to compute them.

        Returns:
            Loss and correct, () each; with `gradients` also those of the features, (R, D), and of the logits, (R, V).
        """
        logits = F.linear(x, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits[:, vocab_size:] = float("-inf")
        largest, chosen = logits.max(-1, keepdim=True)
        correct = (weights * (chosen == targets[:, None])[:, 0]).sum()
        p = logits.softmax(-1)
        # The largest probability, at least 1 / V, gives the normaliser as exactly as a pass over all logits would.
        normaliser = largest - p.gather(-1, chosen).log()
        loss = (weights * (normaliser - logits.gather(-1, targets[:, None]))[:, 0]).sum()
        if not gradients:
            return loss, correct
        grad = p.mul_(weights[:, None]).scatter_add_(-1, targets[:, None], -weights[:, None]).to(weight.dtype)
        return loss, correct, grad @ weight, grad


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        vocab_size: int,
        rows: int,
        head: HeadChunk,
    ) -> tuple[Tensor, Tensor]:
        x, weight = x.detach(), weight.detach()
        grad_x = torch.empty_like(x)
        grad_weight: Tensor | None = None
        loss, correct = weights.new_zeros(()), weights.new_zeros(())
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            sums = head(x[part], weight, targets[part], weights[part], vocab_size, True)
            loss += sums[0]
            correct += sums[1]
            grad_x[part] = sums[2]
            if grad_weight is None:  # in bf16 the small contributions of late chunks would be lost
                grad_weight = (sums[3].T @ x[part]).to(weights.dtype)
            elif grad_weight.dtype == x.dtype:
                torch.addmm(grad_weight, sums[3].T, x[part], out=grad_weight)
            else:
                grad_weight += sums[3].T @ x[part]
        assert grad_weight is not None  # there is more than one chunk
        ctx.save_for_backward(grad_x, grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors  # in place: a second backward pass is refused by autograd
        return grad_x.mul_(grad), grad_weight.mul_(grad), None, None, None, None, None


def token_loss(
    features: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    head: HeadChunk | None = None,
    max_logits: int = MAX_LOGITS,
) -> TokenLoss:
    """Summed cross-entropy of `features @ weight.T`, without ever holding more than `max_logits` logits.

    A batch that fits one chunk takes the plain way, which `torch.func` can differentiate as well.

    Args:
        features: (..., D).
        weight: (V, D) output weights.
        targets: (...), ids; -100 counts nothing, as in `F.cross_entropy`.
        weights: (...), what each token counts, None for 1; tokens of weight 0 may have any id as target.
        head: the chunk's computation, perhaps compiled.
        max_logits: largest number of logits at a time, in elements.
    """
    vocab_size, device = len(weight), features.device.type
    rows = 1 << max(max_logits // vocab_size, 1).bit_length() - 1  # a power of two: chunks of one size, mostly
    features, targets = features.flatten(0, -2), targets.flatten()
    real = torch.promote_types(features.dtype, torch.float32)
    weights = torch.ones_like(targets, dtype=real) if weights is None else weights.flatten().to(real)
    if len(features) <= rows:
        logits = F.linear(features, weight)
        loss = F.cross_entropy(logits.to(real), targets, reduction="none")
        return TokenLoss((weights * loss).sum(), (weights * (logits.argmax(-1) == targets)).sum())
    targets, weights = without_ignored(targets, weights)
    if torch.is_autocast_enabled(device):
        weight = weight.to(torch.get_autocast_dtype(device))
    features = features.to(weight.dtype)
    if padding := -vocab_size % ALIGN:
        weight = F.pad(weight, (0, 0, 0, padding))
    head = head or HeadChunk()
    if torch.is_grad_enabled():
        return TokenLoss(*_Chunked.apply(features, weight, targets, weights, vocab_size, rows, head))
    parts = zip(features.split(rows), targets.split(rows), weights.split(rows), strict=True)
    sums = [head(x, weight, t, w, vocab_size, False) for x, t, w in parts]
    return TokenLoss(*(torch.stack(s).sum() for s in zip(*sums, strict=True)))


def without_ignored(targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and weights, (...), with id 0 and weight 0 where the target is -100."""
    ignored = targets == IGNORED
    return targets.masked_fill(ignored, 0), weights.masked_fill(ignored, 0)
