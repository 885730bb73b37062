"""Stage `text`, tasks of GLUE: a decoder sorts sentences and pairs of sentences into classes (arXiv 1804.07461)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.config import Config
from vitwarm.data.text import Corpus, TextSource
from vitwarm.data.text.glue import TASKS
from vitwarm.data.text.packing import Sentences
from vitwarm.data.text.readers import TextSplit, list_files
from vitwarm.keys import keyed_rng
from vitwarm.stages.batches import SentenceBatch
from vitwarm.stages.corpus import CorpusStage, open_split
from vitwarm.stages.registry import Setup
from vitwarm.stages.tokens import Split
from vitwarm.training.batch import Sums, Totals
from vitwarm.trunk import Classifier, Decoder


class GlueStage(CorpusStage[SentenceBatch]):
    """Sentences as `s sentence`, pairs as `s first s second`, s the separator of documents.

    A batch is as wide as its longest sequence.

    An evaluation adds up how often each label was taken for each, over all processes, and only then computes metrics:

    | task | metrics beside `loss` and `accuracy` |
    |---|---|
    | `cola` | `matthews` |
    | `mrpc`, `qqp` | `f1`, of label 1 |
    | `mnli` | `mismatched_loss`, `mismatched_accuracy`; those without a prefix are of the matched genres |

    Args and errors are those of `TextStage`.
    """

    stackable = False  # a batch is as wide as its longest sentence

    def __init__(self, config: Config, setup: Setup):
        text, self.task = config.text, TASKS[config.text.task]
        splits: tuple[TextSplit, ...] = ("train", *self.task.dev)
        for split in splits:  # before any is tokenised
            list_files(TextSource(text.train, split=split, glue=text.task))
        corpora: dict[str, Corpus] = {split: open_split(config, setup, "train", split, text.task) for split in splits}
        self.sentences = {name: Sentences(corpus, text.length) for name, corpus in corpora.items()}
        self.rows = self.sentences["train"]
        self.val: list[tuple[int, int]] = []  # file, sequence
        for number, split in enumerate(self.task.dev):
            chosen = keyed_rng(0, "text", split).permutation(len(self.sentences[split]))[: text.val_rows]
            self.val += [(number, int(row)) for row in np.sort(chosen)]
        mean_length = max(round(float(self.rows.lengths.mean())), 1)
        super().__init__(config, corpora, self.rows, len(self.val), mean_length)
        for name, rows in self.sentences.items():
            self.read[name]["tokens"] -= len(rows)  # the labels
            self.read[name]["truncated"] = rows.truncated

    @property
    def separator(self) -> int:
        return self.corpora["train"].manifest.separator

    def fresh_model(self, **decoder_args: Any) -> Decoder:
        labels = tuple(self.task.labels.values())
        return super().fresh_model(make=Classifier, labels=labels, pad=self.separator, **decoder_args)

    def batch(self, split: Split, start: int, stop: int) -> SentenceBatch:
        if split == "train":
            return self._batch(*self.rows.read(self.train_rows(start, stop)))
        files, rows = np.array(self.val[start:stop]).T
        found = [self.sentences[self.task.dev[f]].read(rows[files == f]) for f in np.unique(files)]  # files in order
        width = max(ids.shape[1] for ids, _ in found)
        ids = [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=self.separator) for ids, _ in found]
        labels = [labels for _, labels in found]
        return self._batch(np.concatenate(ids), np.concatenate(labels), torch.from_numpy(files))

    def _batch(self, ids: np.ndarray, labels: np.ndarray, files: Tensor | None = None) -> SentenceBatch:
        tokens = torch.from_numpy(ids)
        return SentenceBatch(tokens=tokens, labels=torch.from_numpy(labels), files=files, weight=float(len(labels)))

    def losses(self, model: Callable[..., Any], batch: SentenceBatch, step: int) -> Sums:
        """Summed cross-entropy in nats, and how many labels were right."""
        logits = model(batch.tokens).float()
        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        return Sums(loss, (logits.detach().argmax(-1) == batch.labels).sum())

    def measure(self, model: nn.Module, batch: SentenceBatch) -> dict[str, Tensor]:
        """For each file the summed loss in nats, and how many sequences of label t were given label p."""
        logits, labels, files = model(batch.tokens).float(), batch.labels, batch.files
        assert files is not None  # as in all of the validation
        count = len(self.task.labels)
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        cells = (files * count + labels) * count + logits.argmax(-1)
        counts = cells.bincount(minlength=len(self.task.dev) * count**2).cpu().view(-1, count, count)
        sums: dict[str, Tensor] = {}
        for number, name in enumerate(self.task.dev):
            sums[f"{name} loss"] = loss[files == number].sum()
            sums |= {f"{name} {t} {p}": counts[number, t, p] for t in range(count) for p in range(count)}
        return sums

    def metrics(self, totals: Totals) -> dict[str, float]:
        found: dict[str, float] = {}
        count = len(self.task.labels)
        for name, prefix in zip(self.task.dev, ("", "mismatched_"), strict=False):
            counts = np.array([[totals[f"{name} {t} {p}"] for p in range(count)] for t in range(count)])
            found[f"{prefix}loss"] = totals[f"{name} loss"] / max(counts.sum(), 1.0)
            found |= {f"{prefix}{metric}": value for metric, value in scores(self.config.task, counts).items()}
        return found | {"count": totals["weight"]}

    def example(self) -> tuple[SentenceBatch, int]:
        """One sequence of the mean length."""
        return self._batch(np.full((1, self.tokens_per_sample), self.separator), np.zeros(1, np.int64)), 1


def scores(task: str, counts: np.ndarray) -> dict[str, float]:
    """The metrics of a task.

    Args:
        task: key of `TASKS`.
        counts: (C, C), how many sequences of label t were given label p.

    Returns:
        `accuracy`; `matthews` for CoLA, `f1` for MRPC and QQP. Both are 0 where their denominator is.
    """
    found = {"accuracy": float(np.trace(counts) / max(counts.sum(), 1.0))}
    if task == "cola":
        (tn, fp), (fn, tp) = counts.tolist()
        spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        found["matthews"] = (tp * tn - fp * fn) / spread if spread else 0.0
    elif task in ("mrpc", "qqp"):
        (_, fp), (fn, tp) = counts.tolist()
        found["f1"] = 2 * tp / (2 * tp + fp + fn) if tp else 0.0
    return found
