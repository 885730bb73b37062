"""Packs the documents of a corpus into sequences."""

import numpy as np

from vitwarm.data.text.corpus import Corpus
from vitwarm.errors import UserError


class Stretches:
    """The stream of all documents, cut every `length` tokens.

    Sequence i holds the N + 1 tokens [i N, i N + N], so each token but the first is predicted once. A sequence may
    begin and end within a document.

    Args:
        corpus: at least two tokens.
        length: N.
        partial: keep a last sequence that is not full.
    """

    def __init__(self, corpus: Corpus, length: int, partial: bool = False):
        self.corpus, self.length = corpus, length
        predicted = len(corpus.tokens) - 1
        self.rows = -(-predicted // length) if partial else predicted // length

    def __len__(self) -> int:
        return self.rows

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read (B,) sequences as (B, N + 1) int64 ids, and (B, N + 1) bool, False beyond the end of the corpus."""
        return self.corpus.read(rows * self.length, self.length + 1)


class WholeDocuments:
    """Documents in a given order, packed whole: a sequence holds as many as fit, each behind its separator.

    The separator behind the last document belongs to the sequence too.

    Args:
        corpus: its documents must fit.
        length: N; a sequence has N + 1 tokens.
        order: (n,) documents.

    Raises:
        UserError: a document is longer than a sequence.
    """

    def __init__(self, corpus: Corpus, length: int, order: np.ndarray):
        self.corpus, self.length, self.order = corpus, length, order
        lengths = np.diff(corpus.offsets)
        longest = int(lengths.max())
        if longest > length:
            raise UserError(f"text.length={length} does not hold the longest problem; set at least {longest}")
        self.first = first_fit(lengths[order], length)

    def __len__(self) -> int:
        return len(self.first) - 1

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read (B,) sequences as (B, N + 1) int64 ids, filled up with separators."""
        return documents(self.corpus, [self.order[self.first[r] : self.first[r + 1]] for r in rows], self.length + 1)


class Sentences:
    """Sequences of a task of GLUE: `s first` or `s first s second`, s the separator; none is longer than `length`.

    Where a pair does not fit, its longer sentence loses tokens from its end until it is no longer than the other, then
    both in turn.

    Args:
        corpus: documents `s label first` or `s label first s second`.
        length: N, at least 2.
    """

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length = corpus, length
        self.lengths = np.diff(corpus.offsets) - 1  # the label is not a token of the sequence
        self.truncated = int((self.lengths > length).sum())
        self.lengths = np.minimum(self.lengths, length)

    def __len__(self) -> int:
        return len(self.corpus)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read (B,) sequences as (B, N) int64 ids, filled up with separators, and (B,) int64 labels."""
        separator = self.corpus.manifest.separator
        ids = np.full((len(rows), int(self.lengths[rows].max())), separator, np.int64)
        labels = np.empty(len(rows), np.int64)
        for to, row in enumerate(rows):
            document = self.corpus.tokens[self.corpus.offsets[row] : self.corpus.offsets[row + 1]]
            labels[to], text = document[1], document[2:]
            parts = np.split(text, np.flatnonzero(text == separator)[:1])  # a second sentence begins with its separator
            if len(parts) == 2:
                keep = shares(len(parts[0]), len(parts[1]) - 1, self.length - 2)
                text = np.concatenate([parts[0][: keep[0]], parts[1][: keep[1] + 1]])
            text = text[: self.length - 1]
            ids[to, 1 : len(text) + 1] = text
        return ids, labels


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two sentences stay when the longer one (of equal ones the second) is cut token by token."""
    if first + second <= room:
        return first, second
    kept = min(first, max(room - second, -(-room // 2)))
    return kept, min(second, room - kept)


def documents(corpus: Corpus, rows: list[np.ndarray], length: int | None = None) -> np.ndarray:
    """Pack documents into sequences, each behind its separator; separators fill the sequence to its end.

    Args:
        corpus: holds the documents.
        rows: the documents of each of B sequences.
        length: tokens a sequence; None takes those of the longest one and one separator more.

    Returns:
        (B, length) int64.
    """
    offsets = corpus.offsets
    texts = [np.concatenate([corpus.tokens[offsets[d] : offsets[d + 1]] for d in row]) for row in rows]
    length = length or max(map(len, texts)) + 1
    ids = np.full((len(rows), length), corpus.manifest.separator, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    return ids


def first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Pack documents into sequences in order; a document that does not fit any more begins a new sequence.

    Args:
        lengths: (n,) tokens of each document, none above `capacity`.
        capacity: tokens of a sequence.

    Returns:
        (R + 1,) int64: the first document of each of R sequences, then n.
    """
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    following = np.searchsorted(ends, ends[:-1] + capacity, side="right") - 1  # if a sequence began at each document
    steps = memoryview(following)  # type: ignore[arg-type]  # NumPy declares its buffers from Python 3.12 on
    first, at = [0], 0
    while at < len(lengths):
        at = steps[at]
        first.append(at)
    return np.array(first, np.int64)
