"""A core of three blocks, {first, middle, last}, becomes the trunk of a model of any depth and any larger width.

The three are copied to any depth. A wider model gets copies of the core side by side: every copy has channels of the
residual stream, heads and hidden units of its own, and reads and writes its own channels alone; what would lead from
one copy to another starts at 0. So each computes what the core does, on what it receives from a fresh stem. The public
code tiles the matrices instead, so that every copy reads the mean of all channels and writes the same to all: that
loses what the core gains (docs/results/starts.md).

| axis of a matrix | copies of |
|---|---|
| residual stream | the core's channels |
| attention heads | heads; the channels of a wider head are those of several copies, whose logits are averaged |
| hidden units of the MLP | units; where there are fewer, evenly spread ones |

The last copy may be a part. Where one axis has more copies than the other, several share those of the other. With r the
inputs that a unit has over those in the core, its weights are divided by sqrt(r), since copies in the stream differ, or
by r where copies of heads or hidden units say the same: a block's output is as large as the core's. To matrices that
repeat a unit so comes noise of `NOISE` times its root mean square: equal weights would get equal gradients forever.

Where a model stores a block's tensors in another way than a plain block does, each of them takes its part of the plain
block of the model's size (`Family.counterparts`):

| in the model | takes |
|---|---|
| query, key and value apart, biases of their own | their rows of `attn.qkv` |
| fewer heads of keys than of queries | each group of queries a head of the core |
| no bias | nothing: the core's is not used |
| a gated MLP | `mlp.fc1` in front of the activation; the values that the gate multiplies stay fresh |
| one norm in front of attention and MLP | matrices with the weights of both norms multiplied in; the norm is 1 and 0 |
| norms behind attention and MLP | the same matrices; the norms stay fresh, and say how large a block's output is |
| several attentions or MLPs whose outputs add up | a copy each, which says its share |

What a plain block lacks stays fresh: layer scales, norms within attention and MLP, gates of attention.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.transfer.groups import block_of, canonical, group_of, input_letters
from vitwarm.trunk.families import BlockSize, family_of

NOISE = 0.1
# Blocks of timm whose norms stand behind attention and MLP.
_POST_NORM = ("ResPostBlock", "ResPostRelPosBlock", "EvaBlockPostNorm")


class Resized(dict[str, Tensor]):
    """{canonical name: tensor} in the shapes of a model, made of a source.

    Attributes:
        partly: tensor of the model -> which part of it is the model's own.
        unused: tensor of the source -> why it went nowhere.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(tensors or {})
        self.partly: dict[str, str] = {}
        self.unused: dict[str, str] = {}


def every(many: int, few: int) -> np.ndarray:
    """`few` of `many` places: every s-th when it divides, else evenly spread and rounded. Source: arXiv 2311.18823."""
    return np.arange(few) * (many // few) if many % few == 0 else np.linspace(0, many - 1, few).round().astype(int)


def expand(core: Mapping[str, Tensor], model: nn.Module, heads: int | None, seed: int) -> Resized:
    """The tensors of a model's trunk, made of a core; see the module's page.

    Args:
        core: {canonical name: tensor}.
        model: timm model or decoder; one on the device `meta` shows whether the core fits.
        heads: attention heads of the core.
        seed: root seed of the noise.

    Raises:
        UserError: no core, or a model that has no place for its matrices.
    """
    core = {n: t.float() for n, t in core.items() if group_of(n) not in ("embedding", "head")}
    if {block_of(n) for n in core} - {None} != {0, 1, 2} or heads is None:
        raise UserError("transfer.fit=expand takes a core: three blocks, and vitwarm.json beside them with the heads")
    family = family_of(model)
    blocks, width = family.model.blocks, int(family.model.embed_dim)
    narrow = next((len(t) for n, t in core.items() if n.endswith(("norm1.weight", "in_norm.weight"))), None)
    if narrow is None:
        raise UserError("transfer.fit=expand takes a core whose blocks are one attention and one MLP each")
    if len(blocks) < 3:
        raise UserError(f"a core is expanded to three blocks or more; the model has {len(blocks)} blocks")
    if width < narrow:
        raise UserError(f"the core is {narrow} channels wide, the model only {width}: it cannot shrink")
    present = set(canonical(family.model.state_dict()).values())
    outside = {n: t for n, t in core.items() if block_of(n) is None}
    made = Resized({n: t[_places(width, len(t))] for n, t in outside.items() if n in present})
    unused = set(outside) - present
    for number, block in enumerate(blocks):
        third = 0 if number == 0 else 2 if number == len(blocks) - 1 else 1
        own = {n.split(".", 2)[2]: t for n, t in core.items() if block_of(n) == third}
        prefix, state, counterparts = f"blocks.{number}.", block.state_dict(), family.counterparts(block)
        if "in_norm.weight" in state and "norm1.weight" in own:
            own = _without_norms(own) | {
                n: torch.full((narrow,), float(n.endswith("weight"))) for n in state if "in_norm." in n
            }
        elif type(block).__name__ in _POST_NORM:
            own = _without_norms(own)
        widening = _Widening(own, heads, narrow // heads, family.size(block), prefix, seed)
        for name, parts in counterparts.items():
            if group_of(prefix + name) == "embedding" or (tensor := widening.fill(name, parts, state[name])) is None:
                continue
            made[prefix + name] = tensor
            if None in parts and not widening.gated:
                made.partly[prefix + name] = "the half that the gate multiplies; the source has no gates"
        taken = {atom for n, parts in counterparts.items() for part in (*parts, n) if part for atom in atoms(part)}
        left = {atom for n in own for atom in atoms(n)} - taken
        gated = any(None in parts for parts in counterparts.values())
        if wrong := sorted(n for n in left if not n.endswith("bias")):
            raise UserError(f"the core does not fit the model: its {type(block).__name__} has no place for {wrong[0]}")
        if widening.gated and not gated:
            raise UserError(f"the core's MLPs are gated, those of the model's {type(block).__name__} are not")
        unused |= {f"blocks.*.{n}" for n in left}
    made.unused = dict.fromkeys(sorted(unused), "the model has no such tensor")
    return made


def _places(new: int, old: int) -> Tensor:
    """Which of `old` places each of `new` is made of: all in turn, or evenly spread ones."""
    return torch.from_numpy(np.arange(new) % old if new >= old else every(old, new))


def _copies(new: int, old: int) -> Tensor:
    """Which copy of `old` places each of `new` belongs to."""
    return torch.arange(new) // old


def atoms(name: str) -> list[str]:
    """A tensor of a plain block in its smallest parts: query, key and value are thirds of `attn.qkv`."""
    return [name.replace("qkv", letter) for letter in "qkv"] if name.startswith("attn.qkv.") else [name]


def _without_norms(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain block without its two norms: their gains and biases are part of the matrices behind them."""
    own = dict(own)
    for norm, matrix in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
        gain, weight = own.pop(f"{norm}.weight"), own[f"{matrix}.weight"]
        if (bias := own.pop(f"{norm}.bias", None)) is not None:
            own[f"{matrix}.bias"] = own.get(f"{matrix}.bias", 0) + weight @ bias
        own[f"{matrix}.weight"] = weight * gain
    return own


class _Widening:
    """One block of a core becomes one of a model.

    Args:
        own: {name in the block: tensor} of the core.
        heads, channels: of the core; channels of a head.
        size: of the model's block.
        prefix: name of the model's block.
        seed: root seed of the noise.
    """

    def __init__(self, own: Mapping[str, Tensor], heads: int, channels: int, size: BlockSize, prefix: str, seed: int):
        self.own, self.size, self.prefix, self.seed = own, size, prefix, seed
        self.inner, self.gain = heads * channels, (channels / size.channels) ** 0.25
        kv = np.arange(size.kv_heads)
        rows = {"q": kv.repeat(size.heads // size.kv_heads), "k": kv, "v": kv}
        within = np.arange(size.channels)
        self.rows = {
            n: torch.from_numpy((order[:, None] % heads * channels + within % channels).ravel())
            for n, order in rows.items()
        }
        several = -(-size.channels // channels)  # copies whose channels a wider head has
        self.copies = {
            n: torch.from_numpy((order[:, None] // heads * several + within // channels).ravel())
            for n, order in rows.items()
        }
        fc1, fc2 = own.get("mlp.fc1.weight"), own.get("mlp.fc2.weight")
        self.gated = fc1 is not None and fc2 is not None and len(fc1) == 2 * fc2.shape[1]
        self.plain: dict[str, Tensor] = {}

    def fill(self, name: str, parts: Sequence[str | None], own: Tensor) -> Tensor | None:
        """A tensor of the model; None where the core has nothing for it.

        Args:
            name: in the block.
            parts: of a plain block, see `Family.counterparts`.
            own: the model's, which stays where the core has nothing for a part.
        """
        if name in self.own and self.gated >= (None in parts):
            return self._widened(name, name, own.shape)
        known = {part: self._shape(part) for part in parts if part}
        if not (given := [part for part in known if _whole(part) in self.own]):
            return None
        branch = re.sub(r"^((attns|ffns)\.\d+\.)?.*", r"\1", name)
        if len(parts) == 1:
            return self._part(given[0], branch)
        if name == "out_proj.bias":  # the outputs of both add up
            return torch.stack([self._part(part, branch) for part in given]).sum(0)
        axis, start, made = int(name == "out_proj.weight"), 0, own.float().clone()
        gap = own.shape[axis] - sum(shape[axis] for shape in known.values())
        for part in parts:
            length = known[part][axis] if part else gap
            if part in given:
                made.narrow(axis, start, length).copy_(self._part(part, branch))
            start += length
        return made

    def _shape(self, part: str) -> tuple[int, ...]:
        """Shape of a plain block's tensor, or of a third of one, in the model's size."""
        module, _, kind = part.rpartition(".")
        size, queries = self.size, len(self.rows["q"])
        thirds = {f"attn.{n}": len(rows) for n, rows in self.rows.items()}
        rows = {**thirds, "attn.qkv": sum(thirds.values()), "mlp.fc1": size.hidden}.get(module, size.width)
        columns = {"attn.proj": queries, "mlp.fc2": size.hidden}.get(module, size.width)
        return (rows, columns) if kind == "weight" and "norm" not in module else (rows,)

    def _part(self, part: str, branch: str) -> Tensor:
        """A plain block's tensor, or a third of one, in the model's size."""
        name, whole = branch + part, _whole(part)
        if whole == part:
            made = self._widened(name, part, self._shape(part))
            return made / self.size.copies if part.startswith(("attn.proj.", "mlp.fc2.")) else made
        if whole not in self.plain:
            self.plain[whole] = self._widened(whole, whole, self._shape(whole))
        thirds = self.plain[whole].split([len(rows) for rows in self.rows.values()])
        return thirds["qkv".index(part[len("attn.")])]

    def _widened(self, name: str, origin: str, shape: Sequence[int]) -> Tensor:
        """One tensor of the core in the given shape; `name` is the one that its noise is drawn for."""
        tensor, letters = self.own[origin], input_letters(origin)
        if letters:
            size = len(tensor) // len(letters)
            if size != self.inner:
                raise UserError(
                    f"the core's {origin} has {size} rows, not {self.inner}: heads must not share their keys"
                )
            rows = torch.cat([p * size + self.rows[letter] for p, letter in enumerate(letters)])
            copies = torch.cat([self.copies[letter] for letter in letters])
        elif origin.startswith("mlp.fc1.") and self.gated:
            half = len(tensor) // 2
            rows = torch.cat([p * half + _places(shape[0] // 2, half) for p in (0, 1)])
            copies = _copies(shape[0] // 2, half).repeat(2)
        else:
            rows, copies = _places(shape[0], len(tensor)), _copies(shape[0], len(tensor))
        made = tensor[rows]
        if scaled := sum(len(self.rows[letter]) for letter in letters if letter != "v"):
            made[:scaled] *= self.gain  # queries, keys: logits add up over channels
        if made.ndim == 2:
            projects = origin == "attn.proj.weight"
            columns = self.rows["q"] if projects else _places(shape[1], tensor.shape[1])
            from_copies = self.copies["q"] if projects else _copies(shape[1], tensor.shape[1])
            shared = 1 + min(int(copies.max()), int(from_copies.max()))  # those beyond join the others in turn
            own = ((copies % shared)[:, None] == from_copies % shared).to(made.device)
            ratio = own.sum(1, keepdim=True) / tensor.shape[1]
            coherent = projects or origin == "mlp.fc2.weight"
            made = made[:, columns] * own / torch.where((ratio >= 1) & coherent, ratio, ratio.sqrt())
            repeats = copies.max() != from_copies.max() or self.size.copies > 1
            if repeats and not made.is_meta:
                rng = keyed_rng(self.seed, "expand", self.prefix + name)
                noise = torch.from_numpy(rng.standard_normal(tuple(made.shape), dtype=np.float32))
                made += NOISE * (made.square().sum() / own.sum()).sqrt() * noise * own
        return made.contiguous()


def _whole(part: str) -> str:
    """The tensor that a part belongs to."""
    return re.sub(r"^attn\.[qkv]\.", "attn.qkv.", part)
