"""Rules made of rules: mixture, shuffled, curriculum. Each takes rules, or their plain data `{name: dyck, k: 8}`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from vitwarm.procedural.registry import make_rule, register
from vitwarm.procedural.rule import Rule, Sequences, Vocab, parameter

__all__ = ["Curriculum", "Mixture", "Shuffled"]


def _nested(label: str, given: Any) -> Rule:
    """A rule from a rule, from its name, or from its plain data; no curriculum, since its level would never change."""
    if isinstance(given, Mapping) and "name" in given:
        given = make_rule(**given)
    elif isinstance(given, str):
        given = make_rule(given)
    if not isinstance(given, Rule):
        raise ValueError(f"{label} must be a rule such as {{name: dyck, k: 8}}, got {given!r}")
    if isinstance(given, Curriculum):
        raise ValueError(f"{label} can not be a curriculum; put the curriculum around it")
    return given


@register
@dataclass(frozen=True)
class Mixture(Rule):
    """Each sequence is written by one of several rules, chosen at random by weight.

    The vocabulary is the union of theirs: symbols of the same name share an id, so that `identity` and `sort` speak
    of the same things. With `task_prefix` each sequence starts with a symbol that names its rule, `TASK0`, `TASK1`, ...
    Without it a sequence is determined only where its other tokens show that just one of the rules can have written it.
    """

    name: ClassVar[str] = "mixture"
    rules: tuple[Rule, ...] = parameter(help="the rules, each such as {name: dyck, k: 8}")
    weights: tuple[float, ...] | None = parameter(None, "one positive number a rule; none: equal weights")
    task_prefix: bool = parameter(False, "begin each sequence with a symbol that names its rule")

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = not isinstance(self.rules, (str, Mapping)) and hasattr(self.rules, "__iter__")
        rules = tuple(_nested("each of mixture.rules", given) for given in self.rules) if listed else ()
        if not rules:
            raise ValueError(f"mixture.rules must be a list of rules, got {self.rules!r}")
        object.__setattr__(self, "rules", rules)
        if self.weights is not None:
            try:
                weights = tuple(float(weight) for weight in self.weights)
            except (TypeError, ValueError):
                raise ValueError(f"mixture.weights must be a list of numbers, got {self.weights!r}") from None
            positive = all(weight > 0 for weight in weights) and sum(weights) < float("inf")
            if len(weights) != len(rules) or not positive:
                raise ValueError(f"mixture.weights must be {len(rules)} positive numbers, got {list(weights)}")
            object.__setattr__(self, "weights", weights)

    @cached_property
    def vocab(self) -> Vocab:
        tasks = [f"TASK{i}" for i in range(len(self.rules))] if self.task_prefix else []
        names = [name for rule in self.rules for name in rule.vocab.names[2:]]
        return Vocab.of(dict.fromkeys(tasks + names), ())

    @cached_property
    def _to_shared(self) -> list[np.ndarray]:
        """For each rule, the shared id of each of its ids."""
        return [np.array([self.vocab.ids[name] for name in rule.vocab.names]) for rule in self.rules]

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        """The ids of the rule that the task prefix names; without a prefix, none."""
        if not self.task_prefix:
            return []
        writer = int(row[0]) - int(self._task_ids()[0])
        ids = self.rules[writer].vocab.ids
        own = np.array([ids[self.vocab.names[token]] for token in row[1:]])
        return [(a + 1, b + 1) for a, b in self.rules[writer].partners(own)]

    def _task_ids(self) -> np.ndarray:
        return np.arange(2, 2 + len(self.rules))

    def length_of(self, size: int) -> int:
        return max(rule.length_of(size) for rule in self.rules) + self.task_prefix

    def check_length(self, length: int) -> None:
        for rule in self.rules:
            if length - self.task_prefix < 1:
                raise ValueError(f"mixture: sequences of {length} tokens hold nothing but the task prefix")
            rule.check_length(length - self.task_prefix)

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        shares = np.cumsum(self.weights or [1.0] * len(self.rules))
        writer = np.searchsorted(shares, rng.random(count) * shares[-1], side="right")
        tokens = np.empty((count, length), np.int64)
        scored, determined = np.zeros((count, length), bool), np.zeros((count, length), bool)
        begin = int(self.task_prefix)
        for index, (rule, shared) in enumerate(zip(self.rules, self._to_shared, strict=True)):
            rows = np.flatnonzero(writer == index)
            if len(rows):
                part = rule.sample(rng, len(rows), length - begin)
                tokens[rows, begin:] = shared[part.tokens]
                scored[rows, begin:] = part.scored
                determined[rows, begin:] = part.determined
        if self.task_prefix:
            tokens[:, 0] = self._task_ids()[writer]
        else:
            determined &= (self._possible(tokens, scored).sum(axis=1) == 1)[:, None]
        return Sequences(tokens, scored, determined)

    def _possible(self, tokens: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """(B, rules) bool: rules that know every token in sight."""
        knows = np.zeros((len(self.rules), self.vocab.size), bool)
        for known, shared in zip(knows, self._to_shared, strict=True):
            known[shared] = True
        return np.stack([(known[tokens] | hidden).all(axis=1) for known in knows], axis=1)

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        begin = int(self.task_prefix)
        if self.task_prefix:
            writer = tokens[:, 0] - self._task_ids()[0]
            unsure = np.zeros(len(tokens), bool)
        else:
            possible = self._possible(tokens, masked)
            writer, unsure = possible.argmax(axis=1), possible.sum(axis=1) != 1
        solved = np.where(masked, Vocab.mask, tokens)
        for index, (rule, shared) in enumerate(zip(self.rules, self._to_shared, strict=True)):
            rows = np.flatnonzero((writer == index) & ~unsure)
            if len(rows):
                own = np.zeros(self.vocab.size, np.int64)
                own[shared] = np.arange(len(shared))
                visible = np.where(masked[rows], Vocab.mask, tokens[rows])[:, begin:]
                solved[rows, begin:] = shared[rule.solve(own[visible], masked[rows, begin:])]
        return solved


@register
@dataclass(frozen=True)
class Shuffled(Rule):
    """Control: the sequences of another rule with their order destroyed and their symbol counts kept.

    Eligibility moves with the token: an eligible closer is eligible wherever it lands. Nothing is determined.
    PAD stays where it is. From the ViT paper's order-shuffled control (arXiv 2511.13945).
    """

    name: ClassVar[str] = "shuffled"
    rule: Rule = parameter(help="the rule to shuffle, such as {name: dyck, k: 8}")
    part: str = parameter(
        "row",
        "what is shuffled: all tokens of the sequence, or only the eligible ones (the output)",
        choices=("row", "output"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rule", _nested("shuffled.rule", self.rule))

    @property
    def vocab(self) -> Vocab:
        return self.rule.vocab

    def length_of(self, size: int) -> int:
        return self.rule.length_of(size)

    def check_length(self, length: int) -> None:
        self.rule.check_length(length)

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        rows = self.rule.sample(rng, count, length)
        moving = rows.scored if self.part == "output" else rows.tokens != Vocab.pad
        order = _random_order(rng, count, length)
        # Sequence by sequence, the moving positions in random order next to the same positions in their own order.
        order += np.arange(count)[:, None] * length
        source = order[moving.take(order)]
        tokens, scored = rows.tokens.copy(), rows.scored.copy()
        tokens[moving], scored[moving] = rows.tokens.take(source), rows.scored.take(source)
        return Sequences(tokens, scored, np.zeros((count, length), bool))

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        """The order is gone: hidden tokens come back as MASK."""
        return np.where(masked, Vocab.mask, tokens)


def _random_order(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Positions in random order, (count, length): the stable argsort of `rng.random`, which draws 53 bits."""
    draws = rng.random((count, length))
    bits = (length - 1).bit_length()
    if bits > 11:
        return np.argsort(draws, axis=1, kind="stable")
    keys = (draws * 2.0**53).astype(np.uint64)  # sorting values is several times faster than sorting places, and
    keys <<= np.uint64(bits)  # places below the draws break ties as a stable sort does
    keys |= np.arange(length, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64((1 << bits) - 1)
    return keys.view(np.int64)


@register
@dataclass(frozen=True)
class Curriculum(Rule):
    """Another rule whose content grows with mastery: `start` symbols at level 0, `step` more at each level.

    The level is plain state that the caller keeps: `curriculum.at(level)` is the rule of a level, with a stream of its
    own, and `curriculum.next_level(accuracy, length)` says which comes next. A warm-up does so after each of its
    evaluations and keeps the level in its checkpoints. Content never outgrows the sequence; the rest of the sequence is
    PAD. Start, step and threshold as in the public code of arXiv 2601.21725.
    """

    name: ClassVar[str] = "curriculum"
    rule: Rule = parameter(help="the rule that is learnt, such as {name: sort, symbols: 20}")
    start: int = parameter(2, "content symbols at level 0", low=1)
    step: int = parameter(2, "content symbols more at each level", low=1)
    threshold: float = parameter(0.99, "validation accuracy from which a level is mastered", low=0.0, high=1.0)
    level: int = parameter(0, "the level at hand", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rule", _nested("curriculum.rule", self.rule))

    @property
    def vocab(self) -> Vocab:
        return self.rule.vocab

    def at(self, level: int) -> "Curriculum":
        """The same curriculum at another level."""
        return replace(self, level=level)

    def next_level(self, accuracy: float, length: int) -> int:
        """The level after a validation accuracy, in sequences of `length` tokens: one more if mastered and if it
        fits.
        """
        mastered = accuracy >= self.threshold
        return self.level + 1 if mastered and self.level < self.last_level(length) else self.level

    def last_level(self, length: int) -> int:
        """The level whose content is the longest that fits into `length` tokens."""
        level = 0
        while self.rule.length_of(self.start + self.step * (level + 1)) <= length:
            level += 1
        return level

    def length_of(self, size: int) -> int:
        return self.rule.length_of(size)

    def partners(self, row: np.ndarray) -> list[tuple[int, int]]:
        return self.rule.partners(row)

    def content_length(self, length: int) -> int:
        """Tokens of the inner rule's sequences within `length` at this level; PAD follows."""
        return self.rule.length_of(self.start + self.step * min(self.level, self.last_level(length)))

    def check_length(self, length: int) -> None:
        first = self.rule.length_of(self.start)
        if first > length:
            raise ValueError(f"curriculum: level 0 needs sequences of {first} tokens, got {length}")
        last = self.last_level(length)
        for level in range(min(self.level, last), last + 1):  # of all that may come, not of this one alone
            try:
                self.rule.check_length(self.rule.length_of(self.start + self.step * level))
            except ValueError as error:
                raise ValueError(
                    f"curriculum: level {level}: {error} (start={self.start}, step={self.step})"
                ) from error

    def draw(self, rng: np.random.Generator, count: int, length: int) -> Sequences:
        rows = self.rule.sample(rng, count, self.content_length(length))
        padding = ((0, 0), (0, length - rows.tokens.shape[1]))
        return Sequences(*(np.pad(array, padding) for array in (rows.tokens, rows.scored, rows.determined)))

    def solve(self, tokens: np.ndarray, masked: np.ndarray) -> np.ndarray:
        content = self.content_length(tokens.shape[1])
        solved = tokens.astype(np.int64)
        solved[:, :content] = self.rule.solve(tokens[:, :content], masked[:, :content])
        return solved
