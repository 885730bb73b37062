"""What the stages on cached text share: the order of the sequences, the budget, damage, and what was read."""

import math
from typing import Any, Literal

import numpy as np

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.data.download import DownloadCache
from vitwarm.data.opening import counted
from vitwarm.data.order import Epochs
from vitwarm.data.remote import is_url
from vitwarm.data.text import Corpus, TextSource, open_corpus, overlap
from vitwarm.data.text.packing import Sentences, Stretches, WholeDocuments
from vitwarm.data.text.readers import TextSplit
from vitwarm.data.tokenizers import Tokenizer, read_tokenizer
from vitwarm.data.web import shown
from vitwarm.errors import UserError
from vitwarm.stages.decoder import DecoderStage
from vitwarm.stages.registry import Setup
from vitwarm.training.protocol import B

Packed = Stretches | WholeDocuments | Sentences


def open_split(
    config: Config,
    setup: Setup,
    key: Literal["train", "val"],
    split: TextSplit | None = None,
    glue: str | None = None,
) -> Corpus:
    """Open documents under the recipe's tokenizer; they are tokenised on first use.

    Args:
        config: the recipe.
        setup: with the processes that tokenise.
        key: of the section `text`, whose value is files, see `TextSource`; or URLs, which are downloaded to
            `text.cache`. It starts error messages.
        split, glue: of a task that brings its own splits.

    Raises:
        UserError: files, tokenizer or documents that cannot be right.
    """
    text, spec = config.text, getattr(config.text, key)
    try:
        read_tokenizer(text.tokenizer)
    except UserError as error:
        raise UserError(f"text.tokenizer: {error}") from error
    try:
        if is_url(spec):
            if text.cache is None:
                raise UserError(f"{shown(spec)}: text is read from local files; set text.cache=DIR to download it")
            spec = DownloadCache(text.cache).local(spec)
        source = TextSource(spec, text.field, text.heading, split, glue)
        return open_corpus(source, text.tokenizer, setup.workers, text.max_damaged)
    except UserError as error:
        raise UserError(f"text.{key}: {error}") from error


class CorpusStage(DecoderStage[B]):
    """A decoder on cached text.

    Position p of the training is sequence `perm_e[p % n]` of epoch e = p // n, one keyed permutation an epoch.

    Args:
        config: the recipe.
        corpora: the data by name; `train` is trained on.
        rows: the sequences to train on.
        val_rows: sequences of one evaluation.
        tokens_per_sample: trunk tokens of a sequence; None is `text.length`.

    Raises:
        UserError: too little text, or a budget or schedule that cannot be right.
    """

    name = "text"
    tokenizer: Tokenizer

    def __init__(
        self,
        config: Config,
        corpora: dict[str, Corpus],
        rows: Packed,
        val_rows: int,
        tokens_per_sample: int | None = None,
    ):
        section = config.text
        self.tokenizer = read_tokenizer(section.tokenizer)
        super().__init__(config, self.tokenizer.vocab_size, section.length, val_rows, section.eval_every)
        self.config, self.corpora = section, corpora
        if not len(rows):
            tokens = corpora["train"].manifest.tokens
            raise UserError(
                f"text.train holds {tokens} tokens, too few for a sequence of text.length={section.length}; give more "
                "text, or a shorter text.length"
            )
        self.tokens_per_sample = tokens_per_sample or section.length
        budget = Amount.parse(section.budget, "text.budget")
        self.set_lengths(budget, self.tokens_per_sample, samples_per_epoch=len(rows))
        self.order = Epochs(len(rows), self.seed, "text")
        self._events = [
            {"event": "damaged", "sample": f"{name} {where}", "reason": why}
            for name, corpus in corpora.items()
            for where, why in corpus.manifest.named
        ]
        self.read: dict[str, Any] = {"rows": len(rows), "epochs": self.samples / len(rows)} | {
            name: {
                "documents": len(corpus),
                "tokens": corpus.manifest.tokens,
                "files": len(corpus.manifest.files),
                "bytes": sum(file["bytes"] for file in corpus.manifest.files),
                "damaged": corpus.manifest.damaged,
                "sha256": corpus.sha256,
            }
            for name, corpus in corpora.items()
        }
        for name, corpus in corpora.items():
            if name != "train":
                own = f"text.val={section.val}" if section.val else f"{name} of text.train={section.train}"
                self.read[name]["in_train"] = overlap(corpora["train"], corpus, f"text.train={section.train}", own)

    def shorten(self, steps: int, val_samples: int) -> None:
        super().shorten(steps, val_samples)
        self.read["epochs"] = self.samples / self.read["rows"]

    def example(self) -> tuple[B, int]:
        return self.batch("train", 0, 1), 1  # the text of an evaluation may be shorter than a sequence

    def describe(self) -> str:
        return f"{self.config.task}, {self.vocab_size:,} symbols ({self.config.tokenizer})"

    def facts(self) -> dict[str, Any]:
        return {"data": self.read}

    def data_read(self) -> dict[str, str]:
        """Name of a split -> its documents and the begin of their digest."""
        return {f"text.{name}": f"{len(c):,} documents, {c.sha256[:16]}" for name, c in self.corpora.items()}

    def data_line(self) -> str:
        epochs = self.read["epochs"]
        repeated = f": a token comes up to {math.ceil(epochs)} times" if epochs > 1 else ""
        train, *others = (_described(name, self.read[name]) for name in self.corpora)
        return "; ".join([f"text: {train}, {self.read['rows']:,} sequences, {epochs:.3g} epochs{repeated}", *others])

    def train_rows(self, start: int, stop: int) -> np.ndarray:
        """(B,) numbers of the sequences at positions [start, stop) of the training."""
        return self.order.at(np.arange(start, stop, dtype=np.int64))[1]

    def events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events


def _described(name: str, read: dict[str, Any]) -> str:
    """What was read of one corpus, for people."""
    notes = {"damaged": "damaged", "in_train": "also in train"}
    more = "".join(f", {read[key]:,} {words}" for key, words in notes.items() if read.get(key))
    files = f"{counted(read['files'], 'file')} of {read['bytes']:,} bytes"
    return f"{name} {counted(read['documents'], 'document')}{more}, {read['tokens']:,} tokens in {files}"
