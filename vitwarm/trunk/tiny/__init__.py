"""A fast path for tiny decoders on a CPU: loss and gradients of a batch in one call of compiled code.

A decoder of width 16 leaves PyTorch little to do in each operation: a product has 16 terms, a head 4 channels, and most
of the time goes into starting operations and into moving numbers that would fit the cache. `step.cpp` turns the layout
round. Its innermost axis is not the channel but the **sequence**: a vector register holds the same number of 16
sequences (or 8, or 4, as many as the machine's registers take). Every operation of the model is then a loop over
scalars, where each scalar happens to be a vector. Products have no tails, softmax and LayerNorm no sums across lanes,
and a group of sequences stays in the cache from the embedding to the gradient.

| saved | how |
|---|---|
| padding | sequences are sorted by the place of their last prediction, and cut behind it |
| places without predictions | the last block's queries, projection and MLP, and the head, run at the others only |
| attention scores | computed again on the way back, as fused attention does |
| dropout masks | a hash of (seed, place in the model, sequence, element), computed again on the way back |

PyTorch stays in charge. The loss is an autograd function of the decoder's parameters: parameter groups, frozen tensors,
clipping, optimisers, schedules, accumulation, checkpoints and logs work as ever. One thread computes in float32, in an
order that the batch alone determines, so the same seed gives the same bits. They differ from PyTorch's in the last
places, and dropout draws other masks.

The system's C++ compiler makes the code when it is first needed, once for each width and number of heads, and the cache
folder keeps it. Without a compiler, and wherever `obstacle` finds a reason, a decoder runs in PyTorch. Numba was tried
first: it does not vectorise such loops over 16 lanes, and took 10 times as long.
"""

from vitwarm.trunk.tiny.loss import obstacle, tiny_loss

__all__ = ["obstacle", "tiny_loss"]
