"""A fast path for tiny decoders on a processor: loss and gradients of a batch in one call of compiled code.

A decoder of width 16 leaves PyTorch little to do in each operation: a matrix product has 16 terms, a head 4 channels, and
most of the time goes into calling kernels and moving numbers that would fit the caches. `step.cpp` turns the layout
round. Its innermost axis is not the channel but the **sequence**: a vector register holds the same number of 16 (8, 4)
sequences, as many as fit the machine's registers. Then every operation of the model is a loop over scalars in which each
scalar happens to be a vector: products have no tails, softmax and LayerNorm need no sums across lanes, and a few sequences
stay in the cache from the embedding to the gradient.

| saved | how |
|---|---|
| padding | sequences are sorted by the place of their last prediction, and cut behind it |
| places without predictions | the last block's queries, projection, MLP and the head run only where a prediction is made |
| attention scores | computed again on the way back, as fused attention does |
| dropout masks | a hash of (seed, place, sequence, element), computed again on the way back |

PyTorch stays in charge. `TinyLoss` is an autograd function of the decoder's parameters: parameter groups, frozen tensors,
clipping, optimisers, schedules, checkpoints and logs work as ever, and so does gradient accumulation. Everything is
computed in float32 by one thread, in an order that the batch alone determines: the same seed gives the same bits. The
results differ from PyTorch's in the last bits, and dropout draws other masks.

The code is compiled by the system's C++ compiler when it is first needed, once for each width and number of heads, and
kept in the cache folder. Without a compiler, and wherever `obstacle` finds a reason, the decoder runs in PyTorch.
"""

from vitwarm.trunk.tiny.loss import obstacle, tiny_loss

__all__ = ["obstacle", "tiny_loss"]
