"""Which optimisers move each weight by its own gradients alone."""

from vitwarm.config import OptimConfig

ELEMENTWISE = frozenset([
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamc", "adamw", "adamwlegacy", "adan", "adanw", "adopt",
    "adoptc", "adoptw", "laprop", "lapropc", "lion", "lionc", "madgrad", "madgradw", "momentum", "nadam", "nadamc",
    "nadamlegacy", "nadamw", "nesterov", "nesterovw", "radabelief", "radam", "radamlegacy", "radamw", "rmsprop",
    "rmsproptf", "rmsproptfc", "rmsproptfw", "sgd", "sgdc", "sgdw",
])  # fmt: skip
"""Optimisers that move each weight by its own gradients alone: shards or stacks of weights end as the weights would."""

_COUPLING = ("caution", "clipping_threshold")  # arguments that take a mean over a whole tensor


def is_elementwise(optim: OptimConfig) -> bool:
    """Whether each weight moves by its own gradients alone."""
    return optim.optimizer in ELEMENTWISE and not any(optim.optimizer_args.get(name) for name in _COUPLING)
