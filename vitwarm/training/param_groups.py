"""What the main stage leaves alone, what it trains faster or slower: keys `train.freeze` and `train.lr_factors`."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vitwarm.config import TrainConfig
from vitwarm.errors import UserError
from vitwarm.selection import Selection
from vitwarm.transfer.groups import canonical, group_of, select


def freeze(model: nn.Module, optim: TrainConfig) -> None:
    """Take the groups of `train.freeze` out of training.

    Raises:
        UserError: groups that are not there, or nothing that would be left.
    """
    parameters = dict(model.named_parameters())
    names = {c: own for own, c in canonical(parameters).items()}
    for name in _chosen(names, optim.freeze, model, "train.freeze") if optim.freeze else ():
        parameters[names[name]].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise UserError(f"train.freeze={' '.join(optim.freeze)} leaves nothing to train")


def with_rates(groups: list[dict[str, Any]], model: nn.Module, optim: TrainConfig) -> list[dict[str, Any]]:
    """Optimiser groups split by learning-rate factor, without what is frozen.

    Args:
        groups: `params`, and perhaps an `lr_scale` that the factor then multiplies.
        model: the raw model that the parameters belong to.
        optim: `lr_factors`, selection -> factor; a tensor of several selections takes the product.

    Raises:
        UserError: groups that are not there.
    """
    names = canonical(n for n, _ in model.named_parameters())
    factors = dict.fromkeys(names.values(), 1.0)
    for chosen, factor in optim.lr_factors.items():
        for name in _chosen(factors, chosen, model, "train.lr_factors"):
            factors[name] *= factor
    factor_of = {p: factors[names[n]] for n, p in model.named_parameters()}
    split = []
    for group in groups:
        trained = [p for p in group["params"] if p.requires_grad]
        for factor in dict.fromkeys(factor_of[p] for p in trained):
            own = [p for p in trained if factor_of[p] == factor]
            split.append(group | {"params": own, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return split


def _chosen(names: Iterable[str], words: str | Iterable[str], model: nn.Module, key: str) -> list[str]:
    """The canonical names that a selection holds; a group that the model does not have is refused."""
    names = list(names)
    for kind in Selection.parse(words).kinds:
        if kind in ("embedding", "head") and kind not in map(group_of, names):
            raise UserError(
                f"{key}: the model has no {kind} of its own (a tied decoder's is its embedding); leave it out"
            )
    blocks: Any = model.blocks
    return select(names, words, len(blocks))
