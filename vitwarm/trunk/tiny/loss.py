"""When the fast path applies, and the loss that it computes.

Shapes: B sequences, N tokens, M predictions of each, D channels, V symbols.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vitwarm.trunk.blocks import in_order, is_compiled
from vitwarm.trunk.tiny.build import Unbuilt, library
from vitwarm.trunk.token_loss import TokenLoss, without_ignored

if TYPE_CHECKING:
    from vitwarm.trunk.decoder import Decoder, DecoderSize

WIDTHS = range(8, 65)
VOCAB = 1024  # symbols: the gradient of the head is kept for each lane


def obstacle(decoder: "Decoder") -> str | None:
    """Why the fast path does not apply to a decoder as it is now, in a few words; None where it does."""
    size = decoder.size
    if size.width not in WIDTHS:
        return f"width {size.width} is not {WIDTHS.start} to {WIDTHS.stop - 1}"
    if decoder.vocab_size > VOCAB:
        return f"{decoder.vocab_size} symbols are more than {VOCAB}"
    if any(type(p) is not nn.Parameter for p in decoder.parameters()):
        return "the weights are not plain parameters"  # but split over processes, or stacked
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in decoder.parameters()):
        return "the weights are not float32 on a CPU"
    if torch.is_autocast_enabled("cpu"):
        return "mixed precision"
    if is_compiled(decoder.blocks[0]):
        return "the blocks are compiled"
    if not _is_as_built(decoder):
        return "its modules, their hooks or modes are not those of a decoder as it is built"
    code = library(size.width, size.heads)
    return str(code) if isinstance(code, Unbuilt) else None


_METHODS = {"embed", "features", "logits", "_loss"}  # of a decoder, that `loss` hangs on
_SETTINGS = ("p", "eps", "num_heads", "head_dim", "scale", "max_norm")  # of dropout, norms, attention, embeddings
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _is_as_built(decoder: "Decoder") -> bool:
    """Whether nothing was done to a decoder that the compiled code, which gets its weights alone, would not see."""
    from vitwarm.trunk.decoder import Decoder  # imports this module

    if type(decoder) is not Decoder:
        return False
    built = _built(decoder.size, decoder.vocab_size, decoder.n_positions, decoder.dropout, decoder.tied)
    shared = len(set(map(id, decoder.parameters()))) < len(built[1])
    return not shared and _layout(decoder) == built


@functools.lru_cache(maxsize=64)
def _built(size: "DecoderSize", vocab_size: int, n_positions: int, dropout: float, tied: bool) -> tuple[list[Any], ...]:
    """`_layout` of a new decoder."""
    from vitwarm.trunk.decoder import Decoder

    with torch.device("meta"):
        return _layout(Decoder(size, vocab_size, n_positions, dropout=dropout, tied=tied))


def _layout(decoder: "Decoder") -> tuple[list[Any], ...]:
    """Of each module within: name, type, settings, hooks, mode if it matters; of each weight: name and shape."""
    modules: list[Any] = [_METHODS & decoder.__dict__.keys()]
    for name, module in decoder.named_modules(remove_duplicate=False):
        own, in_step = module.__dict__, not decoder.dropout or module.training == decoder.training
        hooked = bool(name) and ("forward" in own or any(own[hooks] for hooks in _HOOKS))
        settings = [own.get(setting) for setting in _SETTINGS]
        modules.append((name, type(module), settings, hooked, in_step))
    return modules, [(name, p.shape) for name, p in decoder.named_parameters(remove_duplicate=False)]


def tiny_loss(
    decoder: "Decoder", tokens: Tensor, targets: Tensor, weights: Tensor | None, positions: Tensor | None
) -> TokenLoss | None:
    """`Decoder.loss` by the fast path; None where it does not apply, also to what PyTorch would refuse.

    Args:
        decoder: whose parameters get the gradients.
        tokens: (B, N) ids.
        targets, weights, positions: (B, M), as in `Decoder.loss`.

    Raises:
        IndexError: an id or a position that the decoder does not have.
    """
    if _get_current_dispatch_mode() is not None:  # one that watches operations, to count FLOPs, say
        return None
    if not _fits(tokens, targets, weights, positions) or obstacle(decoder):
        return None
    rate = decoder.dropout if decoder.training else 0.0
    seed = int(torch.randint(2**63 - 1, ())) if rate else 0
    parameters = [*(p for name, p in decoder.named_parameters() if name != "head.weight"), decoder.head_weight]
    weights = torch.ones(targets.shape, device="cpu") if weights is None else weights
    targets, weights = without_ignored(targets.long(), weights.float())
    batch = tokens.long(), targets, weights, None if positions is None else positions.long()
    if not torch.is_grad_enabled():
        return TokenLoss(*_call(decoder, batch, rate, seed, parameters, None, []))
    return TokenLoss(*_TinyLoss.apply(decoder, batch, rate, seed, *parameters))


def _fits(tokens: Tensor, targets: Tensor, weights: Tensor | None, positions: Tensor | None) -> bool:
    """Whether the compiled code, which gets addresses alone, can read these as `tiny_loss` describes them."""
    ids = [t for t in (tokens, targets, positions) if t is not None]
    given = ids if weights is None else [*ids, weights]
    asked = tokens if positions is None else positions
    return (
        all(t.ndim == 2 and t.device.type == "cpu" and t.layout == torch.strided for t in given)
        and all(t.dtype in (torch.int32, torch.int64) for t in ids)
        and len(asked) == len(tokens)
        and targets.shape == asked.shape
        and (weights is None or (weights.shape == asked.shape and not weights.requires_grad))
    )


class _TinyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decoder: "Decoder", batch: tuple[Tensor | None, ...], rate: float, seed: int, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[4:]
        sizes = [p.numel() if wants else 0 for p, wants in zip(parameters, wanted, strict=True)]
        gradients = torch.zeros(sum(sizes)) if any(wanted) else None
        loss, correct = _call(decoder, batch, rate, seed, parameters, gradients, sizes)
        ctx.gradients, ctx.sizes, ctx.shapes = gradients, sizes, [p.shape for p in parameters]
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        parts = (ctx.gradients * grad).split(ctx.sizes)
        found = [g.view(shape) if len(g) else None for g, shape in zip(parts, ctx.shapes, strict=True)]
        return None, None, None, None, *found


def _call(
    decoder: "Decoder",
    batch: tuple[Tensor | None, ...],
    rate: float,
    seed: int,
    parameters: Sequence[Tensor],
    gradients: Tensor | None,
    sizes: list[int],
) -> tuple[Tensor, Tensor]:
    """Loss and right predictions, () each; gradients are written into one row, `sizes` of each parameter."""
    tokens, targets, weights, positions = [None if t is None else t.contiguous() for t in batch]
    assert tokens is not None and targets is not None and weights is not None
    blocks = list(decoder.blocks)
    order = [blocks.index(block) for block in in_order(decoder.blocks, decoder.middle_runs)]
    values = [p.detach().contiguous() for p in parameters]
    into: list[int | None] = [None] * len(values)
    if gradients is not None:
        parts = gradients.split(sizes)
        into = [part.data_ptr() if len(part) else None for part in parts]
    sums = (ctypes.c_double * 2)()
    code = library(decoder.size.width, decoder.size.heads)
    assert not isinstance(code, Unbuilt)  # an obstacle
    failed = code.tiny_decoder(
        decoder.vocab_size,
        len(blocks),
        len(order),
        (ctypes.c_int * len(order))(*order),
        ctypes.c_int64(len(tokens)),
        tokens.shape[1],
        targets.shape[1],
        *(ctypes.c_void_p(None if t is None else t.data_ptr()) for t in (tokens, targets, weights, positions)),
        (ctypes.c_void_p * len(values))(*(t.data_ptr() for t in values)),
        None if gradients is None else (ctypes.c_void_p * len(into))(*into),
        (ctypes.c_int64 * len(values))(*(t.numel() for t in values)),
        ctypes.c_float(rate),
        ctypes.c_uint64(seed),
        sums,
    )
    if failed:
        raise IndexError("a token, a target or a position is out of range")
    loss, correct = torch.tensor(list(sums), dtype=torch.float32)
    return loss, correct
