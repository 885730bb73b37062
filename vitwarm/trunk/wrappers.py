"""What people put around a model: looked through."""

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model within DDP, DataParallel, `torch.compile` and moving averages, in any order."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "ModelEmaV3",
            "ModelEmaV2",
            "AveragedModel",
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner
