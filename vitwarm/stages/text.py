"""Stage `text`: a decoder predicts the next token of documents; and what that shares with DeepMind Mathematics."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.data.plan import Epochs
from vitwarm.data.text import Corpus, TextSource, open_corpus
from vitwarm.data.text.packing import Sentences, Stretches, WholeDocuments
from vitwarm.data.tokenizers import read_tokenizer
from vitwarm.errors import UserError
from vitwarm.stages.batches import TokenBatch
from vitwarm.stages.tokens import B, Split, TokenStage, next_token_batch, next_token_losses
from vitwarm.training.batch import Sums, Totals, means
from vitwarm.trunk import Decoder


class CorpusStage(TokenStage[B]):
    """What the tasks on cached text share: corpora, the order of rows, damage. `set_model` gives it the model to train.

    Position p of the training is row `perm_e[p % n]` of epoch e = p // n, one keyed permutation an epoch.

    Attributes:
        vocab_size, n_positions: that the model must have.
        tokenizer: goes into the export.
        facts: what was read, and how often, for result and log.

    Args:
        config: the recipe.
        workers: processes that tokenise.

    Raises:
        UserError: files, tokenizer, length, budget or schedule that cannot be right.
    """

    name = "text"
    rows: Stretches | WholeDocuments | Sentences

    def __init__(self, config: Config, workers: int):
        section = config.text
        self.config, self.seed = section, config.seed
        self.workers = workers
        self.tokenizer = read_tokenizer(section.tokenizer)
        self.vocab_size, self.n_positions = self.tokenizer.vocab_size, section.length
        self.corpora = self.open()
        self._events = [
            {"event": "damaged", "sample": f"{name} {where}", "reason": why}
            for name, corpus in self.corpora.items()
            for where, why in corpus.manifest.named
        ]
        self.tokens_per_sample = section.length
        super().__init__("train", config.train, self.prepare(), section.eval_every)
        if not len(self.rows):
            tokens = self.corpora["train"].manifest.tokens
            raise UserError(f"text.train holds {tokens} tokens, too few for a row of text.length={section.length}")
        budget = Amount.parse(section.budget, "text.budget")
        self.set_lengths(budget, self.tokens_per_sample, samples_per_epoch=len(self.rows))
        self.order = Epochs(len(self.rows), self.seed, "text")
        self.facts = {"rows": len(self.rows), "epochs": self.samples / len(self.rows)} | {
            name: {
                "documents": len(corpus),
                "tokens": corpus.manifest.tokens,
                "damaged": corpus.manifest.damaged,
                "sha256": corpus.sha256,
            }
            for name, corpus in self.corpora.items()
        }

    @abstractmethod
    def open(self) -> dict[str, Corpus]:
        """The data by name; `train` is trained on."""

    @abstractmethod
    def prepare(self) -> int:
        """Set `rows`, those to train on, and `tokens_per_sample` if not `length`; returns the rows of an evaluation."""

    def corpus(self, spec: str, split: str | None = None, glue: str | None = None) -> Corpus:
        """See `open_corpus`."""
        section = self.config
        source = TextSource(spec, section.field, section.heading, split, glue)
        return open_corpus(source, section.tokenizer, self.workers, section.max_damaged)

    def set_model(self, decoder: Decoder, grad_checkpointing: bool) -> None:
        """The model to train."""
        decoder.grad_checkpointing = grad_checkpointing
        self.model = decoder

    def train_rows(self, start: int, stop: int) -> np.ndarray:
        """(B,) the rows at positions [start, stop) of the training."""
        return self.order.at(np.arange(start, stop, dtype=np.int64))[1]

    def events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events


class TextStage(CorpusStage[TokenBatch]):
    """Next-token prediction. Perplexity is exp of the mean loss over the tokens of a fixed validation set.

    The validation set is cut into rows like the training set, its last row may be short: each of its tokens is
    predicted once, with up to `length` tokens before it, on any number of processes.
    """

    rows: Stretches

    def open(self) -> dict[str, Corpus]:
        return {"train": self.corpus(self.config.train), "val": self.corpus(self.config.val)}

    def prepare(self) -> int:
        self.rows = Stretches(self.corpora["train"], self.config.length)
        self.val = Stretches(self.corpora["val"], self.config.length, partial=True)
        return min(self.config.val_rows or len(self.val), len(self.val))

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        if split == "train":
            return next_token_batch(*self.rows.read(self.train_rows(start, stop)))
        return next_token_batch(*self.val.read(np.arange(start, stop)))

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        found = means(totals)
        return {"loss": found["loss"], "perplexity": math.exp(min(found["loss"], 700.0)), **found}  # 700: no overflow
