"""python tools/redraw.py: draw every figure of docs/results again, from the numbers beside it; nothing is trained."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitwarm.budget import compare
from vitwarm.budget.efficiency import read_study
from vitwarm.budget.report import write_report
from vitwarm.budget.style import BASELINE, colour_of, style
from vitwarm.lab.grid import Place
from vitwarm.lab.outcomes import Findings, Outcome, Row
from vitwarm.lab.plan import find_lab, read_lab
from vitwarm.lab.report import write_report as write_findings
from vitwarm.plotting import load_matplotlib, new_figure, save_figure

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"


def redraw() -> None:
    """Draw the figures and write the reports of the studies; what no page links to goes."""
    for study in sorted(RESULTS.rglob("study.json")):
        write_report(read_study(study), study.parent)
    write_findings(_findings(_read("lab/lab")), RESULTS / "lab")
    for name in ("digits", "cifar10_narrow", "starts_cifar10", "starts_imagenette", "starts_dyck"):
        content = _read(name)
        rows = _rows(compare.ComparedArm, content["rows"])
        labels = {row["arm"]: row.get("label", row["arm"]) for row in content["rows"]}
        curves = {labels[arm]: seeds for arm, seeds in content["curves"].items()}
        compare.plot(rows, curves, "images", RESULTS / f"{name}.png")
    compare.plot_differences(_rows(compare.ComparedArm, _read("arms")["arms"]), RESULTS / "arms.png")
    _warmup_curve(_read("warmup_curve"), RESULTS / "warmup_curve.png")
    for kind in ("png", "svg", "html"):
        for file in sorted(RESULTS.rglob(f"*.{kind}")):
            if file not in _linked():
                file.unlink()


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _rows(kind: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """Rows of a table under the names that figures show; what an older version did not write, no figure needs."""
    names = [field.name for field in fields(kind)]
    known = ({name: row.get(name) for name in names} | {"arm": row.get("label", row["arm"])} for row in rows)
    return [kind(**row | {"metric": row["metric"] or "top1"}) for row in known]


def _findings(content: dict[str, Any]) -> Findings:
    """What a report of the laboratory shows, from its numbers."""
    rows = []
    for row in content.pop("rows"):
        place = Place(**row.pop("place"))
        rows.append(Row(place, [Outcome(place, **outcome) for outcome in row.pop("outcomes")], **row))
    return Findings(read_lab(find_lab(content.pop("plan"))), rows, **content)


def _linked() -> set[Path]:
    """Files that a page of the documentation links to or shows."""
    pages = RESULTS.parent.rglob("*.md")
    return {
        (page.parent / to).resolve()
        for page in pages
        for to in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    }


def _warmup_curve(curves: dict[str, Any], path: Path) -> None:
    """Left: nats per masked token over the steps, and those of a uniform guess. Right: masked tokens predicted."""
    with load_matplotlib().rc_context(style()):
        figure = new_figure(figsize=(4.8, 4.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        for i, (name, mark) in enumerate((("training", "-"), ("validation", "o"))):
            steps, _, loss, right = zip(*curves[name], strict=True)
            look = {"color": colour_of(i + 1), "markersize": 4, "label": name, "clip_on": False}
            above.plot(steps, loss, mark, **look)
            below.plot(steps, [100 * share for share in right], mark, **look)
        for value in (130, 64):
            above.axhline(math.log(value), color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            above.text(400, math.log(value) + 0.06, f"ln {value}", ha="right", va="bottom", color=BASELINE)
        above.set(ylabel="nats per masked token", ylim=(0, 5.4))
        below.set(xlabel="step", ylabel="masked tokens predicted, %", ylim=(0, 100), xlim=(0, 400))
        above.legend(loc="lower left", frameon=False)
    save_figure(figure, path, dpi=160)


if __name__ == "__main__":
    redraw()
