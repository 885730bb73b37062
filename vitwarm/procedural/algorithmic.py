"""Algorithmic tasks for tiny decoders: haystack, addition, reversed addition, multiplication, sorting.

Formats, ids and the published mask are those of arXiv 2505.22308 and 2601.21725, which took them from Zhong and Andreas
(NeurIPS 2024). Their format of sorting is not public; this one is ours.

The published loss mask includes a token when the one before it is an answer digit or the stop. So the first digit of an
answer is neither trained nor scored, while the stop and one pad behind it are. `answer` is the loss mask of the whole
answer: all digits, and the stop where there is one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from vitwarm.keys import keyed_rng
from vitwarm.procedural.sampling import below

__all__ = ["CHUNK", "HELD_OUT", "TASKS", "Task", "TaskRows", "TaskStream", "make_task"]

CHUNK = 500
"""Sequences drawn from one key. A constant of the stream's definition: sequence r belongs to chunk r // CHUNK."""

HELD_OUT = 16
"""One sequence in this many is held out: training never draws it, and validation draws only such sequences."""


@dataclass(frozen=True)
class TaskRows:
    """Sequences of a task.

    Attributes:
        tokens: (B, N) int64 ids.
        published: (B, N) bool, the papers' loss mask: the tokens that they train and score.
        answer: (B, N) bool, the loss mask of the whole answer.
    """

    tokens: np.ndarray
    published: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Task(ABC):
    """A question and its answer in one sequence of `length` tokens.

    Raises:
        ValueError: a size that the task cannot have.
    """

    size: int
    name: ClassVar[str]
    largest: ClassVar[int]  # size
    vocab_size: ClassVar[int]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.largest:
            raise ValueError(f"{self.name}: size must lie in 1..{self.largest}, got {self.size}")

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens of a sequence."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, length) int64 ids."""

    @abstractmethod
    def masks(self, tokens: np.ndarray) -> TaskRows:
        """The sequences of (B, N) token ids with both loss masks."""


@dataclass(frozen=True)
class Haystack(Task):
    """`k1 v1 ... km vm query value`: m is uniform in 1..size, keys differ, the query names one of them."""

    name: ClassVar[str] = "haystack"
    largest: ClassVar[int] = 30
    vocab_size: ClassVar[int] = 256
    size: int = 30
    keys: ClassVar[int] = 128  # first id of the 30 keys; values are 1..127
    queries: ClassVar[int] = 158

    @property
    def length(self) -> int:
        return 2 * self.size + 3  # one pad at least, as published

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        pairs = rng.integers(1, self.size, size=count, endpoint=True)
        keys = rng.random((count, self.largest)).argsort(axis=1)[:, : self.size]
        values = rng.integers(1, self.keys, size=(count, self.size))
        asked = below(rng, pairs)
        tokens = np.zeros((count, self.length), np.int64)
        shown = np.arange(self.size) < pairs[:, None]
        tokens[:, 0 : 2 * self.size : 2] = (keys + self.keys) * shown
        tokens[:, 1 : 2 * self.size : 2] = values * shown
        row = np.arange(count)
        tokens[row, 2 * pairs] = keys[row, asked] + self.queries
        tokens[row, 2 * pairs + 1] = values[row, asked]
        return tokens

    def masks(self, tokens: np.ndarray) -> TaskRows:
        answer = np.zeros(tokens.shape, bool)
        answer[:, 1:] = tokens[:, :-1] >= self.queries
        return TaskRows(tokens, answer, answer)


@dataclass(frozen=True)
class Arithmetic(Task):
    """`a OP b = result STOP`, most significant digit first; both operands have `size` digits, the first not 0."""

    vocab_size: ClassVar[int] = 31
    operator: ClassVar[int] = 10
    equals: ClassVar[int] = 11
    pad: ClassVar[int] = 12
    digit: ClassVar[int] = 20  # id of the answer's digit 0; the questions' is 0
    stop: ClassVar[int] = 30
    reverse: ClassVar[bool] = False

    @property
    @abstractmethod
    def widest(self) -> int:
        """Digits of the longest result."""

    @abstractmethod
    def result(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The results that the operator gives for the operands."""

    @property
    def length(self) -> int:
        return 2 * self.size + 2 + self.widest + 1

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        a, b = rng.integers(10 ** (self.size - 1), 10**self.size, size=(2, count))
        result = self.result(a, b)
        sign = 1 if self.reverse else -1
        places = 10 ** np.arange(self.size)[::sign]
        tokens = np.full((count, self.length), self.pad, np.int64)
        tokens[:, : self.size] = a[:, None] // places % 10
        tokens[:, self.size] = self.operator
        tokens[:, self.size + 1 : 2 * self.size + 1] = b[:, None] // places % 10
        tokens[:, 2 * self.size + 1] = self.equals
        digits = 1 + (result[:, None] >= 10 ** np.arange(1, self.widest)).sum(axis=1)
        place = np.arange(self.widest)
        power = place if self.reverse else digits[:, None] - 1 - place
        shown = place < digits[:, None]
        answer = result[:, None] // 10 ** np.where(shown, power, 0) % 10 + self.digit
        first = 2 * self.size + 2
        tokens[:, first : first + self.widest] = np.where(shown, answer, self.pad)
        tokens[np.arange(count), first + digits] = self.stop
        return tokens

    def masks(self, tokens: np.ndarray) -> TaskRows:
        published = np.zeros(tokens.shape, bool)
        published[:, 1:] = tokens[:, :-1] >= self.digit
        return TaskRows(tokens, published, tokens >= self.digit)


@dataclass(frozen=True)
class Addition(Arithmetic):
    """The papers' `forwardaddition_5`: sequences of 19 tokens."""

    name: ClassVar[str] = "addition"
    largest: ClassVar[int] = 17  # the sum fits an int64
    size: int = 5

    @property
    def widest(self) -> int:
        return self.size + 1

    def result(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a + b


@dataclass(frozen=True)
class ReversedAddition(Addition):
    """The papers' `additionstream_10`: operands and sum with the units first; sequences of 34 tokens."""

    name: ClassVar[str] = "reversed_addition"
    reverse: ClassVar[bool] = True
    size: int = 10


@dataclass(frozen=True)
class Multiplication(Arithmetic):
    """The papers' `multiplication_5`; its 29 tokens end in pads without influence, of which one is left."""

    name: ClassVar[str] = "multiplication"
    largest: ClassVar[int] = 9
    size: int = 5

    @property
    def widest(self) -> int:
        return 2 * self.size

    @property
    def length(self) -> int:
        return super().length + 1

    def result(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a * b


@dataclass(frozen=True)
class Sorting(Task):
    """`x SEP x in ascending order`, duplicates kept: `size` numbers from 0 to 99. Our format, without a stop token."""

    name: ClassVar[str] = "sorting"
    largest: ClassVar[int] = 1000
    vocab_size: ClassVar[int] = 101
    size: int = 10

    @property
    def length(self) -> int:
        return 2 * self.size + 1

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        x = rng.integers(0, self.vocab_size - 1, size=(count, self.size))
        return np.concatenate([x, np.full((count, 1), self.vocab_size - 1), np.sort(x, axis=1)], axis=1)

    def masks(self, tokens: np.ndarray) -> TaskRows:
        answer = np.zeros(tokens.shape, bool)
        answer[:, self.size + 1 :] = True
        return TaskRows(tokens, answer, answer)


TASKS: dict[str, Callable[..., Task]] = {
    task.name: task for task in (Haystack, Addition, ReversedAddition, Multiplication, Sorting)
}


def make_task(name: str, size: int | None = None) -> Task:
    """Build the task `name`, in the papers' size or in a given one.

    Raises:
        ValueError: a size that the task cannot have.
    """
    return TASKS[name]() if size is None else TASKS[name](size)


@dataclass(frozen=True)
class TaskStream:
    """Sequences 0, 1, 2, ... of a task under one seed: a pure function of (task, seed, split, sequence).

    Whether a sequence belongs to validation is decided by a hash of its tokens, the same under every seed: one sequence
    in `HELD_OUT` is only ever drawn there, and never in training.
    """

    task: Task
    seed: int
    split: str
    _last: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, start: int, stop: int) -> TaskRows:
        """Sequences [start, stop)."""
        pieces = []
        for index in range(start // CHUNK, (stop - 1) // CHUNK + 1):
            if self._last.get("index") != index:  # small reads one after the other draw each chunk once
                self._last.update(index=index, tokens=self._chunk(index))
            first = index * CHUNK
            pieces.append(self._last["tokens"][max(start - first, 0) : stop - first])
        return self.task.masks(np.concatenate(pieces))

    def _chunk(self, index: int) -> np.ndarray:
        rng = keyed_rng(self.seed, "algorithmic", self.task.name, self.task.size, self.split, index)
        wanted = self.split != "train"
        kept = np.empty((0, self.task.length), np.int64)
        while len(kept) < CHUNK:
            drawn = self.task.draw(rng, CHUNK * HELD_OUT if wanted else CHUNK)
            kept = np.concatenate([kept, drawn[held_out(drawn) == wanted]])
        return kept[:CHUNK]


def held_out(tokens: np.ndarray) -> np.ndarray:
    """(B,) bool: the sequences of (B, N) that belong to validation."""
    factors = keyed_rng(0, "algorithmic", "held out").integers(2**63, size=tokens.shape[1], dtype=np.uint64)
    mixed = ((tokens.astype(np.uint64) + np.uint64(1)) * (factors * np.uint64(2) + np.uint64(1))).sum(axis=1)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xD6E8FEB86659FD93)  # an odd constant that spreads every bit to those above it
    return (mixed >> np.uint64(40)) % np.uint64(HELD_OUT) == 0
