"""An endless, seekable stream of sequences from a rule, and the masked-token objective over it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vitwarm.keys import keyed_rng
from vitwarm.procedural.rule import Rule, Sequences, Vocab
from vitwarm.procedural.sampling import bernoulli

__all__ = ["CHUNK", "SPLITS", "MaskedRows", "RuleStream", "masked_batch"]

CHUNK = 256
"""Sequences drawn from one key. A constant of the stream's definition: sequence r belongs to chunk r // CHUNK."""

SPLITS = ("train", "validation", "test")


def masked_batch(
    sequences: Sequences, rng: np.random.Generator, mask_prob: float, mask_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hide each eligible position with probability `mask_prob`, independently.

    This is the masking of the ViT warm-up (arXiv 2511.13945): always replaced by MASK, never by another token or
    itself. The targets are the unmasked `sequences.tokens`. A sequence, even a batch, can come out without any hidden
    position; the loss has to allow for it.

    Returns:
        inputs (B, N) int64 and masked (B, N) bool.

    Raises:
        ValueError: when mask_prob is outside 0..1.
    """
    masked = _chosen(sequences, rng, mask_prob)
    return _hide(sequences.tokens, masked, mask_id), masked


def _chosen(sequences: Sequences, rng: np.random.Generator, mask_prob: float) -> np.ndarray:
    if not 0 <= mask_prob <= 1:
        raise ValueError(f"mask_prob must be a number from 0 to 1, got {mask_prob}")
    masked = bernoulli(rng, mask_prob, sequences.tokens.shape)
    masked &= sequences.scored
    return masked


def _hide(tokens: np.ndarray, masked: np.ndarray, mask_id: int) -> np.ndarray:
    inputs = np.empty_like(tokens)
    rows = max(1, 2**16 // max(1, tokens.shape[1]))  # as many at a time as keep the working set in cache
    for start in range(0, len(tokens), rows):
        part = slice(start, start + rows)
        # Arithmetic, in half the width, because a select by random bits is several times slower.
        ids = tokens[part].astype(np.int32)
        ids -= np.int32(mask_id)
        ids *= ~masked[part]
        ids += np.int32(mask_id)
        inputs[part] = ids
    return inputs


def _check_drawn(rule: Rule, drawn: Sequences, length: int) -> None:
    """Refuse what a loss would fail on, or train on in silence.

    Raises:
        ValueError: naming the rule.
    """
    for name, kind in {"tokens": np.int64, "scored": bool, "determined": bool}.items():
        array = getattr(drawn, name)
        if array.shape != (CHUNK, length) or array.dtype != kind:
            raise ValueError(
                f"{rule.name}: draw gave {name} of shape {array.shape} and type {array.dtype}, not {(CHUNK, length)} "
                f"and {np.dtype(kind)}"
            )
    low, high = int(drawn.tokens.min()), int(drawn.tokens.max())
    if low < 0 or high >= rule.vocab.size:
        raise ValueError(
            f"{rule.name}: draw gave tokens {low} to {high}; its vocabulary has 0 to {rule.vocab.size - 1}"
        )
    if (drawn.tokens == Vocab.mask).any():
        raise ValueError(f"{rule.name}: draw gave MASK (token {Vocab.mask}), which only the stream may put in")


@dataclass(frozen=True)
class MaskedRows:
    """A batch for the masked objective: inputs (B, N) int64, targets (B, N) int64, masked (B, N) bool."""

    inputs: np.ndarray
    targets: np.ndarray
    masked: np.ndarray


@dataclass(frozen=True)
class RuleStream:
    """Sequences 0, 1, 2, ... of a rule under one seed: a pure function of (rule, seed, split, length, sequence).

    Sequences come in chunks of `CHUNK`, each from its own key, so any sequence is reached without its predecessors, and
    how many processes or workers read the stream does not change it. The key holds the rule's `identity`: two rules, or
    two settings of one rule, share no randomness, and neither do splits, lengths or seeds.

    The chunk read last is kept, so consecutive small reads draw each chunk once; nothing else is held. What is
    returned is the caller's own copy. One reader at a time: give each thread its own stream.

    Raises:
        ValueError: when the split is unknown or the rule cannot write sequences of that length.
    """

    rule: Rule
    seed: int
    split: str
    length: int
    _last: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        self.rule.check_length(self.length)

    def _rng(self, purpose: str, chunk: int) -> np.random.Generator:
        key = ("procedural", self.rule.identity, self.length, self.split, purpose, chunk)
        return keyed_rng(self.seed, *key)

    def chunk(self, index: int) -> Sequences:
        """Sequences [index * CHUNK, (index + 1) * CHUNK)."""
        if index < 0:
            raise ValueError(f"chunk must be at least 0, got {index}")
        drawn = self.rule.sample(self._rng("rows", index), CHUNK, self.length)
        if "checked" not in self._last:  # of a rule that others wrote, once
            _check_drawn(self.rule, drawn, self.length)
            self._last["checked"] = True
        return drawn

    def rows(self, start: int, stop: int) -> Sequences:
        """Sequences [start, stop) of the stream."""
        return Sequences(*self._gather(start, stop, None))

    def masked_rows(self, start: int, stop: int, mask_prob: float) -> MaskedRows:
        """Sequences [start, stop) with eligible positions hidden as in `masked_batch`.

        A sequence is masked the same way whoever reads it.
        """
        tokens, masked = self._gather(start, stop, mask_prob)
        return MaskedRows(_hide(tokens, masked, Vocab.mask), tokens, masked)

    def _draw(self, index: int, mask_prob: float | None) -> tuple[np.ndarray, ...]:
        rows = self.chunk(index)
        if mask_prob is None:
            return rows.tokens, rows.scored, rows.determined
        return rows.tokens, _chosen(rows, self._rng("mask", index), mask_prob)

    def _gather(self, start: int, stop: int, mask_prob: float | None) -> list[np.ndarray]:
        pieces: list[Sequence[np.ndarray]] = []
        for index, rows in _pieces(start, stop):
            if rows == slice(0, CHUNK):  # a whole chunk is handed over as it is drawn
                pieces.append(self._draw(index, mask_prob))
                continue
            if self._last.get("what") != (index, mask_prob):
                self._last.update(what=(index, mask_prob), arrays=self._draw(index, mask_prob))
            pieces.append([array[rows].copy() for array in self._last["arrays"]])
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def next_token_mask(sequences: Sequences, loss_on: str) -> np.ndarray:
    """(B, N) bool, the tokens that a loss on next tokens asks for.

    Args:
        sequences: of a rule.
        loss_on: `outputs`, the eligible tokens; `all`, every token but PAD.
    """
    return sequences.scored if loss_on == "outputs" else sequences.tokens != Vocab.pad


def require_targets(sequences: Sequences, objective: str, loss_on: str) -> None:
    """Refuse sequences of a rule in which an objective has nothing to predict.

    Raises:
        ValueError: there is nothing to hide, or no token after the first to predict.
    """
    masked = objective != "next_token"
    asked = sequences.scored if masked else next_token_mask(sequences, loss_on)[:, 1:]
    if not asked.any():
        length = sequences.tokens.shape[1]
        raise ValueError(
            f"there is nothing to predict in its sequences of {length}; try longer ones or other parameters"
        )


def _pieces(start: int, stop: int) -> list[tuple[int, slice]]:
    """The chunks that hold sequences [start, stop), each with the slice of its sequences."""
    if not 0 <= start < stop:
        raise ValueError(f"sequences are read with 0 <= start < stop, got start {start} and stop {stop}")
    return [
        (index, slice(max(start - index * CHUNK, 0), min(stop - index * CHUNK, CHUNK)))
        for index in range(start // CHUNK, (stop - 1) // CHUNK + 1)
    ]
