"""The micro-batches of the stages.

B samples, N tokens of each, M predictions. `weight` is how many predictions the loss sums over, unless said otherwise.
"""

from dataclasses import dataclass

from torch import Tensor

from vitwarm.training.batch import Batch


@dataclass(kw_only=True, eq=False)
class ImageBatch(Batch):
    """Images and their classes; `weight` is how many are valid.

    The pixels themselves are left out where the set lives on the device: there `box` and `flip` say what to cut.

    Attributes:
        labels: (B,) int64.
        valid: (B,) bool, whether the image could be read; one that could not counts nothing.
        sample: (B,) int64, the images' numbers in their set.
        offset: index of the first sample within the global batch.
        images: (B, 3, H, W) uint8.
        box: (B, 4) int64, left, top, right, bottom of the crop.
        flip: (B,) bool, whether the crop is mirrored.
    """

    labels: Tensor
    valid: Tensor
    sample: Tensor
    offset: int
    images: Tensor | None = None
    box: Tensor | None = None
    flip: Tensor | None = None


@dataclass(kw_only=True, eq=False)
class MaskedBatch(Batch):
    """Sequences with hidden tokens.

    Attributes:
        tokens: (B, N) ids, the mask's where a token is hidden.
        positions: (M,) indices of the hidden ones into the flattened (B * N) tokens.
        targets: (M,) their true ids.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor


@dataclass(kw_only=True, eq=False)
class TokenBatch(Batch):
    """Sequences whose next tokens are predicted.

    Attributes:
        tokens: (B, N) ids.
        targets: (B, M), the id that is to be predicted at each of `positions`.
        weights: (B, M) float32, what each prediction counts; 0 outside the loss mask.
        positions: (B, M) indices into the N tokens, the only ones with logits; None stands for all, M = N.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor | None = None


@dataclass(kw_only=True, eq=False)
class AnswerBatch(TokenBatch):
    """Questions of an algorithmic task, to be validated; `weight` is the sum of `trained`.

    Attributes:
        trained: (B, M) float32, 1 where the loss of the training counts.
        published: (B, M) float32, 1 where the papers' accuracy counts.
        answer: (B, M) float32, 1 at the tokens of the answer, the stop included.
    """

    trained: Tensor
    published: Tensor
    answer: Tensor


@dataclass(kw_only=True, eq=False)
class ProblemBatch(TokenBatch):
    """Problems of DeepMind Mathematics, to be validated one by one; `weight` is how many.

    Attributes:
        split: (B,) int64, index into the validation splits.
    """

    split: Tensor


@dataclass(kw_only=True, eq=False)
class SentenceBatch(Batch):
    """Sentences, or pairs of them, to be classified; `weight` is B.

    Attributes:
        tokens: (B, N) ids, padded on the right.
        labels: (B,) int64.
        files: (B,) int64, of a validation: index of the file that a sentence is from.
    """

    tokens: Tensor
    labels: Tensor
    files: Tensor | None = None


@dataclass(kw_only=True, eq=False)
class StateBatch(Batch):
    """States of an automaton, each but the first to be predicted from those before it.

    Attributes:
        states: (B, N, C) float32 of 0 and 1, C cells.
    """

    states: Tensor
