"""Text from a decoder, with a cache of keys and values."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.trunk.blocks import in_order
from vitwarm.trunk.decoder import Decoder


class KVCache(TorchFunctionMode):
    """Gives attention the keys and values of all tokens so far, while only new tokens run through the blocks.

    timm's attention has no cache. It ends in one call of `F.scaled_dot_product_attention`, causal and without a mask;
    inside this context that call attends to what the cache holds as well, so nothing of timm is copied. The calls of
    one forward pass come in the order of the blocks.

    Args:
        depth: blocks.
        capacity: most tokens in all.
    """

    def __init__(self, depth: int, capacity: int):
        super().__init__()
        self.depth, self.capacity = depth, capacity
        self.calls = 0
        self.length = 0  # tokens that all blocks have seen
        self.kept: list[tuple[Tensor, Tensor]] = []  # for each block (B, H, capacity, D / H) keys and values

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, **_: Any
    ) -> Tensor:
        if attn_mask is not None or not is_causal:
            raise NotImplementedError("the cache serves plain causal attention")
        new, block = q.shape[2], self.calls % self.depth
        if block == len(self.kept):
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.kept.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self.kept[block]
        start, stop = self.length, self.length + new
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        self.calls += 1
        if block == self.depth - 1:
            self.length = stop
        # Query i stands at position start + i. SDPA's own causal mask counts from 0 for queries and keys alike.
        mask = torch.ones(new, stop, dtype=torch.bool, device=q.device).tril(start) if start and new > 1 else None
        return F.scaled_dot_product_attention(
            q, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask, is_causal=start == 0 and new > 1
        )


@torch.no_grad()
def generate(
    decoder: Decoder,
    tokens: Tensor,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    stop: int | None = None,
    cache: bool = True,
) -> Tensor:
    """Continue each sequence by `count` tokens.

    Args:
        decoder: left in the mode, training or not, in which it came.
        tokens: (B, P) ids, P >= 1.
        count: tokens to add.
        temperature: logits are divided by it; 0 takes the most probable token.
        top_k: sample among the k most probable tokens only.
        seed: root seed of the sampling; its draws are the same on every device.
        stop: a sequence that has produced this id is filled with it; generation ends early when all have.
        cache: False runs all tokens again for each new one; so does a decoder without timm's fused attention, which
            passes nothing through a cache.

    Returns:
        (B, P + new) ids, new <= count.

    Raises:
        UserError: no prompt, more tokens than the decoder has positions, a temperature or `top_k` that cannot be.
    """
    prompt = tokens.shape[1]
    if prompt == 0:
        raise UserError("nothing to continue: the prompt has no tokens")
    if prompt + count > decoder.n_positions:
        raise UserError(
            f"{prompt} tokens of prompt and {count} new ones do not fit the decoder's {decoder.n_positions} positions"
        )
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature!r}; give 0 for the most probable tokens, or a number above it")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k!r}; give 1 or more, or leave it out")
    if top_k is not None and not temperature:
        raise UserError(
            f"top_k={top_k} has no effect at temperature 0; give a temperature such as 0.8, or leave it out"
        )
    generator = torch.Generator().manual_seed(int(keyed_rng(seed, "generate").integers(2**63)))
    blocks = in_order(decoder.blocks, decoder.middle_runs)
    store = KVCache(len(blocks), prompt + count) if cache and all(map(_is_fused, blocks)) else None
    modes = [(module, module.training) for module in decoder.modules()]
    decoder.eval()
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    try:
        for _ in range(count):
            logits = _next_logits(decoder, tokens, store)
            new = _choose(logits, temperature, top_k, generator).to(tokens.device)
            if stop is not None:
                new = new.masked_fill(done, stop)
                done |= new == stop
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            if stop is not None and done.all():
                break
    finally:
        for module, mode in modes:
            module.training = mode
    return tokens


def _next_logits(decoder: Decoder, tokens: Tensor, store: KVCache | None) -> Tensor:
    """(B, N) ids so far to the (B, V) logits of the next one."""
    if store is None:
        return decoder.logits(decoder.features(decoder.embed(tokens))[:, -1])
    start = store.length
    # Each token is one more length: compiled blocks would be compiled over and over.
    with torch.compiler.set_stance("force_eager"), store:
        features = decoder.features(decoder.embed(tokens[:, start:], start))
    if store.length != tokens.shape[1]:
        raise RuntimeError("attention did not pass through the cache; call generate with cache=False")
    return decoder.logits(features[:, -1])


def _is_fused(block: nn.Module) -> bool:
    """Whether a block's attention makes the one call that `KVCache` serves; `TIMM_FUSED_ATTN=0` builds others."""
    return bool(getattr(block.attn, "fused_attn", False))


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """(B, V) logits to (B,) ids."""
    if temperature < torch.finfo(torch.float32).tiny:  # of what it divides
        return logits.argmax(-1)
    logits = logits.float().cpu()  # the CPU draws: the same numbers whatever the device
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # the largest is 0: no infinity from a small one
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)  # no more at a tie
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
