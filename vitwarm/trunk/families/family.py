"""A family: what is asked of a timm model, as the plain ViT answers it; and the family of a model.

Shapes: B sequences, N tokens, D channels, H heads.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, TypeVar

import torch
from timm.layers import HybridEmbed
from timm.models.vision_transformer import ParallelScalingBlock
from timm.models.vitamin import MbConvStages
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitwarm.errors import UserError
from vitwarm.trunk.blocks import mask_arguments
from vitwarm.trunk.supported import nearest

T = TypeVar("T")

BlockArguments = Mapping[str, Any] | Sequence[Mapping[str, Any]]  # of all blocks, or of each; see `run_blocks`

OWN_BIASES = {f"attn.{letter}_bias": letter for letter in "qkv"}
_PLAIN = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")  # modules of a plain block


@dataclass(frozen=True)
class Attention:
    """Weights of one attention layer as (out, in); views that can be written to.

    Attributes:
        query, key, value, projection: (D, D) where the heads together are as wide as the model.
        biases: of these four, as far as there are any.
        others: names of the layer's further parameters (norms of query and key, gates); positions do not count.
        heads: H.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    projection: Tensor
    biases: tuple[Tensor, ...]
    others: tuple[str, ...]
    heads: int

    @property
    def head_width(self) -> int:
        return len(self.query) // self.heads

    def head_rows(self) -> list[slice]:
        """The rows of query, key and value that belong to each head."""
        k = self.head_width
        return [slice(h * k, (h + 1) * k) for h in range(self.heads)]


@dataclass(frozen=True)
class BlockSize:
    """Lengths of the axes of a block's matrices.

    Attributes:
        width: D.
        heads, kv_heads: of queries; of keys and values, fewer where several queries share them.
        channels: of a head.
        hidden: units of the MLP; of a gated one those behind the gate.
        copies: blocks side by side whose outputs add up.
    """

    width: int
    heads: int
    kv_heads: int
    channels: int
    hidden: int
    copies: int


class Family:
    """The plain ViT of timm, with DeiT, DeiT-III, SigLIP, CLIP and all that share its interface.

    Args:
        model: timm model or decoder. Only `family_of` makes adapters.

    Attributes:
        examples: what people call the models, for the list of them.
        tensors: module or parameter -> group, block numbers left out; the longest name that fits counts. What is in
            no table is the head's.
        stacks: tensor of a block -> which of query, key and value its rows hold, head by head.
        plain: module of a block -> the modules of a plain block that it stacks, where `attn.q`, `attn.k` and `attn.v`
            are thirds of `attn.qkv`; see `counterparts`.
        prefix_names: tokens in front of the patches, in timm's order.
        takes: arguments of a block that carry masks.
        needs: attributes without which the image path cannot run.
    """

    examples: ClassVar[tuple[str, ...]] = ("ViT", "DeiT", "DeiT-III", "SigLIP")
    tensors: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("patch_embed", "pos_embed", "cls_token", "dist_token", "reg_token"), "embedding"),
        **dict.fromkeys(("norm_pre", "norm", "blocks.norm1", "blocks.norm2", "blocks.in_norm"), "norm"),
        **dict.fromkeys(("blocks.attn", "blocks.ls1", "blocks.attns", "blocks.attn_out_proj"), "attention"),
        **dict.fromkeys(("blocks.q_norm", "blocks.k_norm"), "attention"),  # of parallel blocks
        **dict.fromkeys(("blocks.mlp", "blocks.ls2", "blocks.ffns", "blocks.mlp_out_proj"), "mlp"),
        "blocks": "trunk",  # what attention and MLP share in parallel blocks
    }
    stacks: ClassVar[Mapping[str, str]] = {"attn.qkv.weight": "qkv", "attn.qkv.bias": "qkv"}
    plain: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{module: (module,) for module in _PLAIN},
        **{f"attn.{letter}{proj}": (f"attn.{letter}",) for letter in "qkv" for proj in ("", "_proj")},
        **{"mlp.fc1_g": ("mlp.fc1",), "mlp.w0": ("mlp.fc1",), "mlp.w2": ("mlp.fc2",)},  # what goes through the gate
        **{"in_norm": ("norm1",), "in_proj": ("mlp.fc1", "attn.qkv"), "mlp": ("mlp.fc1",)},
        **{"attn_out_proj": ("attn.proj",), "mlp_out_proj": ("mlp.fc2",), "out_proj": ("attn.proj", "mlp.fc2")},
        **{"attns.norm": ("norm1",), "attns.attn.qkv": ("attn.qkv",), "attns.attn.proj": ("attn.proj",)},
        **{"ffns.norm": ("norm2",), "ffns.mlp.fc1": ("mlp.fc1",), "ffns.mlp.fc2": ("mlp.fc2",)},
    }
    prefix_names: ClassVar[tuple[str, ...]] = ("cls_token", "dist_token", "reg_token")
    takes: ClassVar[tuple[str, ...]] = ("attn_mask", "is_causal")
    needs: ClassVar[tuple[str, ...]] = ("patch_embed", "_pos_embed", "norm", "forward_head")

    def __init__(self, model: nn.Module):
        self.model: Any = model

    # Support

    @property
    def refusal(self) -> str | None:
        """Why the model's blocks cannot serve as a trunk, or None."""
        blocks = getattr(self.model, "blocks", None)
        if not isinstance(blocks, nn.Sequential | nn.ModuleList) or len(blocks) == 0:
            stages = getattr(self.model, "feature_info", None)
            widths = [s["num_chs"] for s in stages] if isinstance(stages, list) else []
            several = f": its stages are {', '.join(map(str, widths))} channels wide" if len(set(widths)) > 1 else ""
            inner = getattr(getattr(self.model, "encoder", None), "blocks", None) is not None
            return (
                "its blocks lie within .encoder"
                if inner
                else f"it has no plain sequence of transformer blocks{several}"
            )
        for name in self.takes:
            if name not in signature(blocks[0].forward).parameters:
                return f"its blocks do not take {name} ({type(blocks[0]).__name__})"
        if missing := [n for n in self.needs if not hasattr(self.model, n)]:
            return f"it has no {missing[0]}, so its tokens cannot be replaced"
        embedding = getattr(self.model, "patch_embed", None)
        if isinstance(embedding, HybridEmbed) and not isinstance(embedding.backbone, MbConvStages):  # ViTamin's own
            return f"it is a hybrid: a convolutional network ({type(embedding.backbone).__name__}) makes its tokens"
        if "patch_embed" in self.needs and not hasattr(embedding, "grid_size"):
            return "its patch embedding has no fixed grid"
        return None

    @property
    def facts(self) -> dict[str, str | int | None]:
        """What two trunks must share before tensors can go from one to the other; head count and block type leave no
        trace in the shapes."""
        block = self.model.blocks[0]
        attention = getattr(getattr(block, "attns", [block])[0], "attn", block)  # `attns` run side by side
        return {
            "block": type(block).__name__,
            "width": self.model.embed_dim,
            "depth": len(self.model.blocks),
            "heads": getattr(attention, "num_heads", None),
        }

    # Images

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patch tokens."""
        rows, columns = self.model.patch_embed.grid_size
        return rows, columns

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model takes."""
        height, width = self.model.patch_embed.img_size or self.named_size()
        return height, width

    def named_size(self) -> tuple[int, int]:
        """(height, width) that timm's description of the model names.

        Raises:
            UserError: it has none, since timm.create_model did not make it.
        """
        known = getattr(self.model, "pretrained_cfg", None)
        if not known:
            raise UserError(
                f"the {type(self.model).__name__} takes images of any size and names none; make it with "
                "timm.create_model, or give length="
            )
        height, width = known["input_size"][1:]
        return height, width

    @property
    def any_size(self) -> bool:
        """Whether the model takes images of other sizes as well."""
        return bool(getattr(self.model, "dynamic_img_size", False))

    def embed(self, images: Tensor) -> tuple[Tensor, BlockArguments]:
        """(B, 3, H, W) normalised images to the (B, N, D) tokens of the first block, and arguments of the blocks."""
        tokens = self.model.patch_drop(self.model._pos_embed(self.model.patch_embed(images)))
        return self.model.norm_pre(tokens), {}

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, N, D) tokens behind the last block to (B, num_classes) logits; the final norm stays where timm has it."""
        logits: Tensor = self.model.forward_head(self.model.norm(tokens))
        return logits

    @property
    def stem(self) -> Any:
        """The module that holds the prefix tokens."""
        return self.model

    def prefix(self) -> Tensor | None:
        """(1, P, D) values of the prefix tokens, a copy; None without any."""
        found = [getattr(self.stem, name, None) for name in self.prefix_names]
        parts: list[Tensor] = [part.detach().clone() for part in found if part is not None]
        return torch.cat(parts, dim=1) if parts else None

    def positions(self) -> tuple[Tensor, int] | None:
        """The learned positions (1, P + N, D) that are added to the tokens, and P, those of prefix tokens.

        None where patches have no learned position of their own.
        """
        table = getattr(self.model, "pos_embed", None)
        if table is None:
            return None
        rows, columns = self.grid
        prefix = table.shape[1] - rows * columns
        return (table, prefix) if prefix in (0, self.model.num_prefix_tokens) else None

    # Trunk

    @property
    def final_norm(self) -> str:
        """Name of the norm that closes the trunk: `norm`, or `fc_norm` where timm moves it behind the pooling.

        timm sets the other one to Identity. A token-level objective on an average-pooled model must still pass
        through `fc_norm`, or its head would read un-normalised features.
        """
        fc_norm = getattr(self.model, "fc_norm", None)
        if isinstance(self.model.norm, nn.Identity) and fc_norm is not None and not isinstance(fc_norm, nn.Identity):
            return "fc_norm"
        return "norm"

    def blocks(self) -> nn.Sequential | nn.ModuleList:
        """The blocks as they run on symbols: with the model's own parameters, without places on the image grid."""
        blocks: nn.Sequential | nn.ModuleList = self.model.blocks
        return blocks

    @classmethod
    def mask_arguments(cls, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> BlockArguments:
        """Arguments that carry a mask to the blocks that run on symbols; see `vitwarm.trunk.blocks.mask_arguments`."""
        return mask_arguments(x, attn_mask, is_causal)

    # Weights

    @classmethod
    def group(cls, name: str) -> str:
        """Group of a canonical tensor name without its block number; see `tensors`."""
        return _longest(cls.tensors, name)

    def attention(self, block: nn.Module) -> Attention:
        """The weights of a block's attention.

        Raises:
            ValueError: the block has not one attention of query, key, value and projection.
        """
        attn: Any = getattr(block, "attn", None)
        if type(block) is ParallelScalingBlock and block.attn_out_proj is not None:
            return _beside_mlp(block)
        if attn is None:
            raise ValueError(f"a {type(block).__name__} has no single attention")
        own = {f"attn.{n}": p for n, p in attn.named_parameters()}
        own = {n: p for n, p in own.items() if self.group(f"blocks.{n}") == "attention"}
        inputs: dict[str, Tensor] = {}
        for name, letters in self.stacks.items():
            if name in own and name.endswith("weight"):
                inputs |= dict(zip(letters, own[name].chunk(len(letters)), strict=True))
        if set(inputs) != set("qkv") or "attn.proj.weight" not in own:
            raise ValueError(f"a {type(block).__name__} has no query, key, value and projection of the usual kind")
        known = {*self.stacks, "attn.proj.weight", "attn.proj.bias"}
        return Attention(
            query=inputs["q"],
            key=inputs["k"],
            value=inputs["v"],
            projection=own["attn.proj.weight"],
            biases=tuple(p for n, p in own.items() if n in known and n.endswith("bias")),
            others=tuple(n.removeprefix("attn.") for n in own if n not in known),
            heads=attn.num_heads,
        )

    def mlp(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        """(hidden, D) matrix into a block's MLP, a gate's below that of the values, and the (D, hidden) one out of it.

        Raises:
            ValueError: the block has not one MLP of two layers.
        """
        own: dict[str, Tensor] = {n: p for n, p in block.named_parameters() if p.ndim == 2}
        into = [p for n, p in own.items() if n.startswith("mlp.fc1")]
        if not into or "mlp.fc2.weight" not in own:
            raise ValueError(f"a {type(block).__name__} has no MLP of the usual kind")
        return torch.cat(into), own["mlp.fc2.weight"]

    def counterparts(self, block: nn.Module) -> dict[str, tuple[str | None, ...]]:
        """Tensor of a block -> what it stacks of a plain block's tensors; None is a part that a plain block lacks.

        Empty where it holds nothing of a plain block. The input side of a gated MLP is the part that goes through the
        activation; what this is multiplied by has no counterpart.
        """
        found: dict[str, tuple[str | None, ...]] = {}
        for name in block.state_dict():
            module, _, kind = re.sub(r"_(bias)$", r".\1", re.sub(r"\.\d+\.", ".", name)).rpartition(".")
            found[name] = tuple(f"{part}.{kind}" for part in self.plain.get(module, ()))
            if module == "mlp.fc1" and (gate_last := getattr(block.mlp, "gate_last", None)) is not None:
                found[name] = (None, *found[name]) if gate_last else (*found[name], None)
        return found

    def size(self, block: Any) -> BlockSize:
        """Lengths of the axes of a block's matrices."""
        attns, ffns = getattr(block, "attns", [block]), getattr(block, "ffns", [block])
        attn, width = getattr(attns[0], "attn", block), int(self.model.embed_dim)
        if hasattr(block, "in_split"):
            hidden, inner = block.in_split[0], width
        else:
            mlp = ffns[0].mlp
            hidden, inner = (mlp.w2 if hasattr(mlp, "w2") else mlp.fc2).in_features, attn.proj.in_features
        heads = attn.num_heads
        return BlockSize(width, heads, getattr(attn, "num_kv_heads", heads), inner // heads, hidden, len(attns))

    @contextmanager
    def watch(self, blocks: Iterable[nn.Module], measure: Callable[[Tensor], T]) -> Iterator[list[T]]:
        """Collects a measure of each block's (B, H, N, N) attention as it runs: fused kernels keep it to themselves."""
        seen: list[T] = []
        with ExitStack() as held:
            for block in blocks:
                attn: Any = block.attn
                held.callback(setattr, attn, "fused_attn", attn.fused_attn)
                attn.fused_attn = False
                hook = attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(measure(inputs[0])))
                held.callback(hook.remove)
            yield seen


# The one lookup

_ADAPTERS: dict[type[nn.Module], type[Family]] = {}
_TENSORS: dict[str, str] = dict(Family.tensors)
_STACKS: dict[str, str] = dict(Family.stacks)

Adapter = TypeVar("Adapter", bound=type[Family])


def family(model_class: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Register an adapter for a model's class and its subclasses.

    Raises:
        ValueError: a table of the adapter contradicts another family's: names alone must tell a tensor's group.
    """

    def register(adapter: Adapter) -> Adapter:
        tables = ((_TENSORS, adapter.tensors), (_STACKS, adapter.stacks))
        for known, own in tables:
            if wrong := next((n for n, what in own.items() if known.get(n, what) != what), None):
                raise ValueError(f"{adapter.__name__}: {wrong} is {own[wrong]} here, {known[wrong]} in another family")
        for known, own in tables:
            known.update(own)
        _ADAPTERS[model_class] = adapter
        return adapter

    return register


def family_of(model: nn.Module) -> Family:
    """The adapter of a model. Classes that nobody registered are taken for plain ViTs.

    Args:
        model: timm model, or our decoder; also within data parallelism, `torch.compile` or a moving average.

    Raises:
        UserError: the model's blocks cannot serve as a trunk; the message says why.
    """
    model = unwrap(model)
    found = adapter_of(model)
    if compiled := [n for n, m in model.named_modules() if n.startswith("blocks.") and "_orig_mod" in m._modules]:
        raise UserError(
            f"{compiled[0]} is wrapped by torch.compile, which gives its tensors other names; call its .compile() "
            "instead, or compile the whole model"
        )
    if reason := found.refusal:
        if inner := next((name for name, child in model.named_children() if adapter_of(child).refusal is None), None):
            raise UserError(f"{type(model).__name__} holds a model with a trunk in .{inner}; give that one")
        if type(model).__module__.startswith("transformers."):
            raise UserError(
                f"{type(model).__name__} is a model of transformers: warm_up, warm_start, inspect_trunk and "
                "export take its GPT2LMHeadModel, all else timm's models and the decoder that "
                "vitwarm.exports.read_gpt2(FOLDER) makes"
            )
        of_timm = getattr(model, "pretrained_cfg", None)  # of others neither name nor width says what is like them
        hint = f"; the nearest that can is timm's {nearest(model)}" if of_timm else ""
        raise UserError(f"{type(model).__name__} cannot be warmed up: {reason}{hint}")
    return found


def adapter_of(model: nn.Module) -> Family:
    """The adapter of a model's class, whether or not the model can be warmed up; `Family.refusal` says."""
    return next((_ADAPTERS[c] for c in type(model).__mro__ if c in _ADAPTERS), Family)(model)


def unwrap(model: nn.Module) -> nn.Module:
    """The model within what computes the same: data parallelism, compilation, an average, a wrapper of transformers.

    Raises:
        UserError: not a model.
    """
    if not isinstance(model, nn.Module):
        name = model if isinstance(model, str) else "vit_tiny_patch16_224"
        what = repr(model) if isinstance(model, str) else f"an object of type {type(model).__name__}"
        raise UserError(f"{what} is no model; give the model itself, such as timm.create_model({name!r})")
    while (inner := _within(model)) is not None:
        model = inner
    return model


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """What `unwrap` looks through, the outermost first."""
    while (inner := _within(model)) is not None:
        yield model
        model = inner


def _within(model: nn.Module) -> nn.Module | None:
    """The model that a wrapper holds; None of what is no wrapper, since it has weights besides."""
    inner = next((model._modules[n] for n in ("module", "_orig_mod", "timm_model") if n in model._modules), None)
    return None if inner is None or set(model.parameters()) - set(inner.parameters()) else inner


def require_values(model: nn.Module) -> nn.Module:
    """The model without its wrappers; for what reads or writes weights.

    Raises:
        UserError: as `family_of`; weights without values (on the device `meta`), or split over processes.
    """
    return require_data(family_of(model).model)


def require_changeable(model: nn.Module) -> nn.Module:
    """`require_values`, for what writes weights in place.

    Raises:
        UserError: as `require_values`; weights that were made under `torch.inference_mode`.
    """
    found = require_values(model)
    if not torch.is_inference_mode_enabled():
        for name, tensor in found.state_dict().items():
            if tensor.is_inference():
                raise UserError(f"{name} was made under torch.inference_mode and cannot be changed; build it outside")
    return found


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        UserError: the model holds what cannot be copied, such as a tensor of a graph.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:  # torch's of tensors, Python's of locks and files
        raise UserError(
            f"the {type(model).__name__} cannot be copied: it holds something besides weights, such as a tensor with "
            "a gradient function; remove that first"
        ) from error


def require_data(model: nn.Module) -> nn.Module:
    """The same model, of whatever make, if its weights have values here.

    Raises:
        UserError: weights without values (on the device `meta`), split over processes, or quantised.
    """
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{name} of the model is no tensor: it was quantised, it seems; do this before that")
        if tensor.is_meta:
            raise UserError(f"{name} of the model is on the device meta and has no values; build it on a real device")
        if isinstance(tensor, DTensor):
            raise UserError(f"{name} of the model is split over processes; do this before the model is sharded")
    return model


# Names without a model


def canonical(names: Iterable[str]) -> dict[str, str]:
    """Model names to canonical ones: a final norm that timm keeps behind the pooling (`fc_norm`) is `norm`.

    What `torch.compile` of a single block puts into the names is left out.
    """
    names = list(names)
    moved = any(n.startswith("fc_norm.") for n in names) and not any(n.startswith("norm.") for n in names)
    found = {n: n.removeprefix("fc_") if moved and n.startswith("fc_norm.") else n for n in names}
    return {n: c.replace("._orig_mod.", ".") for n, c in found.items()}


def tensor_group(name: str) -> str:
    """Group of a canonical tensor name without its block number, in whichever family has it."""
    return _longest(_TENSORS, name)


def stacked(name: str) -> str:
    """Which of `q`, `k`, `v` the rows of a block's tensor hold, such as `qkv`; empty for any other tensor.

    Args:
        name: inside the block, such as `attn.qkv.weight`.
    """
    while name not in _STACKS and name:
        name = name.partition(".")[2]  # parallel attention stands one level deeper
    return _STACKS.get(name, "")


def _beside_mlp(block: ParallelScalingBlock) -> Attention:
    """The attention of a block whose `in_proj` gives the hidden units of its MLP, then query, key and value."""
    hidden, *_ = block.in_split
    _, query, key, value = block.in_proj.weight.split(block.in_split)
    out: Any = block.attn_out_proj
    biases = (None if block.in_proj.bias is None else block.in_proj.bias[hidden:], out.bias)
    others = tuple(n for n, _ in block.named_parameters() if n.startswith(("q_norm.", "k_norm.")))
    found = tuple(bias for bias in biases if bias is not None)
    return Attention(query, key, value, out.weight, found, others, block.num_heads)


def _longest(table: Mapping[str, str], name: str) -> str:
    while name not in table and name:
        name = name.rpartition(".")[0]
    return table.get(name, "head")
