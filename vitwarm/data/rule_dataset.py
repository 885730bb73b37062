"""Sequences of a rule as a dataset of torch, for people with a training loop of their own."""

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vitwarm.checks import rule_of, rule_spec
from vitwarm.errors import UserError
from vitwarm.keys import require_seed
from vitwarm.procedural import Rule, RuleStream
from vitwarm.procedural.stream import CHUNK, next_token_mask, require_targets

IGNORED = -100  # the label that torch's cross-entropy and transformers leave out of the loss


class RuleDataset(IterableDataset[dict[str, Tensor]]):
    """An endless stream of sequences of a rule, the same as `vitwarm.warm_up` and recipes read.

    Each sequence is {"input_ids": (N,) int64, "labels": (N,) int64}, with -100 where nothing is to be predicted.
    Labels stand at their own token, as transformers expects them: its causal models shift by one themselves.

    Loader workers, and the ranks of a process group, read disjoint parts: chunks of 256 sequences in turn. Together
    they read each sequence once, in an order that depends on how many they are. `state_dict` says how far this
    reader has come; with workers the state is in them, and only loaders that ask them for it (torchdata's
    StatefulDataLoader) resume; workers refuse a state that was loaded outside of them. Without a state each iteration
    begins with the first sequence again, and so does one with a state that was taken after the last.

    Args:
        rule: name of a rule, {"name": NAME, PARAMETER: value}, or a `Rule`.
        length: N.
        objective: `masked` hides eligible tokens and asks for them; `next_token` hides nothing and asks for them, or
            for all.
        loss_on: of `next_token` alone: the rule's eligible tokens (`outputs`, if None), or every token but PAD (`all`).
        mask_prob: of `masked` alone: the probability that an eligible token is hidden; 0.5 if None.
        seed: root seed.
        split: `train`, `validation` or `test`, drawn independently; of a rule that has few sequences, the same
            come in all.
        samples: sequences of an epoch over all readers; None is endless. Readers take whole chunks: give a multiple of
            256 times their number where ranks must have equally many, as DDP needs.
        rank: of this process; None is that in the process group.
        world: how many processes there are; None is as many as the group has.

    Raises:
        UserError: the rule does not exist or cannot write sequences of that length, or an argument that cannot be.
    """

    def __init__(
        self,
        rule: str | Mapping[str, Any] | Rule,
        length: int,
        *,
        objective: Literal["masked", "next_token"] = "masked",
        loss_on: Literal["outputs", "all"] | None = None,
        mask_prob: float | None = None,
        seed: int = 0,
        split: Literal["train", "validation", "test"] = "train",
        samples: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ):
        if not isinstance(rule, Rule):
            rule = rule_of(rule_spec(rule))
        if objective not in ("masked", "next_token") or loss_on not in ("outputs", "all", None):
            raise UserError("objective is masked or next_token, loss_on is outputs or all")
        other = ("mask_prob", mask_prob) if objective == "next_token" else ("loss_on", loss_on)
        if other[1] is not None:
            raise UserError(f"{other[0]} has no effect under objective={objective!r}; leave it out")
        loss_on, mask_prob = loss_on or "outputs", 0.5 if mask_prob is None else mask_prob
        if (rank is None) != (world is None):
            raise UserError("give rank and world together, or neither")
        if rank is not None and not (_is_whole(rank) and _is_whole(world) and 0 <= rank < (world or 0)):
            raise UserError(f"rank is {rank!r} and world {world!r}; ranks count from 0 to world - 1")
        seed = require_seed(seed)
        for name, number in (("length", length), ("samples", 1 if samples is None else samples)):
            if not (_is_whole(number) and number > 0):
                raise UserError(f"{name} is {number!r}; give a whole number from 1 on")
        if isinstance(mask_prob, bool) or not (isinstance(mask_prob, float | Real) and 0 < mask_prob <= 1):
            raise UserError(f"mask_prob is {mask_prob!r}; give a probability above 0 and at most 1")
        try:
            self.stream = RuleStream(rule, seed, split, length)
            require_targets(self.stream.chunk(0), objective, loss_on)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.rule, self.objective, self.loss_on, self.mask_prob = rule, objective, loss_on, mask_prob
        self.samples, self._rank, self._world = samples, rank, world
        self._read = 0  # sequences that the iterator which was read last has given
        self._resumes: int | None = None  # readers, of the state that the next iteration goes on from
        self._loaded_in_worker = False

    @property
    def vocab_size(self) -> int:
        """Ids of the rule's symbols, PAD and MASK included."""
        return self.rule.vocab.size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        reader, readers = self._reader()
        read = 0
        if self._resumes is not None:
            if get_worker_info() and not self._loaded_in_worker:  # a copy, and the next epoch's workers get it again
                raise UserError(
                    "the state was loaded outside of the loader's workers; read with num_workers=0, or load it by "
                    "torchdata's StatefulDataLoader"
                )
            _require_as_many(self._resumes, readers)  # a process group may have begun since it was loaded
            read, self._resumes = self._read, None
        while True:
            turn, within = divmod(read, CHUNK)
            start = (turn * readers + reader) * CHUNK
            stop = start + CHUNK if self.samples is None else min(start + CHUNK, self.samples)
            if start + within >= stop:
                self._read = 0  # a state that is taken now is that of the next epoch's start
                return
            inputs, labels = self._sequences(start + within, stop)
            for one, asked in zip(inputs, labels, strict=True):
                self._read = read = read + 1  # before it is given: a state that is taken afterwards counts it
                yield {"input_ids": torch.from_numpy(one), "labels": torch.from_numpy(asked)}

    def state_dict(self) -> dict[str, int]:
        """Where this reader is; of a loader's workers each has its own."""
        return {"read": self._read, "readers": self._reader()[1]}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken: the next iteration starts there.

        Raises:
            UserError: it is no such state, or was taken with another number of ranks or workers. Workers raise it when
                they read a data set whose state was loaded outside of them.
        """
        known = isinstance(state, Mapping) and state.keys() == {"read", "readers"}
        if not known or not all(map(_is_whole, state.values())) or state["read"] < 0:
            raise UserError(f"{state!r} is not what state_dict gives")
        _require_as_many(state["readers"], self._reader()[1])
        self._read, self._resumes = int(state["read"]), int(state["readers"])
        self._loaded_in_worker = get_worker_info() is not None

    def _reader(self) -> tuple[int, int]:
        """Number of this reader, and how many there are: every worker of every rank is one."""
        rank, world, info = self._rank, self._world, get_worker_info()
        if rank is None or world is None:
            joined = dist.is_available() and dist.is_initialized()
            rank, world = (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return rank * workers + worker, world * workers

    def _sequences(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if self.objective == "masked":
            rows = self.stream.masked_rows(start, stop, self.mask_prob)
            return rows.inputs, np.where(rows.masked, rows.targets, IGNORED)
        sequences = self.stream.rows(start, stop)
        asked = next_token_mask(sequences, self.loss_on)
        return sequences.tokens, np.where(asked, sequences.tokens, IGNORED)


def _require_as_many(then: int, now: int) -> None:
    if then != now:
        raise UserError(f"the state is that of {then} readers, now there are {now}; use as many")


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
