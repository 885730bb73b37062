"""Stage `algorithmic`: a decoder answers questions, new ones at every step (arXiv 2505.22308, 2601.21725)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural.algorithmic import TaskStream, make_task
from vitwarm.stages.batches import AnswerBatch, TokenBatch
from vitwarm.stages.decoder import DecoderStage
from vitwarm.stages.registry import Setup, main_stage
from vitwarm.stages.tokens import Split, next_token_batch, next_token_losses
from vitwarm.training.batch import Sums, Totals
from vitwarm.transfer import TransferReport, mean_embeddings
from vitwarm.trunk import Decoder


@main_stage("algorithmic")
class AlgorithmicStage(DecoderStage[TokenBatch]):
    """Answers to questions, under two measures side by side; every earlier token is the true one.

    | metric | over |
    |---|---|
    | `loss` | nats, what is trained on (`algorithmic.loss_on`) |
    | `accuracy` | the published mask: without the first digit of an answer, with stop and a pad |
    | `token_accuracy` | all tokens of the answers, the stop included |
    | `exact` | whole answers |

    Args:
        config: the recipe.
        setup: not used: sequences are computed.

    Raises:
        UserError: an impossible size, budget or schedule.
    """

    name = "algorithmic"

    def __init__(self, config: Config, setup: Setup):
        section = config.algorithmic
        assert section.task is not None  # it is what asks for this stage
        try:
            self.task = make_task(section.task, section.size)
        except ValueError as error:
            raise UserError(f"algorithmic.size: {error}") from error
        length = self.tokens_per_sample = self.task.length - 1
        super().__init__(config, self.task.vocab_size, length, section.val_rows, section.eval_every)
        self.config = section
        self.streams = {split: TaskStream(self.task, config.seed, split) for split in ("train", "validation")}
        self.set_lengths(Amount.parse(section.budget, "algorithmic.budget"), self.tokens_per_sample)

    def describe(self) -> str:
        return f"{self.config.task} of size {self.task.size}, computed as it goes"

    def adopt(self, model: nn.Module, tensors: Mapping[str, Tensor], report: TransferReport) -> None:
        """Under `algorithmic.embeddings=mean`: the mean of the source's tokens; see `mean_embeddings`."""
        if self.config.embeddings == "mean":
            assert isinstance(model, Decoder)
            mean_embeddings(model, tensors, report)

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        rows = self.streams[split].rows(start, stop)
        both = rows.published | rows.answer
        trained = rows.published if self.config.loss_on == "published" else both
        if split == "train":
            return next_token_batch(rows.tokens, trained)
        batch = next_token_batch(rows.tokens, both)

        def weights(mask: np.ndarray) -> Tensor:
            """The loss mask of one measure as weights, at the positions that the measures share: (B, M)."""
            every = torch.from_numpy(mask[:, 1:]).float()
            return every if batch.positions is None else every.gather(1, batch.positions)

        return AnswerBatch(
            **vars(batch) | {"weight": float(trained[:, 1:].sum())},
            trained=weights(trained),
            published=weights(rows.published),
            answer=weights(rows.answer),
        )

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def measure(self, model: nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
        assert isinstance(batch, AnswerBatch) and isinstance(model, Decoder)  # as in all of the validation
        features = model.features(model.embed(batch.tokens), positions=batch.positions)
        logits, targets = model.logits(features).float(), batch.targets
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        right = (logits.argmax(-1) == targets).float()
        published, answer = batch.published, batch.answer
        return {
            "loss": (loss * batch.trained).sum(),
            "published": (right * published).sum(),
            "published_weight": published.sum(),
            "answer": (right * answer).sum(),
            "answer_weight": answer.sum(),
            "exact": (right >= answer).all(1).sum(),
            "rows": torch.tensor(len(targets)),
        }

    def metrics(self, totals: Totals) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["weight"],
            "accuracy": totals["published"] / totals["published_weight"],
            "token_accuracy": totals["answer"] / totals["answer_weight"],
            "exact": totals["exact"] / totals["rows"],
            "count": totals["rows"],
        }
