"""Which arguments of `timm.create_model` make a model that somebody already has."""

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import DropPath, PatchDropout, get_act_layer, get_norm_layer
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vitwarm.errors import UserError
from vitwarm.trunk import family_of, is_drop_rate, unwrap
from vitwarm.trunk.families import wrappers

# Modules that pass their input on when nothing is trained: which of them stand in a model depends on drop rates alone.
_PASSING = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
_NOT_COMPUTED = (  # attributes
    *("training", "fused_attn", "strict_img_size", "num_classes", "vocab_size"),  # tensors show the numbers
    *("grad_checkpointing", "gradient_checkpointing"),  # timm's, transformers'
    "distilled_training",  # of training alone, and no argument
)
_LIBRARIES = (
    "torch",
    "timm",
    "transformers",
    "accelerate",
    "deepspeed",
    "lightning",
    "pytorch_lightning",
)  # of wrappers


def twin_of(model: nn.Module, model_args: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any], Any]:
    """The same model as timm makes it from its name and arguments, with the weights of this one.

    What timm recorded of the arguments counts first, then `model_args`; what still differs is read off the model.
    The result is compared with the model: types and plain attributes of all modules, names and shapes of all tensors.

    Args:
        model: timm model, without wrappers.
        model_args: arguments that cannot be read off the model, such as `act_layer`.

    Returns:
        Name and arguments for `timm.create_model`, `num_classes` among them, and that model with the given tensors.

    Raises:
        UserError: timm did not make the model, or the arguments cannot be told.
    """
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name or not timm.is_model(name):
        raise UserError(
            f"the {type(model).__name__} does not say which model of timm it is; make it with timm.create_model"
        )
    if not isinstance(model_args, Mapping | NoneType) or not all(isinstance(key, str) for key in model_args or {}):
        raise UserError(f"model_args is {model_args!r}; give a mapping, such as {{'act_layer': 'relu'}}")
    given = _native(dict(model_args or {}))
    if wrong := next((key for key, value in given.items() if not _plain(value)), None):
        raise UserError(
            f"model_args: {wrong} is {given[wrong]!r}, which no file can hold; give its name, such as 'gelu'"
        )
    recorded = {key: value for key, value in _native(getattr(model, "_model_args", {})).items() if _plain(value)}
    arguments = {key: value for key, value in (recorded | given).items() if not is_drop_rate(key)}
    twin, shown = _made(name, arguments), {key: value for key, value in _shown(model).items() if key not in given}
    while differs := difference(model, twin):  # an argument may change the defaults of others
        theirs = _shown(twin)
        seen = {key: value for key, value in shown.items() if value not in (None, theirs[key], arguments.get(key))}
        if not seen:
            raise UserError(
                f"timm's {name} with {arguments} is another model: {differs}; give model_args={{...}}, what it was "
                "made with, or undo what was changed since"
            )
        arguments |= seen
        twin = _made(name, arguments)
    twin.load_state_dict(_apart(model.state_dict()), assign=True)
    return name, arguments, twin


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, each with memory of its own: safetensors writes none that share it."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen or own.is_inference() else own
        seen.add(place)
    return found


def require_own_code(model: nn.Module) -> None:
    """Refuse a model that computes something besides what its classes say: a file holds weights, no code.

    Args:
        model: with the wrappers that `unwrap` looks through.

    Raises:
        UserError: hooks, parametrizations, a `forward...` that somebody put in the place of the class's, or a wrapper
            of somebody's own.
    """
    for wrapper in wrappers(model):
        if type(wrapper).__module__.partition(".")[0] not in _LIBRARIES:
            raise UserError(
                f"a {type(wrapper).__name__} may compute something besides the model within, which no export holds; "
                "give the model within"
            )
        _require_no_hook(wrapper, f"the {type(wrapper).__name__}")
    for name, module in unwrap(model).named_modules():
        where = name or "the model"
        if is_parametrized(module):
            raise UserError(f"{where} is parametrized, which no export holds; call remove_parametrizations first")
        _require_no_hook(module, where)
        for method, own in vars(module).items():  # forward, forward_features, forward_head
            theirs = getattr(type(module), method, None)
            if method.startswith("forward") and theirs is not None and _function(own) is not _function(theirs):
                raise UserError(
                    f"{where} has a {method} that is not its class's, which no export holds; undo that first"
                )


def _require_no_hook(module: nn.Module, where: str) -> None:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hook := next((hook for hook in hooks if not _of_checkpointing(hook)), None):
        what = getattr(hook, "__name__", type(hook).__name__)
        raise UserError(f"{where} has a forward hook ({what}), which no export holds; remove it first")


def _of_checkpointing(hook: Any) -> bool:
    """Whether transformers has put a hook there for gradient checkpointing, which changes no number."""
    return getattr(hook, "__name__", "") == "make_inputs_require_grads"


def _function(method: Any) -> Any:
    """The function behind a method and behind what wraps it, such as autocast of accelerate."""
    return inspect.unwrap(getattr(method, "__func__", method))


def _native(value: Any) -> Any:
    """Numbers of NumPy, which a model takes and no file holds, as Python's own; also within lists and mappings."""
    if isinstance(value, Mapping):
        return {key: _native(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_native(one) for one in value] if isinstance(value, list) else tuple(map(_native, value))
    return value.item() if isinstance(value, np.generic) else value


def _plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _made(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return timm.create_model(name, **arguments)
    except Exception as error:  # whatever a model's constructor makes of arguments that it cannot use
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"timm cannot build {name} with {arguments}: {first}; check model_args") from error


def _accepted(model: nn.Module) -> set[str]:
    """Arguments that the model's class takes, itself or for the class that it extends."""
    taken = [*type(model).__mro__, *([NaFlexVitCfg] if isinstance(model, NaFlexVit) else [])]
    return {name for one in taken for name in inspect.signature(vars(one).get("__init__", object)).parameters}


_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "relu6", "silu", "mish", "hard_swish")
_NORMS = ("layernorm", "rmsnorm", "simplenorm", "layernormfp32", "rmsnormfp32")

_READ: dict[str, Callable[[Any], Any]] = {  # argument -> what a model shows of it
    "num_classes": lambda m: _num_classes(m),
    "in_chans": lambda m: m.in_chans,
    "img_size": lambda m: _side(family_of(m).input_size),
    "patch_size": lambda m: _side((m.embeds if isinstance(m, NaFlexVit) else m.patch_embed).patch_size),
    "embed_dim": lambda m: m.embed_dim,
    "depth": lambda m: len(m.blocks),
    "num_heads": lambda m: m.blocks[0].attn.num_heads,
    "mlp_ratio": lambda m: m.blocks[0].mlp.fc1.out_features / m.embed_dim,
    "qkv_bias": lambda m: _holds(m, "blocks.0.attn", "qkv.bias", "q_bias", "q_proj.bias"),
    "qk_norm": lambda m: _holds(m, "blocks.0.attn", "q_norm.weight"),
    "init_values": lambda m: 1e-5 if _holds(m, "blocks.0", "ls1.gamma", "gamma_1") else None,  # a start, not a value
    "global_pool": lambda m: m.global_pool,
    "class_token": lambda m: m.cls_token is not None,
    "reg_tokens": lambda m: m.num_reg_tokens,
    "num_reg_tokens": lambda m: m.num_reg_tokens,
    "pos_embed": lambda m: "none" if m.pos_embed is None else "learn",
    "no_embed_class": lambda m: m.no_embed_class,
    "pre_norm": lambda m: _holds(m, "norm_pre", "weight"),
    "final_norm": lambda m: any(_holds(m, norm, "weight") for norm in ("norm", "fc_norm")),
    "fc_norm": lambda m: _holds(m, "fc_norm", "weight"),
    "use_fc_norm": lambda m: _holds(m, "fc_norm", "weight"),
    "use_abs_pos_emb": lambda m: m.pos_embed is not None,
    "use_rel_pos_bias": lambda m: _holds(m, "blocks.0.attn", "relative_position_bias_table"),
    "use_shared_rel_pos_bias": lambda m: m.rel_pos_bias is not None,
    "swiglu_mlp": lambda m: type(m.blocks[0].mlp).__name__ in ("SwiGLU", "GluMlp"),
    "scale_mlp": lambda m: _holds(m, "blocks.0.mlp", "norm.weight"),
    "act_layer": lambda m: _named(m.blocks[0].mlp.act, _ACTIVATIONS, get_act_layer),
    "norm_layer": lambda m: _named(m.blocks[0].norm1, _NORMS, get_norm_layer),
    "dynamic_img_size": lambda m: m.dynamic_img_size,
    "dynamic_img_pad": lambda m: m.patch_embed.dynamic_img_pad,
}


def _shown(model: nn.Module) -> dict[str, Any]:
    """What a model shows of its arguments; None where its family has no such part, or its class takes no such one."""
    found: dict[str, Any] = dict.fromkeys(_READ)
    for argument in _READ.keys() & _accepted(model):
        with suppress(AttributeError):
            found[argument] = _native(_READ[argument](model))
    return found


def _num_classes(model: Any) -> int:
    """Of the head itself: people put another in its place, and leave `num_classes` as it was."""
    return int(getattr(model.head, "out_features", 0 if isinstance(model.head, nn.Identity) else model.num_classes))


def _named(module: nn.Module, names: tuple[str, ...], find: Callable[[str], Any]) -> str | None:
    """The first of timm's names that stands for the class of a module."""
    return next((name for name in names if find(name) is type(module)), None)


def _side(size: tuple[int, int]) -> int | list[int]:
    height, width = size
    return height if height == width else [height, width]


def _holds(model: nn.Module, within: str, *names: str) -> bool:
    held = dict(model.get_submodule(within).named_parameters())
    return any(name in held for name in names)


def difference(model: nn.Module, twin: nn.Module) -> str | None:
    """The first thing in which two models compute differently, in words; None if there is none."""
    ours, theirs = structure_of(model), structure_of(twin)
    for what in [*theirs, *ours]:
        if ours.get(what) != theirs.get(what):
            mine, its = (f"{one[what]}" if what in one else "absent" for one in (ours, theirs))
            return f"{what} is {mine} in the model, {its} there"
    return None


def structure_of(model: nn.Module) -> dict[str, Any]:
    """What a model computes with: type of each module and its plain attributes, shape of each tensor, by name."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _PASSING):
            continue
        found[f"type of {name}" if name else "type"] = _type_of(module)
        for key, value in _native(vars(module)).items():
            if not key.startswith("_") and key not in _NOT_COMPUTED and "drop" not in key and _scalars(value):
                found[f"{name}.{key}" if name else key] = tuple(value) if isinstance(value, list) else value
    return found | {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _type_of(module: nn.Module) -> str:
    """Of torch's and timm's own the name alone, since their two of a name compute the same."""
    own = type(module)
    return own.__name__ if own.__module__.startswith(("torch.", "timm.")) else f"{own.__module__}.{own.__qualname__}"


def _scalars(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_scalars(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)
