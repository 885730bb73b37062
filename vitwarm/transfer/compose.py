"""Several sources in one model: the attention of one, the MLPs of another, the last blocks of a third."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor, nn

from vitwarm.errors import UserError
from vitwarm.exports.opening import lineage
from vitwarm.exports.weights import sha256_of_weights
from vitwarm.keys import require_seed
from vitwarm.selection import Selection
from vitwarm.transfer.groups import block_of, canonical, group_of, select
from vitwarm.transfer.perturb import describe, perturb
from vitwarm.transfer.warm_start import TransferReport, read_source, require_fit, require_same_blocks, transfer
from vitwarm.trunk import trunk_facts, unwrap
from vitwarm.trunk.families import copy_of, require_changeable
from vitwarm.trunk.history import Change, note


@dataclass(frozen=True)
class Part:
    """The share of one source in a composition.

    Attributes:
        groups: words of `vitwarm.selection`.
        tensors: {canonical name: tensor} of the source.
        source: what to call it.
    """

    groups: Sequence[str]
    tensors: Mapping[str, Tensor]
    source: str


def merge(
    model: nn.Module, parts: Sequence[Part], controls: Mapping[str, str] | None = None, *, seed: int = 0
) -> TransferReport:
    """Copy each part's groups into the model: all of them, or the model stays as it is.

    Args:
        model: timm model or decoder.
        parts: no two of them may give the same tensor, or the same head of it.
        controls: selection -> control, applied to the sources first; see `perturb`.
        seed: root seed of the controls.

    Raises:
        UserError: a part that does not fit or gives nothing, or parts that overlap.
    """
    facts: dict[str, Any] = trunk_facts(model := require_changeable(model))
    depth, heads, controls = facts["depth"], facts["heads"], controls or {}
    if len(parts) > 1:
        _refuse_overlap(parts, depth)
    met = [_met(part, controls, depth) for part in parts]
    if idle := next((groups for groups in controls if not any(groups in m for m in met)), None):
        raise UserError(f"control {controls[idle]} of {idle}: no source gives anything of it")
    trial = model if len(parts) == 1 else copy_of(model)
    reports = []
    for part, own in zip(parts, met, strict=True):
        tensors = perturb(part.tensors, own, depth=depth, heads=heads, seed=seed)
        reports.append(transfer(trial, tensors, source=part.source, groups=part.groups))
        require_fit(reports[-1], part.groups)
    if trial is not model:
        model.load_state_dict(trial.state_dict())
    if len(reports) == 1:
        return reports[0]
    copied = dict.fromkeys(name for report in reports for name in report.copied)
    fresh = [name for name in reports[0].fresh + reports[0].copied if name not in copied]
    named = ", ".join(f"{' '.join(p.groups)} of {p.source}" for p in parts)
    reasons = {n: why for r in reports for n, why in r.reasons.items() if n in r.copied or n not in copied}
    unused = {n: why for r in reports for n, why in r.unused.items()}
    return TransferReport(named, list(copied), fresh, reasons=reasons, unused=unused)


def _met(part: Part, controls: Mapping[str, str], depth: int) -> dict[str, str]:
    """The controls that meet a tensor of the part."""
    given = set(select(part.tensors, part.groups, depth))
    return {groups: c for groups, c in controls.items() if given & set(select(part.tensors, groups, depth))}


def _refuse_overlap(parts: Sequence[Part], depth: int) -> None:
    taken: dict[str, list[tuple[set[int] | None, str]]] = {}
    for part in parts:
        selection = Selection.parse(part.groups)
        for name in select(part.tensors, selection, depth):
            heads = selection.heads_of(block_of(name))
            for others, source in taken.setdefault(name, []):
                if heads is None or others is None or heads & others:
                    raise UserError(f"{source} and {part.source} both give {name}; narrow one of them with layers=")
            taken[name].append((heads, part.source))


def compose(
    model: nn.Module,
    sources: Mapping[str, str | Path],
    controls: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> TransferReport:
    """Build a trunk from several sources; what none of them gives stays as it is in the model.

        compose(model, {"attention": "runs/set", "mlp layers=0-3": "runs/eca"}, {"mlp": "shuffle"})

    Args:
        model: timm model or decoder of the sources' width, depth and heads, wrapped or not; changed in place, or not at
            all.
        sources: selection (`vitwarm.selection`) -> folder of a run, an export or a checkpoint, or a .safetensors file.
        controls: selection -> control (`vitwarm.transfer.perturb`).
        seed: root seed of the controls.

    Raises:
        UserError: no source, nothing to read, another width, depth, head count or block type, or sources that overlap.

    Source: arXiv 2601.21725 (attention of one rule's model, MLPs of another's).
    """
    model, seed = unwrap(model), require_seed(seed)
    if not sources or not isinstance(sources, Mapping) or not all(isinstance(groups, str) for groups in sources):
        raise UserError(f"sources is {sources!r}; give selections with a path each: {{'attention': 'runs/set'}}")
    if not isinstance(controls, Mapping | NoneType):
        raise UserError(f"controls is {controls!r}; give selections with a control each: {{'attention': 'shuffle'}}")
    parts = []
    for groups, source in sources.items():
        tensors, found = read_source(source)
        require_same_blocks(model, found)
        parts.append(Part(groups.split(), tensors, found))
    report = merge(model, parts, controls, seed=seed)
    change = Change(
        _story(sources, controls or {}),
        seed if controls else None,
        tuple(report.copied),
        lineage=lineage([part.source for part in parts]),
    )
    note(model, change, replaced=() if any(Selection.parse(p.groups).heads for p in parts) else report.copied)
    return report


def _story(sources: Mapping[str, str | Path], controls: Mapping[str, str]) -> str:
    given = ", ".join(f"{groups} of {source}" for groups, source in sources.items())
    return f"composed: {given}" + (f", after the controls {describe(controls)}" if controls else "")


def record_of(
    sources: Mapping[str, str | Path],
    report: TransferReport,
    target: str | Path,
    weights: Path | None,
    controls: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    """The provenance of a composition.

    Args:
        sources: as in `compose`.
        report: what it returned.
        target: what says which model it is.
        weights: file that the model's came from; None if it was fresh.
        controls: as in `compose`.
        more: further facts to write down.

    Returns:
        For each selection the file that was read, its SHA-256, and the tensors that came from it.
    """
    origins = {}
    for groups, source in sources.items():
        tensors, file = read_source(source)
        taken = set(select(tensors, groups, _depth(report)))
        origins[groups] = {
            "file": file,
            "sha256": sha256_of_weights(Path(file)),
            "tensors": [own for own, name in canonical(report.copied).items() if name in taken],
        }
    return {
        "start": f"{_story(sources, controls)}; the rest {f'of {target}' if weights else 'fresh'}",
        "trained": None,
        **lineage([str(file) for file in (*(o["file"] for o in origins.values()), weights) if file]),
        "sources": origins,
        "warmed_keys": report.copied,
        "fresh_keys": report.fresh,
        "target": str(target),
        "controls": dict(controls),
        **more,
    }


def head_of(record: Mapping[str, Any]) -> Path | None:
    """The file that the head of a composition came from, by its `record_of`; None if no source gave it."""
    given = (s for s in record["sources"].values() if "head" in map(group_of, canonical(s["tensors"]).values()))
    return next((Path(source["file"]) for source in given), None)


def _depth(report: TransferReport) -> int:
    return 1 + max(b for n in [*report.copied, *report.fresh] if (b := block_of(n)) is not None)
