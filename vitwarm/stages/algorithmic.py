"""Stage `algorithmic`: a decoder answers questions, new ones at every step (arXiv 2505.22308, 2601.21725)."""

import torch
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.procedural.algorithmic import TaskStream, make_task
from vitwarm.stages.tokens import Split, TokenStage, next_token_batch
from vitwarm.training.protocol import Batch
from vitwarm.trunk import Decoder


class AlgorithmicStage(TokenStage):
    """Two measures side by side, with true earlier tokens in sight.

    | metric | over |
    |---|---|
    | `loss` | nats, what is trained on (`algorithmic.loss_on`) |
    | `accuracy` | the published mask: without the first digit of an answer, with stop and a pad |
    | `token_accuracy` | all tokens of the answers, the stop included |
    | `exact` | whole answers |

    `set_model` gives it the model to train before it runs.

    Args:
        config: the recipe.

    Raises:
        UserError: an impossible size, budget or schedule.
    """

    name = "algorithmic"
    tokenizer = None

    def __init__(self, config: Config):
        section = config.algorithmic
        super().__init__("train", config.train, section.val_rows, section.eval_every)
        self.config = section
        try:
            self.task = make_task(section.task, section.size)
        except ValueError as error:
            raise UserError(f"algorithmic.size: {error}") from error
        self.vocab_size = self.task.vocab_size
        self.tokens_per_sample = self.positions = self.task.length - 1
        self.streams = {split: TaskStream(self.task, config.seed, split) for split in ("train", "validation")}
        self.set_lengths(Amount.parse(section.budget, "algorithmic.budget"), self.tokens_per_sample)

    def set_model(self, decoder: Decoder, grad_checkpointing: bool) -> None:
        """The model to train."""
        decoder.grad_checkpointing = grad_checkpointing
        self.model = decoder

    def batch(self, split: Split, start: int, stop: int) -> Batch:
        rows = self.streams[split].rows(start, stop)
        both = rows.published | rows.answer
        trained = rows.published if self.config.loss_on == "published" else both
        batch = next_token_batch(rows.tokens, trained if split == "train" else both)
        if split == "validation":  # the same places, with what counts there for each measure
            for name, mask in (("trained", trained), ("published", rows.published), ("answer", rows.answer)):
                weights = torch.from_numpy(mask[:, 1:]).float()
                batch[name] = weights.gather(1, batch["places"]) if "places" in batch else weights
            batch["weight"] = float(trained[:, 1:].sum())
        return batch

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        features = model.features(model.embed(batch["tokens"]))
        if (places := batch.get("places")) is not None:
            features = features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))
        logits, targets = model.logits(features).float(), batch["targets"]
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        right = (logits.argmax(-1) == targets).float()
        published, answer = batch["published"], batch["answer"]
        return {
            "loss": (loss * batch["trained"]).sum(),
            "published": (right * published).sum(),
            "published_weight": published.sum(),
            "answer": (right * answer).sum(),
            "answer_weight": answer.sum(),
            "exact": (right >= answer).all(1).sum(),
            "rows": torch.tensor(len(targets)),
        }

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        return {
            "loss": totals["loss"] / totals["weight"],
            "accuracy": totals["published"] / totals["published_weight"],
            "token_accuracy": totals["answer"] / totals["answer_weight"],
            "exact": totals["exact"] / totals["rows"],
            "count": totals["rows"],
        }
