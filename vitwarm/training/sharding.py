"""FSDP2: weights, gradients and optimiser state split over the processes, for models that one device cannot hold.

`accelerate launch --config_file recipes/accelerate/fsdp2.yaml` asks for it. accelerate 1.15 knows FSDP on accelerators
only, and its preparation keeps neither our tensor names nor our checkpoints; so its configuration is the switch, and
torch's `fully_shard` does the work, on the CPU as well. Checkpoints hold whole tensors: a run may change between plain
and sharded processes, and their number, from one start to the next.
"""

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator

import torch.distributed as dist
from torch import Tensor, nn

from vitwarm.config import Config, OptimConfig
from vitwarm.errors import UserError
from vitwarm.training.elementwise import ELEMENTWISE, is_elementwise


def _is_on(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true")


def fsdp_requested() -> bool:
    """Whether the launcher's configuration asks for FSDP.

    Raises:
        UserError: it asks for something of FSDP that is not done here.
    """
    if not _is_on("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "the configuration of accelerate asks for FSDP1, but only FSDP2 is supported; launch with --multi_gpu, or "
            "with --config_file recipes/accelerate/fsdp2.yaml, or without a launcher (vitwarm train ...)"
        )
    if _is_on("FSDP_OFFLOAD_PARAMS"):
        raise UserError("fsdp_offload_params is not supported; set it to false")
    if _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError("fsdp_activation_checkpointing is the recipe's: set model.grad_checkpointing=true")
    return True


def check_launcher() -> None:
    """Refuse what the launcher's configuration asks for and is not done here; it may be the user's default one.

    Raises:
        UserError: DeepSpeed, Megatron-LM, FSDP1 or an option of FSDP.
    """
    fsdp_requested()
    for name, switch in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM")):
        if _is_on(switch):
            raise UserError(
                f"the configuration of accelerate asks for {name}, which is not supported; launch with --multi_gpu, or "
                "with --config_file recipes/accelerate/fsdp2.yaml, or without a launcher (vitwarm train ...)"
            )


def check_shardable(config: Config) -> None:
    """Refuse what a sharded run cannot do.

    Raises:
        UserError: it keeps a moving average, or an optimiser works on whole tensors.
    """
    for key in ("warmup", "train"):
        optim: OptimConfig = getattr(config, key)
        if optim.ema:
            raise UserError(f"{key}.ema is not supported under FSDP; set {key}.ema=null, or launch without FSDP")
        if not is_elementwise(optim):
            given = " with these arguments" if optim.optimizer in ELEMENTWISE else ""
            raise UserError(
                f"{key}.optimizer={optim.optimizer}{given} works on whole tensors, which FSDP splits; choose an "
                "elementwise one such as adamw (docs/running.md lists them), or launch without FSDP"
            )


class Sharded:
    """A model whose weights are split over all processes; each block is gathered when it is used.

    Args:
        model: on its device, compiled already; it is split in place and keeps its tensor names.
        blocks: its modules that are gathered one at a time; the rest is gathered together.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]):
        from torch.distributed.device_mesh import init_device_mesh  # only a sharded run pays for these imports
        from torch.distributed.fsdp import fully_shard

        self.plain = copy.deepcopy(model)
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("1", "true", "full_shard")
        for block in (b for b in blocks if next(b.parameters(), None) is not None):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        self.model = model
        self._shards = fully_shard(model, mesh=mesh)  # the same module, with FSDP's methods

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """A context whose backward passes add to the local gradients and exchange none."""
        self._shards.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._shards.set_requires_gradient_sync(True)

    def gathered(self) -> nn.Module:
        """A plain copy with the present weights, to evaluate and to export; every process must call this.

        A sharded model would have to take equally many batches on every process, and an exact evaluation does not.
        """
        self.plain.load_state_dict(gather_all(self.model.state_dict(), keep=True))
        return self.plain


def gather_all(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Gather the sharded tensors on the CPU; every process must call it with the same names.

    Args:
        tensors: by name.
        keep: whether this process wants the result; the others only give their shards.

    Returns:
        {name: tensor}, those that were not sharded as they are; empty without `keep`.
    """
    found = {}
    for name, tensor in tensors.items():
        gathered = gather_tensor(tensor)
        if keep:
            found[name] = gathered if gathered is tensor else gathered.cpu()
    return found


def gather_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; any other is returned as it is. Every process must call it."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    gathered: Tensor = tensor.full_tensor()
    return gathered


def split_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Shard a tensor as `parameter` is sharded; it is returned on the parameter's device."""
    if not hasattr(parameter, "full_tensor"):
        return tensor.to(parameter.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    local = tensor.to(parameter.device)  # all of it on every process, so that none needs to send shards around
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
