"""What stages over numbered sequences of tokens share: their order, the thread that writes them, evaluation."""

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import OptimConfig, TrainConfig
from vitwarm.stages.batches import TokenBatch
from vitwarm.training.batch import Sums, Totals
from vitwarm.training.param_groups import with_rates
from vitwarm.training.protocol import B, Stage
from vitwarm.training.schedule import check_lengths
from vitwarm.trunk import Decoder

AHEAD = 4  # micro-batches that the background thread may be ahead of the loop

Split = Literal["train", "validation"]


class TokenStage(Stage[B]):
    """A stage on sequences 0, 1, 2, ... of a training and of a validation set; see `vitwarm.training.protocol.Stage`.

    Step s of global batch B takes the training sequences [s B, (s + 1) B), each process its share of them, so the order
    is that of `batch` and nothing else. A thread writes batches ahead of the loop.

    A subclass sets `name`, `model` and `tokens_per_sample`, calls `set_lengths` once it knows how long a sequence is,
    and defines `blocks`, `batch` and `losses`; `next_token_batch` and `next_token_losses` are those of next-token
    prediction. A stage with other metrics than means over predictions, or with damaged data, overrides `measure` and
    `metrics`, or the events.

    Args:
        section: of the recipe that holds `optim`, for messages: `warmup` or `train`.
        optim: optimisation keys.
        val_rows: sequences of one evaluation.
        eval_every: steps between evaluations.
    """

    name: str
    model: nn.Module
    tokens_per_sample: int
    steps: int
    schedule_lengths: tuple[int, int]
    best = None
    stackable: bool = True  # batches of two seeds differ in their numbers alone
    adapts: bool = False  # sequences depend on the last evaluation, so none is written ahead of the next one

    def __init__(self, section: str, optim: OptimConfig, val_rows: int, eval_every: int):
        self.section, self.optim, self.val_samples, self.eval_every = section, optim, val_rows, eval_every

    def set_lengths(
        self,
        budget: Amount,
        sequence_tokens: int,
        samples_of_whole: int | None = None,
        samples_per_epoch: int | None = None,
    ) -> None:
        """Resolve the budget and the schedule into `steps` and `schedule_lengths`.

        Args:
            budget: of the stage.
            sequence_tokens: tokens of a sequence, in which a budget of tokens is counted.
            samples_of_whole: what a budget in percent refers to.
            samples_per_epoch: sequences of the training set, where it ends.

        Raises:
            UserError: a unit without its reference, or a schedule that does not fit.
        """
        optim = self.optim
        sizes = {
            "global_batch": optim.global_batch,
            "tokens_per_sample": sequence_tokens,
            "samples_per_epoch": samples_per_epoch,
        }
        self.steps = budget.steps(samples_of_whole=samples_of_whole, **sizes)
        warmup, cooldown = (
            Amount.parse(getattr(optim, name), f"{self.section}.{name}").steps(steps_of_whole=self.steps, **sizes)
            for name in ("lr_warmup", "cooldown")
        )
        self.schedule_lengths = warmup, cooldown
        check_lengths(self.section, self.steps, optim, *self.schedule_lengths)

    @abstractmethod
    def batch(self, split: Split, start: int, stop: int) -> B:
        """Sequences [start, stop) of a split as a micro-batch."""

    @abstractmethod
    def losses(self, model: Callable[..., Any], batch: B, step: int) -> Sums:
        """Sums over the micro-batch's predictions."""

    def path(self) -> str | None:
        return self.model.loss_path() if isinstance(self.model, Decoder) else None

    @property
    def samples(self) -> int:
        """Sequences that the stage trains on, repeats counted."""
        return self.steps * self.optim.global_batch

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimiser groups: all tensors decay under `decay_all`, else norms, biases and prefix tokens do not."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, p in self.model.named_parameters():
            decays = self.optim.decay_all or (p.ndim > 1 and name != "stem.prefix")
            (decayed if decays else free).append(p)
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((decayed, self.optim.weight_decay), (free, 0.0))
            if params
        ]
        return with_rates(groups, self.model, self.optim) if isinstance(self.optim, TrainConfig) else groups

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[B, None, None]:
        share = self.optim.global_batch // world
        with ThreadPoolExecutor(1, thread_name_prefix=self.name) as pool:
            pending: deque[Future[B]] = deque()
            try:
                for step in range(start, self.steps):
                    while self.adapts and step % self.eval_every == 0 and pending:
                        yield pending.popleft().result()
                    first = step * self.optim.global_batch + rank * share
                    for sequence in range(first, first + share, device_batch):
                        pending.append(pool.submit(self.batch, "train", sequence, sequence + device_batch))
                        if len(pending) > AHEAD:
                            yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def measure(self, model: nn.Module, batch: B) -> dict[str, Tensor]:
        """Sums over a validation batch, by name."""
        return self.losses(model, batch, 0).named()

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> Totals:
        device = next(model.parameters()).device
        sums: Totals = {"weight": 0.0}
        first, last = (self.val_samples * r // world for r in (rank, rank + 1))
        share = max(last, first + 1)  # a rank without a sequence measures one for the sums' names, and counts nothing
        for sequence in range(first, share, device_batch):
            batch = self.batch("validation", sequence, min(sequence + device_batch, share))
            for name, value in self.measure(model, batch.to(device)).items():
                sums[name] = sums.get(name, 0.0) + value.item()
            sums["weight"] += batch.weight
        return sums if last > first else dict.fromkeys(sums, 0.0)

    def example(self) -> tuple[B, int]:
        return self.batch("validation", 0, 1), 1


def next_token_batch(tokens: np.ndarray, loss_mask: np.ndarray) -> TokenBatch:
    """Make sequences into inputs and targets, each the other shifted by one, with the loss mask as weights.

    Where at most half of the tokens of every sequence are in the mask, the batch names their positions, and the model
    computes logits for no others.

    Args:
        tokens: (B, N + 1) ids.
        loss_mask: (B, N + 1) bool, the tokens to predict; the first column is ignored.

    Returns:
        Targets and weights are (B, M), with weight 0 where a sequence has fewer than M tokens to predict; positions are
        None when M = N; `weight` is how many tokens are to be predicted.
    """
    inputs, targets, mask = tokens[:, :-1], tokens[:, 1:], loss_mask[:, 1:]
    weight, most = float(mask.sum()), max(int(mask.sum(1).max(initial=0)), 1)
    positions = None
    if 2 * most <= mask.shape[1]:
        positions = np.argsort(~mask, axis=1, kind="stable")[:, :most]  # those in the mask come first, in their order
        targets, mask = (np.take_along_axis(array, positions, axis=1) for array in (targets, mask))
    return TokenBatch(
        tokens=torch.from_numpy(np.ascontiguousarray(inputs)),
        targets=torch.from_numpy(np.ascontiguousarray(targets)),
        weights=torch.from_numpy(mask.astype(np.float32)),
        positions=None if positions is None else torch.from_numpy(positions),
        weight=weight,
    )


def next_token_losses(model: Callable[..., Any], batch: TokenBatch) -> Sums:
    """Summed cross-entropy in nats and how many tokens were right, of a model that is called as `Decoder` is."""
    loss, correct = model(batch.tokens, batch.targets, batch.weights, positions=batch.positions)
    return Sums(loss, correct.detach())
