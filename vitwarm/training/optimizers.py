"""Optimisers by timm's names: keys `optimizer`, `optimizer_args`, `betas` and `eps` of a stage.

`adamw` is torch's fused AdamW; every other name is what `timm.optim.create_optimizer_v2` makes of it, `lookahead_NAME`
included. The loop sets the learning rate of each parameter group anew at each step, so that an optimiser only ever sees
the schedule's, times the group's `lr_scale`.

Muon and its kin work on matrices and hand all else to AdamW. The matrices are those of the blocks, as far as timm finds
them suitable by their shape; embeddings and heads go to AdamW, as their author advises. `optimizer_args.fallback_list`,
patterns of tensor names as in timm, says otherwise.
"""

import fnmatch
import inspect
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import Tensor, nn

from vitwarm.checks import nearest
from vitwarm.config import OptimConfig
from vitwarm.errors import UserError
from vitwarm.training.checkpoint import optimizer_tensors, optimizer_values

_OWN_KEYS = ("lr", "weight_decay")
_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.")
_LOOKAHEAD = "lookahead_"


def make_optimizer(optim: OptimConfig, groups: Sequence[dict[str, Any]], model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a stage, which `check_optimizer` has accepted.

    Args:
        optim: optimisation keys of the stage.
        groups: `params`, `weight_decay`, and perhaps `lr_scale`, by which the loop multiplies the learning rate.
        model: whose parameters they are; their names tell blocks from embeddings.
    """
    arguments = _arguments(optim)
    groups = [dict(group) for group in groups]  # torch writes into them
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, **({"fused": True} | arguments))
    if _is_hybrid(optim.optimizer):
        groups = _with_fallback(groups, model, arguments.pop("fallback_list", None))
    return create_optimizer_v2(groups, optim.optimizer, lr=optim.lr, **arguments)


def check_optimizer(section: str, optim: OptimConfig) -> None:
    """Refuse an optimiser that cannot be made, run by the loop, or stored in a checkpoint to the bit.

    Args:
        section: of the recipe that the keys stand in.
        optim: the keys.

    Raises:
        UserError: with the key that is wrong.
    """
    name, base, known = optim.optimizer, _base(optim.optimizer), list(map(str, list_optimizers()))
    if base not in known:
        raise UserError(f"{section}.optimizer: timm has no optimiser {name!r}{nearest(base, known)}")
    info = get_optimizer_info(base)
    if isinstance(info.opt_class, str):
        package = info.opt_class.partition(".")[0]
        raise UserError(
            f"{section}.optimizer={name} is of the package {package}, whose state is not known to resume to the bit; "
            "choose one of timm's own or torch's, such as adamw or lamb"
        )
    if info.second_order:
        raise UserError(f"{section}.optimizer={name} needs second derivatives, which the loop does not take; see lamb")
    taken = _taken(base)
    for key in ("betas", "eps"):
        if key not in taken and getattr(optim, key) not in (None, getattr(OptimConfig(), key)):
            other = "; its own are optimizer_args.betas" if key in _signature(base) else ""
            raise UserError(f"{section}.{key} is not for {name}; leave it out{other}")
    allowed = _allowed(base)
    for argument in optim.optimizer_args:
        if argument in (*_OWN_KEYS, *taken):
            raise UserError(f"{section}.optimizer_args.{argument}: write {section}.{argument}")
        if argument not in allowed:
            raise UserError(
                f"{section}.optimizer_args: {name} has no argument {argument!r}{nearest(argument, allowed)}"
            )
    if name == "adamw" and not optim.optimizer_args:
        return  # known to be good
    try:
        optimizer, model = _tried(optim, 8)
        optimizer_tensors(model, optimizer)
        optimizer_values(model, optimizer)
        _, slower = _tried(optim, 8, of_vector=1e-6)  # LARC follows a rate only below its own
    except Exception as error:  # whatever timm and torch say of impossible arguments
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{section}.optimizer={name}: {reason}") from error
    # Some of older versions use a rate that they keep from before, or another group's.
    if [torch.equal(*pair) for pair in zip(model.parameters(), slower.parameters(), strict=True)] != [True, False]:
        raise UserError(
            f"{section}.optimizer={name} of timm {timm.__version__} does not obey the learning rate of each group; "
            "pip install -U timm, or choose another"
        )


def state_bytes(optim: OptimConfig) -> float:
    """Bytes of optimiser state for each weight of a large matrix, as measured on one."""
    optimizer, model = _tried(optim, 256)
    names = [name for name, p in model.named_parameters() if p.ndim == 2]
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    tensors = optimizer_tensors(model, optimizer).items()
    return round(sum(t.nbytes for name, t in tensors if name.rpartition("/")[0] in names and t.ndim) / weights, 1)


def _tried(optim: OptimConfig, size: int, of_vector: float = 1.0) -> tuple[torch.optim.Optimizer, nn.Module]:
    """An optimiser after some steps on a matrix and a vector, and these; takes no random numbers.

    Args:
        optim: its keys.
        size: of the vector, and of the matrix's sides.
        of_vector: what the vector's learning rate is multiplied by once the optimiser is made.
    """
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])  # where the hybrids look for matrices
    weight = torch.linspace(-1, 1, size * size).reshape(size, size)
    model.blocks[0].weight = nn.Parameter(weight)
    model.blocks[0].bias = nn.Parameter(weight[0].clone())
    decays = (optim.weight_decay, 0.0)  # the decay of the vector would obey its rate in any case
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(model.parameters(), decays, strict=True)]
    gradients = [p.detach().cos() for p in model.parameters()]  # one does not hang on how the other moves
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make_optimizer(replace(optim, lr=1e-2), groups, model)  # a rate that shows in fp32
        if more := set(optimizer.state_dict()) - {"state", "param_groups"}:
            raise UserError(f"keeps {', '.join(sorted(more))}, which a checkpoint does not hold; choose another")
        optimizer.param_groups[1]["lr"] *= of_vector
        for _ in range(7):  # Lookahead looks back at the sixth
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    return optimizer, model


def _with_fallback(
    groups: Sequence[dict[str, Any]], model: nn.Module, patterns: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Split groups into what a hybrid optimiser may work on and what it leaves to AdamW (`use_fallback`)."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}

    def falls_back(p: Tensor) -> bool:
        if patterns is None:
            return not _BLOCK.search(names[p])
        return any(fnmatch.fnmatch(names[p], pattern) for pattern in patterns)

    split = []
    for group in groups:
        for fallback in (False, True):
            if own := [p for p in group["params"] if falls_back(p) == fallback]:
                split.append(group | {"params": own} | ({"use_fallback": True} if fallback else {}))
    return split


def _arguments(optim: OptimConfig) -> dict[str, Any]:
    """Arguments of the optimiser's constructor besides groups and learning rate."""
    taken = _taken(_base(optim.optimizer))
    given: dict[str, Any] = {}
    if "betas" in taken and optim.betas is not None:
        given["betas"] = tuple(optim.betas)
    if "eps" in taken and optim.eps is not None:
        given["eps"] = optim.eps
    return given | optim.optimizer_args


def _base(name: str) -> str:
    return name.removeprefix(_LOOKAHEAD)


def _is_hybrid(name: str) -> bool:
    return _base(name).endswith("muon")


def _signature(base: str) -> dict[str, Any]:
    """Argument -> default of an optimiser's constructor."""
    parameters = inspect.signature(get_optimizer_class(base, bind_defaults=False)).parameters
    return {name: p.default for name, p in parameters.items() if name != "params"}


def _taken(base: str) -> list[str]:
    """Which of the keys `betas` and `eps` an optimiser takes: a pair, and a number; Adan has three betas."""
    defaults = _signature(base)
    betas, eps = defaults.get("betas"), defaults.get("eps")
    pair = isinstance(betas, tuple) and len(betas) == 2
    return [*(["betas"] if pair else []), *(["eps"] if isinstance(eps, float) and math.isfinite(eps) else [])]


def _allowed(base: str) -> list[str]:
    """Names that `optimizer_args` may have."""
    more = ["fallback_list"] if _is_hybrid(base) else []
    return [name for name in _signature(base) if name not in (*_OWN_KEYS, *_taken(base))] + more
