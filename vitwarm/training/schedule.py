"""Learning rate as a pure function of the step: a resumed run needs no scheduler state."""

import math

from vitwarm.config import OptimConfig
from vitwarm.errors import UserError


def learning_rate(step: int, steps: int, optim: OptimConfig, warmup: int, cooldown: int) -> float:
    """Learning rate of update `step` (0-based) out of `steps`.

    Linear from `start_lr` at step 0 to `lr` at step `warmup`; then cosine to `min_lr` at the end, or cosine to 0 that
    stays at `min_lr` once it is there (cosine_floor), or constant, or constant with a linear cooldown of `cooldown`
    steps to `min_lr` (wsd).

    Source: cosine with linear warm-up as in timm's CosineLRScheduler with warmup_prefix; cosine_floor as in the public
    code of arXiv 2601.21725; wsd from arXiv 2404.06395.
    """
    if step < warmup:
        return optim.start_lr + (optim.lr - optim.start_lr) * step / warmup
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule in ("cosine", "cosine_floor"):
        done = (step - warmup) / max(1, steps - warmup)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if optim.schedule == "cosine_floor":
            return max(optim.min_lr, share * optim.lr)
        return optim.min_lr + share * (optim.lr - optim.min_lr)
    left = (steps - step) / max(1, cooldown)
    return optim.min_lr + (optim.lr - optim.min_lr) * min(1.0, left)


def is_steady(step: int, steps: int, optim: OptimConfig, cooldown: int) -> bool:
    """Whether the learning rates of the first `step` updates are those of every longer wsd schedule as well."""
    return optim.schedule == "wsd" and step <= steps - cooldown


def check_lengths(key: str, steps: int, optim: OptimConfig, warmup: int, cooldown: int) -> None:
    """Refuse a schedule that does not fit into its stage: the learning rate would never be what the recipe says.

    Args:
        key: section of the recipe that holds the schedule.
        steps: of the stage.
        optim: the schedule.
        warmup, cooldown: its lengths in steps.

    Raises:
        UserError: it does not fit.
    """
    tail = cooldown if optim.schedule == "wsd" else 0
    if steps and warmup + tail > steps:
        parts = f"{key}.lr_warmup ({warmup} steps)" + (f" and {key}.cooldown ({tail} steps)" if tail else "")
        raise UserError(f"{parts} do not fit into the stage's {steps} steps; shorten the schedule or train longer")
