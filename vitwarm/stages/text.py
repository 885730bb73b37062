"""Stage `text`: a decoder predicts the next token of documents, or does another task of `text.task`."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vitwarm.config import Config
from vitwarm.data.text.packing import Stretches
from vitwarm.stages.batches import TokenBatch
from vitwarm.stages.corpus import CorpusStage, open_split
from vitwarm.stages.glue import GlueStage
from vitwarm.stages.mathematics import MathematicsStage
from vitwarm.stages.registry import Setup, main_stage
from vitwarm.stages.tokens import Split, next_token_batch, next_token_losses
from vitwarm.training.batch import Sums, Totals, means


@main_stage("text")
def text_stage(config: Config, setup: Setup) -> CorpusStage[Any]:
    """The stage of the recipe's `text.task`."""
    tasks: dict[str, Callable[[Config, Setup], CorpusStage[Any]]] = {
        "language": TextStage,
        "mathematics": MathematicsStage,
    }
    return tasks.get(config.text.task, GlueStage)(config, setup)


class TextStage(CorpusStage[TokenBatch]):
    """Next-token prediction. Perplexity is exp of the mean loss over the tokens of a fixed validation set.

    The validation set is cut into sequences like the training set, the last one may be short: each of its tokens is
    predicted once, with up to `length` tokens before it, on any number of processes.

    Args:
        config: the recipe.
        setup: with the processes that tokenise.

    Raises:
        UserError: files, tokenizer, length, budget or schedule that cannot be right.
    """

    def __init__(self, config: Config, setup: Setup):
        text = config.text
        corpora = {"train": open_split(config, setup, "train"), "val": open_split(config, setup, "val")}
        self.rows = Stretches(corpora["train"], text.length)
        self.val = Stretches(corpora["val"], text.length, partial=True)
        super().__init__(config, corpora, self.rows, min(text.val_rows or len(self.val), len(self.val)))

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        if split == "train":
            return next_token_batch(*self.rows.read(self.train_rows(start, stop)))
        return next_token_batch(*self.val.read(np.arange(start, stop)))

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def metrics(self, totals: Totals) -> dict[str, float]:
        found = means(totals)
        return {"loss": found["loss"], "perplexity": math.exp(min(found["loss"], 700.0)), **found}  # 700: no overflow
