"""Copy a warmed trunk into a model, and say what was copied, what stays fresh and what was refused."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.exports.gpt2 import as_trunk, decoder_name, from_gpt2, gpt2_facts, gpt2_name, is_gpt2, is_gpt2_model
from vitwarm.exports.layout import CHECKPOINTS, CONFIG, EXPORT, PROVENANCE, WARMUP, WEIGHTS
from vitwarm.exports.opening import lineage
from vitwarm.exports.weights import find_weights, read_weights
from vitwarm.files import expanded
from vitwarm.keys import require_seed
from vitwarm.reading import read_json
from vitwarm.selection import GROUPS, Selection, words_of
from vitwarm.transfer.core import CORE
from vitwarm.transfer.expand import Resized
from vitwarm.transfer.groups import block_of, canonical, group_of, head_mask, select
from vitwarm.transfer.resize import Fit, resize
from vitwarm.trunk import Decoder, family_of, require_values, trunk_facts, unwrap
from vitwarm.trunk.families import require_changeable
from vitwarm.trunk.history import Change, note
from vitwarm.trunk.initialisations import rewrite

TOKENS, POSITIONS, HEAD = (
    "token_embed.weight",
    "pos_embed.weight",
    "head.weight",
)  # of a decoder; an image model's positions are `pos_embed`
PACKAGED = "vitwarm:core"  # the compact core inside the package, as a source
_BLOCK = re.compile(r"^((?:blocks|transformer\.h)\.)\d+")
FREE = "conditioned"  # initialisation, where no source is given and the core does not fit


@dataclass
class TransferReport:
    """What a transfer did, by tensor name of the target model.

    Attributes:
        source: where the tensors came from.
        copied: tensors that now hold the source's values.
        fresh: tensors of the target that keep their own values: of no chosen group, or not in the source.
        refused: tensor of a chosen group -> why it could not be copied.
        notes: what was copied in part, in words.
        reasons: tensor of a chosen group that is fresh, or copied but for a part -> why.
        unused: tensor of the source that the model has no place for, `*` for the number of any block -> why.
    """

    source: str
    copied: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line a group, such as `attention: 48 copied`; then what has no counterpart, one line for all blocks."""
        lines = [f"transfer from {self.source}"]
        own = [*self.copied, *self.fresh, *self.refused]
        shown = {n: decoder_name(n) for n in own} if is_gpt2(own) else canonical(own)
        counts = {
            label: Counter(group_of(shown.get(n, n)) for n in names)
            for label, names in (("copied", self.copied), ("kept", self.fresh), ("refused", self.refused))
        }
        for group in GROUPS:
            parts = [f"{c[group]} {label}" for label, c in counts.items() if c[group]]
            if parts:
                lines.append(f"  {group}: {', '.join(parts)}")
        lines += [f"  refused {name}: {why}" for name, why in list(self.refused.items())[:5]]
        lines += [f"  {note}" for note in self.notes]
        kept = {_BLOCK.sub(r"\1*", n): (n, why) for n, why in self.reasons.items()}
        lines += [f"  {'partly ' * (n in self.copied)}kept {name}: {why}" for name, (n, why) in kept.items()]
        lines += [f"  unused {name}: {why}" for name, why in self.unused.items()]
        return "\n".join(lines)

    def of_model(self, model: nn.Module) -> "TransferReport":
        """The same on the trunk of a `GPT2LMHeadModel` in that model's names; of any other model, the report itself."""
        if not is_gpt2_model(model):
            return self
        copied, fresh = ([gpt2_name(n) for n in names] for names in (self.copied, self.fresh))
        refused, reasons = ({gpt2_name(n): why for n, why in of.items()} for of in (self.refused, self.reasons))
        return replace(self, copied=copied, fresh=fresh, refused=refused, reasons=reasons)

    def to_dict(self) -> dict[str, Any]:
        always = ("source", "copied", "fresh", "refused")
        return {name: value for name, value in asdict(self).items() if value or name in always}


def read_source(source: str | Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a run (the model after its warm-up if it had one, else its export), an export, a checkpoint or a file;
    or `vitwarm:core`.

    Returns:
        ({canonical name: tensor}, the file that was read).

    Raises:
        UserError: nothing readable there.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise UserError(f"source is {source!r}; give a run, an export, a checkpoint or a .safetensors file by its path")
    path = CORE if source == PACKAGED else expanded(source)
    folders = (*([path / WARMUP] if _was_warmed_up(path) else []), path, path / EXPORT)
    found = path if path.is_file() else next((file for f in folders if (file := find_weights(f))), None)
    if found is None and find_weights(path / WARMUP):
        raise UserError(
            f"{source} is a run that began with given weights and is not finished; finish it, or give {path / WARMUP} "
            "to start as it did"
        )
    if found is None:
        steps = sorted((path / CHECKPOINTS).glob("step-*[0-9]"))
        if steps:
            raise UserError(f"{source} is not finished and holds no weights but its checkpoints'; give {steps[-1]}")
        raise UserError(
            f"no weights at {source}: expected the folder of a run, of an export or of a checkpoint, with {WEIGHTS}, "
            "or a .safetensors file"
        )
    tensors = read_weights(found)
    if is_gpt2(tensors):
        tensors = from_gpt2(tensors)
    names = canonical(tensors)
    return {names[n]: t for n, t in tensors.items()}, str(found)


def _was_warmed_up(run: Path) -> bool:
    """Whether the warm-up of a run made its model; weights that it was given lie in the same folder, untrained."""
    try:
        return read_json(run / WARMUP / PROVENANCE).get("trained", WARMUP) == WARMUP
    except UserError:  # no record: of an older version, or copied without it
        return True


def _in_block(name: str) -> str | None:
    """A block's tensor without the number of its block; None outside the blocks."""
    return None if block_of(name) is None else name.split(".", 2)[2]


def _without_padding(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], report: TransferReport
) -> Mapping[str, Tensor]:
    """The source with as many tokens as the model, where it has a few more to make their number a round one.

    Vocabularies are padded to a multiple of 64 or the like (50257 tokens as 50304 rows), since matrices of such sizes
    are faster. What is padding is taken for one: fewer rows than the multiple, and than a quarter of the tokens.
    """
    size, rows = len(own.get(TOKENS, ())), len(tensors.get(TOKENS, ()))
    multiple = rows & -rows  # of the largest power of two
    if multiple < 8 or not 0 < rows - size < min(multiple, size / 4):
        return tensors
    padded = [name for name in (TOKENS, HEAD) if len(tensors.get(name, ())) == rows and name in own]
    report.notes.append(f"the source's last {rows - size} of {rows} tokens were taken for padding and left out")
    return {**tensors, **{name: tensors[name][:size] for name in padded}}


def _require_usable(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    """Refuse a tensor whose values would be others in the model, though its shape is right."""
    if tensor.is_floating_point() != own.is_floating_point():
        raise UserError(f"{source}: {name} is {tensor.dtype}, the model's {own.dtype}; convert it first")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{source}: {name} holds NaN or infinity; these weights are damaged, make or load them again")
    if not torch.isfinite(tensor.to(own.dtype)).all():
        raise UserError(f"{source}: {name} has values that {own.dtype} cannot hold; give the model as float32")


def _shared(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], fits: Mapping[str, str]) -> dict[str, str]:
    """Tensors of blocks that are one in the model, but not in the source -> why that cannot be copied."""
    first: dict[int, str] = {}
    refused = {}
    for name, canonical_name in fits.items():
        if block_of(canonical_name) is not None and own[name].numel():
            other = first.setdefault(own[name].data_ptr(), name)
            if not torch.equal(tensors[fits[other]], tensors[canonical_name]):
                refused[name] = f"one tensor with {other} in the model, two in the source"
    return refused


def _require_plain_heads(model: nn.Module) -> None:
    """Refuse a part of the heads where a head has no query, key and value of its own."""
    family = family_of(model)
    for block in family.model.blocks:
        size = family.size(block)
        if size.copies > 1 or size.heads != size.kv_heads:
            why = "several attentions side by side" if size.copies > 1 else "heads that share keys and values"
            raise UserError(f"heads= cannot take a part of a {type(block).__name__}: it has {why}; leave heads= out")


@torch.no_grad()
def transfer(
    model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, groups: Sequence[str] = ("trunk",)
) -> TransferReport:
    """Copy the groups' tensors into a timm model and report; nothing is changed when one of them is refused.

    Tensors of the model that the source lacks (say, a layer scale) stay fresh; a block that it lacks is refused, and so
    is a tensor that it has in some blocks alone, one that the model has no place for, and one whose values the model's
    type of numbers cannot hold. Of a decoder's positions the model takes the first, as many as it has;
    a source with fewer is refused.

    Args:
        model: timm model with a supported trunk.
        tensors: {canonical name: tensor}.
        source: what to call the tensors in the report.
        groups: words of `vitwarm.selection`; under `heads=` a tensor is copied in part.

    Raises:
        UserError: unknown group, no such block or head, unsupported family, a model without values (`meta`).
    """
    own, chosen = require_changeable(model).state_dict(), Selection.parse(groups)
    facts: dict[str, Any] = trunk_facts(model)
    if chosen.heads:
        _require_plain_heads(model)
    names = {c: n for n, c in canonical(own).items()}  # canonical -> the model's own name
    if len(tensors.get(POSITIONS, ())) > len(own.get(POSITIONS, ())) > 0:
        tensors = {**tensors, POSITIONS: tensors[POSITIONS][: len(own[POSITIONS])]}
    report = TransferReport(source)
    if {"embedding", "head"} & set(chosen.kinds):
        tensors = _without_padding(tensors, own, report)
    wanted = set(select([*tensors, *names], chosen, facts["depth"]))
    blocks = {block_of(n) for n in tensors if n in wanted} - {None}
    inside = {_in_block(n) for n in tensors if block_of(n) is not None}
    fits = {}  # the model's name -> canonical
    for name in sorted(wanted | set(names), key=_natural):
        if name in wanted and name in tensors:
            if name not in names:
                report.refused[name] = "the target has no such tensor"
            elif own[names[name]].shape != tensors[name].shape:
                shapes = tuple(tensors[name].shape), tuple(own[names[name]].shape)
                report.refused[names[name]] = "source {}, target {}".format(*shapes)
            else:
                _require_usable(name, tensors[name], own[names[name]], source)
                fits[names[name]] = name
        elif name in wanted and blocks and block_of(name) not in {None, *blocks}:
            report.refused[names[name]] = f"the source has {len(blocks)} blocks, none with this number"
        elif name in wanted and _in_block(name) in inside:
            report.refused[names[name]] = "the source has it in other blocks alone, so a part of it is missing"
        else:
            report.fresh.append(names[name])
            if name in wanted:
                report.reasons[names[name]] = "the source has no such tensor"
    report.refused |= _shared(own, tensors, fits)
    if report.refused:
        report.fresh = sorted([*report.fresh, *fits], key=_natural)
        return report
    parts = {n: heads for n in fits.values() if (heads := chosen.heads_of(block_of(n))) is not None}
    masks = {n: head_mask(n, tensors[n].shape, heads, facts["heads"]) for n, heads in parts.items()}
    for own_name, name in fits.items():
        tensor = tensors[name].to(own[own_name])
        if name in masks:
            tensor = torch.where(masks[name].to(tensor.device), tensor, own[own_name])
        own[own_name].copy_(tensor)
    report.copied = list(fits)
    if isinstance(tensors, Resized):
        report.reasons |= {n: tensors.partly[c] for n, c in fits.items() if c in tensors.partly}
        report.unused = tensors.unused
    return report


def warm_start(
    model: nn.Module,
    source: str | Path | None = None,
    groups: str | Sequence[str] = ("trunk",),
    *,
    fit: Literal["exact"] | Fit = "exact",
    seed: int = 0,
) -> TransferReport:
    """Start a model that you already have from a warmed trunk; without a source, from the core in the package.

    The model changes in place, or not at all. Class token, patch embedding, positions and head stay as they are.

        model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
        print(vitwarm.warm_start(model))  # the core of the package, expanded
        print(vitwarm.warm_start(model, "runs/vit_t_proc1pct-seed42"))

    Args:
        model: any supported timm model, a decoder of ours or a `GPT2LMHeadModel` of transformers, also within DDP,
            `torch.compile` or a moving average; under `fit="exact"` of the source's width and depth.
        source: folder of a run, an export or a checkpoint, or a .safetensors file (one of several: the folder, or its
            index); `vitwarm:core` is the package's compact core. None is this core for a ViT of at least width 192 and
            three blocks, and for others `initialise` with `conditioned`: what ended highest without a cost, at one
            learning rate for all, in docs/results/starts.md. The report says which. Not for decoders.
        groups: what to copy: `trunk`, or a part of it (`attention`, `mlp`, `norm`, `layers=last:4`), `embedding`,
            `head`; see `vitwarm.selection`.
        fit: `exact`; `select` a part of a larger source; `expand` a core (see `vitwarm.transfer.resize`). The
            package's core is always expanded.
        seed: root seed of what an expansion adds, or of conditioned attention.

    Returns:
        What was copied, or set, and what stays as it was.

    Raises:
        UserError: an unknown fit, nothing to read or to copy, or tensors that do not fit; the model is then unchanged.
    """
    seed = require_seed(seed)
    if fit not in ("exact", *get_args(Fit)):
        raise UserError(f"fit must be exact, {' or '.join(get_args(Fit))}, not {fit!r}")
    words, model = words_of(groups), unwrap(model)
    if source is None:
        _require_no_more(model, words, fit)
        if not _takes_core(model):
            return _set_attention(model, seed)
        source = PACKAGED
    if source == PACKAGED:
        if fit == "select":
            raise UserError(f"fit=select takes a part of a larger source; {PACKAGED} is expanded")
        fit = "expand"
    tensors, found = read_source(source)
    origin = lineage([found])
    with as_trunk(model) as trunk:
        label = PACKAGED if source == PACKAGED else found
        report = transfer(trunk, fitted(trunk, tensors, found, fit, words, seed=seed), source=label, groups=words)
        require_fit(report, words)
    what = "weights" if words == ["trunk"] else " ".join(words)
    how = {"select": ", a selection", "expand": ", expanded"}.get(fit, "")
    drawn = seed if fit == "expand" else None
    change = Change(f"{what} of {source}{how}", drawn, tuple(report.copied), lineage=origin)
    note(model, change, replaced=() if Selection.parse(words).heads else report.copied)
    return report.of_model(model)


def _require_no_more(model: nn.Module, groups: list[str], fit: str) -> None:
    """Refuse arguments that are about a source where none is given, and decoders."""
    if fit != "exact" or groups != ["trunk"]:
        raise UserError(f"without a source, leave groups and fit out; or give a source, say {PACKAGED!r}")
    if isinstance(model, Decoder) or is_gpt2_model(model):  # conditioned: worse by 0.1 nats a byte on books
        raise UserError("no start without training is known to help a decoder; give a source: a run, an export, a file")


def _takes_core(model: nn.Module) -> bool:
    """Whether a model is as wide and as deep as the package's core at least."""
    core = read_json(CORE / PROVENANCE, trunk=dict)["trunk"]
    facts = trunk_facts(model)
    return bool(facts["width"] >= core["width"] and facts["depth"] >= core["depth"])


def _set_attention(model: nn.Module, seed: int) -> TransferReport:
    """Set the attention in closed form.

    Raises:
        UserError: a model that the formulas do not cover.
    """
    require_values(model)
    try:
        changed = rewrite(model, FREE, seed=seed)
    except UserError as error:
        raise UserError(f"{error}; give a source: a run, an export, a file") from error
    assert changed is not None
    note(model, *changed)
    names, tensors = list(model.state_dict()), changed[0].tensors
    return TransferReport(
        f"{FREE} attention in closed form (no file, no training)",
        copied=[n for n in names if n in tensors],
        fresh=[n for n in names if n not in tensors],
    )


def require_same_blocks(model: nn.Module, found: str | Path, facts: Sequence[str] = ()) -> None:
    """Refuse a source whose export says that its blocks compute something else, though the shapes may be equal.

    Args:
        model: timm model or decoder.
        found: the file of the source.
        facts: which of `trunk_facts` must be equal; all, if empty.

    Raises:
        UserError: one differs.
    """
    theirs = _facts_beside(Path(found))
    for fact, ours in trunk_facts(model).items():
        if facts and fact not in facts:
            continue
        if theirs.get(fact) not in (None, ours):
            cure = (
                f"it is a core to expand, by transfer.fit=expand of a recipe or vitwarm.warm_start(model, {PACKAGED!r})"
                if Path(found).parent == CORE
                else ""
            )
            raise UserError(
                f"{found} does not fit the model: its trunk has {fact} {theirs[fact]}, the model's {ours}; "
                + (cure or f"{'these' if facts else 'width, depth, heads and block type'} must be equal")
            )


def fitted(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    found: str,
    fit: Literal["exact"] | Fit,
    groups: Iterable[str],
    *,
    seed: int,
) -> Mapping[str, Tensor]:
    """A source's tensors as they go into the model: as they are, which demands equal blocks, or resized.

    Args:
        model: timm model or decoder.
        tensors: {canonical name: tensor}.
        found: the file that they were read from.
        fit: `exact`, `select` or `expand`; see `resize`.
        groups: what of them is to be copied.
        seed: root seed of what `expand` adds.

    Raises:
        UserError: they do not fit.
    """
    if fit == "exact":
        require_same_blocks(model, found)
        return tensors
    if outside := {"embedding", "head"} & set(Selection.parse(groups).kinds):
        raise UserError(f"transfer.fit={fit} resizes the trunk alone; leave out {' and '.join(sorted(outside))}")
    if fit == "select":
        require_same_blocks(model, found, ("block",))
    return resize(tensors, require_values(model), fit, heads=_facts_beside(Path(found)).get("heads"), seed=seed)


def _facts_beside(weights: Path) -> dict[str, Any]:
    """Facts of the trunk (`trunk_facts`) from our record or GPT-2's configuration; empty without either."""
    if not weights.is_file():  # timm:NAME
        return {}
    with contextlib.suppress(UserError):
        found: dict[str, Any] = read_json(weights.with_name(PROVENANCE), trunk=dict)["trunk"]
        return found
    with contextlib.suppress(UserError, KeyError):
        return gpt2_facts(read_json(weights.with_name(CONFIG)))
    return {}


def require_fit(report: TransferReport, groups: Iterable[str]) -> None:
    """Refuse a transfer that does not fit or copied nothing, in one line that names the reason."""
    if report.refused:
        name, why = next(iter(report.refused.items()))
        demand = {
            "embedding": "size of images and of patches, or vocabulary and positions, must be the source's",
            "head": "the classes, or the vocabulary, must be the source's",
        }.get(group_of(canonical([name])[name]), "width, depth and block type must be equal")
        if name == POSITIONS:
            demand = "a decoder may have no more positions than the source"
        raise UserError(
            f"{report.source} does not fit the model: {len(report.refused)} tensors differ, first {name} ({why}); "
            f"{demand}"
        )
    if not report.copied:
        raise UserError(f"{report.source} holds no tensor of the groups {', '.join(groups)}")


def _natural(name: str) -> list[Any]:
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]
