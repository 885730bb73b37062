"""Stage `text` on DeepMind Mathematics (arXiv 1904.01557): the loss is that of answers alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.config import Config
from vitwarm.data.text import Corpus
from vitwarm.data.text.encode import question_mark
from vitwarm.data.text.packing import WholeDocuments, documents
from vitwarm.data.text.readers import TextSplit
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.stages.batches import ProblemBatch, TokenBatch
from vitwarm.stages.corpus import CorpusStage, open_split
from vitwarm.stages.registry import Setup
from vitwarm.stages.tokens import Split, next_token_batch, next_token_losses
from vitwarm.training.batch import Sums, Totals

VAL_SPLITS: tuple[TextSplit, ...] = ("interpolate", "extrapolate")


class MathematicsStage(CorpusStage[TokenBatch]):
    """Question and answer in sequences `BOS q SEP a BOS q SEP a ... BOS`, of whole problems in a keyed order.

    Each answer ends with the next BOS. Problems of a sequence see those before them, as in arXiv 2601.21725. In an
    evaluation each stands alone, and is right when every token of its answer and its end is the most probable one after
    the true tokens before it. The first wrong token would be written by greedy generation as well, so this is the
    accuracy of greedy whole answers.

    | metric | over |
    |---|---|
    | `loss` | nats a token of the answers, `interpolate` |
    | `accuracy` | tokens of the answers, `interpolate` |
    | `exact` | whole answers, `interpolate` |
    | `extrapolate_loss`, `extrapolate_accuracy`, `extrapolate_exact` | the same for `extrapolate` |

    Args and errors are those of `TextStage`.
    """

    def __init__(self, config: Config, setup: Setup):
        splits: tuple[TextSplit, ...] = ("train", *VAL_SPLITS)
        corpora: dict[str, Corpus] = {split: open_split(config, setup, "train", split) for split in splits}
        train, length = corpora["train"], config.text.length
        self.rows = WholeDocuments(train, length, keyed_rng(config.seed, "text", "problems").permutation(len(train)))
        self.val: list[tuple[int, int]] = []  # split, problem
        for number, split in enumerate(VAL_SPLITS):
            corpus = corpora[split]
            longest = int(np.diff(corpus.offsets).max())
            if longest > length:
                raise UserError(f"text.length={length} does not hold the longest problem of {split}; set {longest}")
            chosen = keyed_rng(0, "text", split).permutation(len(corpus))[: config.text.val_rows]
            self.val += [(number, int(problem)) for problem in np.sort(chosen)]
        super().__init__(config, corpora, self.rows, len(self.val))
        self.question_mark = question_mark(self.tokenizer)

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        if split == "train":
            ids = self.rows.read(self.train_rows(start, stop))
            return next_token_batch(ids, self.answers(ids))
        problems = [
            documents(self.corpora[VAL_SPLITS[number]], [np.array([problem])])[0]
            for number, problem in self.val[start:stop]
        ]
        padded = np.full((len(problems), max(map(len, problems))), self.corpora["train"].manifest.separator)
        for row, problem in zip(padded, problems, strict=True):
            row[: len(problem)] = problem
        return ProblemBatch(
            tokens=torch.from_numpy(padded[:, :-1]),
            targets=torch.from_numpy(padded[:, 1:]),
            weights=torch.from_numpy(self.answers(padded)[:, 1:]).float(),
            split=torch.tensor([number for number, _ in self.val[start:stop]]),
            weight=float(stop - start),
        )

    def answers(self, ids: np.ndarray) -> np.ndarray:
        """The loss mask, (B, N) bool: whether the last mark before a token is the one in front of an answer."""
        mark = np.where(ids == self.question_mark, 1, np.where(ids == self.corpora["train"].manifest.separator, 0, -1))
        last = np.maximum.accumulate(np.where(mark >= 0, np.arange(ids.shape[1]), 0), axis=1)
        loss_mask = np.zeros(ids.shape, bool)
        loss_mask[:, 1:] = np.take_along_axis(mark, last, axis=1)[:, :-1] == 1
        return loss_mask

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def measure(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        assert isinstance(batch, ProblemBatch)  # as all of the validation are
        logits, targets, loss_mask = model(batch.tokens).float(), batch.targets, batch.weights > 0
        loss = (nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") * loss_mask).sum(1)
        right = (logits.argmax(-1) == targets) & loss_mask
        sums: dict[str, Tensor] = {}
        for number, name in enumerate(VAL_SPLITS):
            here = batch.split == number
            sums |= {
                f"{name}_loss": loss[here].sum(),
                f"{name}_right": right[here].sum(),
                f"{name}_tokens": loss_mask[here].sum(),
                f"{name}_exact": (right == loss_mask)[here].all(1).sum(),
                f"{name}_problems": here.sum(),
            }
        return sums

    def metrics(self, totals: Totals) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, prefix in zip(VAL_SPLITS, ("", "extrapolate_"), strict=True):
            tokens, problems = (max(totals[f"{name}_{what}"], 1.0) for what in ("tokens", "problems"))
            found |= {
                f"{prefix}loss": totals[f"{name}_loss"] / tokens,
                f"{prefix}accuracy": totals[f"{name}_right"] / tokens,
                f"{prefix}exact": totals[f"{name}_exact"] / problems,
            }
        return found | {"count": totals["weight"]}
