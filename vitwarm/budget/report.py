"""Writes the report of a study: a page to open in a browser, and the numbers behind it."""

import csv
import io
import json
import shlex
from collections import Counter
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from vitwarm.budget import figures
from vitwarm.budget.cells import DONE
from vitwarm.budget.curves import TOGETHER
from vitwarm.budget.efficiency import ArmRow, CellRow, Study
from vitwarm.budget.page import Code, Figure, Folded, Heading, Points, Table, Text
from vitwarm.budget.page_folder import write_page
from vitwarm.budget.statistics import bootstrap_ceiling
from vitwarm.budget.wording import (
    LISTED,
    arm_sentences,
    bootstrap_text,
    crossing_text,
    headline,
    mean_text,
    needed_text,
    saved_text,
    share_text,
)

_RESUMED = "A run that resumes from a checkpoint of another counts that part as its own."


def write_report(study: Study, folder: Path) -> list[Path]:
    """Write report.html, report.md, the figures (SVG and PNG), cells.csv and study.json; each whole or not at all.

    Args:
        study: what `analyse` found.
        folder: made if missing; other files in it are left alone.

    Returns:
        The files, report.html first.

    Raises:
        UserError: matplotlib is missing.
    """
    return write_page(
        folder,
        f"{study.name}: how much data a start is worth",
        partial(page, study),
        _figures(study),
        {"cells.csv": _csv(study.cells), "study.json": json.dumps(asdict(study), indent=1, allow_nan=False) + "\n"},
    )


def page(study: Study, drawn: dict[str, str]) -> list[Any]:
    """The blocks of the page, the answer first.

    Args:
        study: the study.
        drawn: name -> SVG for the inside of a page.
    """
    blocks: list[Any] = [Text(headline(study), "lead")]
    said = Points([arm_sentences(study, arm) for arm in study.others])
    blocks += [
        said if len(study.others) <= LISTED else Folded("Each arm in words", [said]),
        Text(_facts(study), "small"),
    ]
    if study.warnings:
        blocks.append(Points(study.warnings, "warning"))
    captions = {
        "efficiency": _efficiency_caption(study),
        "needed": _needed_caption(study),
        "curves": _curve_caption(study),
    }
    if len(study.budgets) > 1 or study.published_shares:
        blocks.append(Heading("Data needed"))
    if "efficiency" in drawn:
        blocks.append(Figure(drawn["efficiency"], "efficiency.svg", captions["efficiency"]))
    if len(study.budgets) > 1:
        blocks.append(_needed_table(study))
        blocks.append(Folded("Seeds and bootstrap behind these numbers", [_detail_table(study)]))
    if "needed" in drawn:
        blocks.append(Figure(drawn["needed"], "needed.svg", captions["needed"]))
        blocks.append(Points([f"{p.label}: {p.source}" for p in study.published_shares]))
    blocks += [Heading("At the full budget"), _arm_table(study)]
    if published := study.published_values:
        blocks.append(Text(f"Published by others, in their recipes, {study.label}:"))
        blocks.append(
            Points([f"{p.label}, {study.labels[p.arm]}: {p.value:{study.form}} ({p.source})" for p in published])
        )
    if len(study.budgets) > 1:
        blocks += [Heading(f"Difference to {study.base} at each budget"), _point_table(study)]
    if "curves" in drawn:
        blocks += [Heading("Learning curves"), Figure(drawn["curves"], "curves.svg", captions["curves"])]
    blocks += [Heading("Every run"), Text(_cells_text(study)), _seed_table(study)]
    if lost := [c for c in study.cells if c.note]:
        blocks.append(
            Points(
                [f"{study.labels[c.arm]} at {share_text(c.budget)}, seed {c.seed}: {c.state}: {c.note}" for c in lost]
            )
        )
    blocks += [Heading("What differs between the arms"), *_changes(study)]
    blocks += [Heading("How the numbers come about"), Points(_method(study))]
    return blocks + [Heading("Reproduce"), *_provenance(study)]


def _figures(study: Study) -> dict[str, Any]:
    found = {}
    done = any(cell.value is not None for cell in study.cells)
    if len(study.budgets) > 1 and done:
        found["efficiency"] = figures.efficiency(study)
    if study.published_shares:
        found["needed"] = figures.needed(study)
    if any(any(runs.values()) for runs in study.curves.values()):
        found["curves"] = figures.curves(study)
    return found


def _facts(study: Study) -> str:
    setting = {
        "additive": "additive: a budget is the main stage's, the warm-up comes on top",
        "substitutive": "substitutive: a budget is the total, the warm-up is paid from it",
    }[study.setting]
    points = {
        "scheduled": "each budget is a run with its own schedule",
        "branched": "budgets below the full one are branched: cooldowns of one long run",
        "crossing": "only full-length runs, read off along the way",
    }[study.points_are]
    done = sum(cell.state == DONE for cell in study.cells)
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''} ({', '.join(map(str, study.seeds))})"
    text = f"Setting {setting}; counted in {study.counted}. {points.capitalize()}. {seeds}; "
    text += f"{done} of {len(study.cells)} runs are done."
    return f"{study.description.rstrip('.')}. {text}" if study.description else text


def _efficiency_caption(study: Study) -> str:
    drawn = "branches of one trunk a seed" if study.points_are == "branched" else "runs scheduled for their budget"
    return (
        f"Above: final {study.label} of {drawn}; small dots are seeds, set apart sideways, bars 95 % t intervals of "
        f"the mean. Below: the budget at which an arm is as good as {study.base} with all (dashed), with its 95 "
        "% interval; an arrow is an open end. Hollow rings: read off one long run."
    ) + _black(study)


def _needed_caption(study: Study) -> str:
    scale = "the warm-up included, " if study.setting == "substitutive" else ""
    return (
        f"{study.data.capitalize()} needed, {scale}to be as good as the default with all of them, over the size of the "
        "warm-up. Filled: from runs that end there. Coloured rings: read off one long run. Black: published by others, "
        "in their recipes, without an interval."
    )


def _curve_caption(study: Study) -> str:
    many = len(study.others) > TOGETHER
    first, second = ("Left", "Right") if many else ("Above", "Below")
    rows = f" A row for each arm; grey, {study.base}." if many else ""
    return (
        f"Full-length runs. {first}: mean over the seeds, bands from the worst to the best; dashed, the final value of "
        f"{study.base}. {second}: paired differences to {study.base}, likewise, of arms that are evaluated where it "
        f"is. The first tenth may lie outside.{rows}"
    ) + _black(study)


def _black(study: Study) -> str:
    shape = " Black, hollow, in the shape of the arm: published by others, in their recipes, without an interval."
    return shape if study.published_values else ""


def _needed_table(study: Study) -> Table:
    total = study.setting == "substitutive"
    heads = [
        "arm",
        "warm-up",
        f"{study.data} needed [95 %]",
        "saved",
        "saved, less the warm-up",
        "read off one long run",
    ]
    rows = []
    for arm in study.others:
        # where the total is the budget, the warm-up is in it already
        costs = (-(arm.warmup or 0.0), 0.0) if total else (0.0, arm.warmup or 0.0)
        saved = [saved_text(arm, cost) for cost in costs]
        rows.append([arm.label, share_text(arm.warmup), needed_text(arm), *saved, crossing_text(arm)])
    own = study.arms[0]
    return Table(heads, [*rows, [own.label, share_text(own.warmup), "all, by definition", "", "", crossing_text(own)]])


def _detail_table(study: Study) -> Table:
    rows = []
    for arm in study.others:
        found = arm.equivalence
        between = " to ".join(share_text(b) for b in found.between) if found.between else ""
        pairs = ", ".join(f"{n}" for n in found.pairs)
        rows.append([arm.label, between, pairs, bootstrap_text(arm)])
    heads = ["arm", "interpolated between", f"seeds at {', '.join(share_text(b) for b in study.budgets)}"]
    return Table([*heads, "bootstrap of the seeds, 95 %"], rows)


def _arm_table(study: Study) -> Table:
    heads = ["arm", study.label, f"difference [95 %], {study.unit}", "bootstrap", "p", "p (Holm)", "detectable"]
    heads += ["FLOPs", "device time"]
    base, rows = study.arms[0], []
    for arm in study.arms:
        boot = (
            ""
            if arm.bootstrap[0] is None
            else f"[{arm.bootstrap[0]:{study.signed}}, {arm.bootstrap[1]:{study.signed}}]"
        )
        p = ["" if x is None else f"{x:.2g}" for x in (arm.p, arm.p_holm)]
        mean = (
            ""
            if arm.mean.value is None
            else f"{arm.mean.value:{study.form}}" + (f" ± {arm.sd:{study.form}}" if arm.sd is not None else "")
        )
        least = "" if arm.detectable is None else f"{arm.detectable:{study.form}}"
        cost = [_times(arm.flops, base.flops), _hours(arm.device_seconds)]
        rows.append([arm.label, mean, mean_text(arm.difference, study.signed), boot, *p, least, *cost])
    return Table(heads, rows)


def _point_table(study: Study) -> Table:
    rows = []
    for arm in study.others:
        points = [p for p in study.points if p.arm == arm.name]
        texts = [mean_text(p.difference, study.signed) + _short(p.pairs, study) for p in points]
        rows.append([arm.label, *texts])
    return Table(["arm", *(share_text(b) for b in study.budgets)], rows)


def _short(pairs: int, study: Study) -> str:
    return "" if pairs == len(study.seeds) else f" ({pairs} of {len(study.seeds)} seeds)"


def _cells_text(study: Study) -> str:
    marked = Counter(cell.state for cell in study.cells if cell.state != DONE)
    text = f"Final {study.label}, seeds {', '.join(map(str, study.seeds))} in order."
    return text + (" A run without a usable result is marked with its state." if marked else "")


def _seed_table(study: Study) -> Table:
    def text(arm: ArmRow, budget: float) -> str:
        cells = [c for c in study.cells if c.arm == arm.name and c.budget == budget]
        return " · ".join(c.state if c.value is None else f"{c.value:{study.form}}" for c in cells)

    rows = [[arm.label, *(text(arm, b) for b in study.budgets)] for arm in study.arms]
    return Table(["arm", *(share_text(b) for b in study.budgets)], rows)


def _changes(study: Study) -> list[Any]:
    blocks: list[Any] = []
    for arm in study.others:
        rows = [[key, _value(theirs), _value(ours)] for key, theirs, ours in arm.changes]
        title = f"{arm.label} ({Path(arm.recipe).stem}) against {study.base}: {len(rows)} key{'s'[: len(rows) != 1]}"
        blocks.append(Folded(title, [Table(["key", study.base, arm.label], rows, names=3)]))
    return blocks


def _method(study: Study) -> list[str]:
    worth = f"the final value of {study.base} with its full budget"
    found = [
        "Seeds are paired: a difference is taken between runs of the same root seed, which see the same samples in "
        "the same order. Intervals are 95 % Student t intervals of paired differences.",
    ]
    if len(study.budgets) > 1:
        n = max((max(arm.equivalence.pairs, default=0) for arm in study.others), default=0)
        ceiling = (
            f"with {n} seeds it can cover at most {share_text(bootstrap_ceiling(n))}" if n > 1 else "it needs seeds"
        )
        found += [
            "Data needed: where an arm's mean over budgets, made monotone and linear in the logarithm of the "
            f"budget, reaches {worth}. Its interval holds every budget at which the paired t test does not tell the "
            "two apart; an end that no budget of the plan rules out is open. A chord of a concave curve lies below "
            "it, so savings are rather understated.",
            f"The bootstrap of seeds stands beside it for comparison: {ceiling}, whatever its nominal level.",
        ]
    found += [
        f"Read off one long run: the first evaluation of a full-length run at which it passes {worth}, as papers "
        "often do. The learning rate has not come down there, evaluations scatter, and the earliest lucky one "
        f"counts; the same reading of {study.base} itself, in the table, shows how much of it is luck.",
        "Detectable: the true difference that a paired t test of these seeds finds four times in five, if the "
        "scatter between seeds is as estimated here; from three seeds that estimate is rough.",
    ]
    return found


def _provenance(study: Study) -> list[Any]:
    blocks: list[Any] = [Code(study.command)] if study.command else []
    versions = ", ".join(f"{name} {' / '.join(known)}" for name, known in study.versions.items())
    blocks.append(
        Text(f"Devices: {'; '.join(study.devices) or 'none yet'}. Versions: {versions or 'none yet'}.", "small")
    )
    rows = [
        [
            c.arm,
            share_text(c.budget),
            str(c.seed),
            c.hash,
            c.state,
            _number(c.samples),
            _hours(c.device_seconds),
            c.folder,
        ]
        for c in study.cells
    ]
    heads = ["arm", "budget", "seed", "recipe hash", "state", "samples", "device time", "folder"]
    blocks.append(
        Folded(f"Recipe hashes and folders of {len(rows)} runs", [Table(heads, rows, names=8), Text(_RESUMED, "small")])
    )
    lines = [f"vitwarm train {shlex.join(c.arguments)}" for c in study.cells if c.seed == study.seeds[0]]
    return [*blocks, Folded(f"The recipe of each cell, seed {study.seeds[0]}", [Code("\n".join(lines))])]


def _csv(cells: list[CellRow]) -> str:
    out = io.StringIO()
    names = [f.name for f in fields(CellRow)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for cell in cells:
        row = {name: getattr(cell, name) for name in names} | {"arguments": shlex.join(cell.arguments)}
        writer.writerow(["" if row[name] is None else row[name] for name in names])
    return out.getvalue()


def _value(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _times(value: float | None, base: float | None) -> str:
    return "" if not value or not base else f"{value:.3g} ({value / base:.2f} ×)"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36000
        else f"{seconds / 3600:.1f} h"
    )
