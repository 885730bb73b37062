"""Arms against a baseline over the same seeds: table, paired differences with intervals, learning curves."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitwarm.budget.runs import Run
from vitwarm.budget.statistics import paired_interval
from vitwarm.checks import differences
from vitwarm.errors import UserError

STAGE, METRIC = "images", "top1"
CURVES = (("warmup", "accuracy"), (STAGE, METRIC))
# What arms of one comparison may differ in: how the trunk starts. Everything else must be the same recipe.
ARM_KEYS = ("seed", "name", "description", "init_from", "resume_from", "model.init", "warmup", "transfer", "run")


@dataclass(frozen=True)
class ArmRow:
    """One line of the table; accuracies in per cent, differences in points against the baseline, same seeds.

    Attributes:
        per_seed: final accuracy by seed.
        mean, sd: over seeds; sd is the sample standard deviation, None for one seed.
        difference: paired mean difference to the baseline; None for the baseline itself.
        low, high: its 95 % t interval; None for one seed.
        flops: mean training FLOPs of a run, all stages.
        warmup_share: samples of the warm-up as a share of image presentations.
    """

    arm: str
    per_seed: dict[int, float]
    mean: float
    sd: float | None
    difference: float | None
    low: float | None
    high: float | None
    flops: float
    warmup_share: float


def check_comparable(arms: dict[str, list[Run]]) -> None:
    """Refuse arms that differ in anything but how the trunk starts, or whose seeds do not pair.

    Raises:
        UserError: with the key that differs.
    """
    if len(arms) < 2:
        raise UserError("a comparison needs at least two arms: baseline=GLOB other=GLOB")
    first_arm, first_runs = next(iter(arms.items()))
    seeds = [r.config.seed for r in first_runs]
    for arm, runs in arms.items():
        if [r.config.seed for r in runs] != seeds:
            raise UserError(
                f"arms {first_arm} and {arm} have different seeds ({seeds}, {[r.config.seed for r in runs]}); "
                "a paired comparison needs the same ones"
            )
        for run in runs:
            if STAGE not in run.result["stages"]:
                raise UserError(f"{run.folder} trained on no images; nothing to compare")
            for key, (theirs, value) in differences(first_runs[0].config, run.config, ARM_KEYS).items():
                raise UserError(
                    f"{run.folder} differs from {first_runs[0].folder} in {key} ({value!r} against {theirs!r}); "
                    "arms may differ only in how the trunk starts"
                )


def compare(arms: dict[str, list[Run]]) -> list[ArmRow]:
    """The table, baseline (the first arm) first.

    Raises:
        UserError: the arms cannot be compared.
    """
    check_comparable(arms)
    baseline = np.array([100 * r.result["metrics"][METRIC] for r in next(iter(arms.values()))])
    rows = []
    for i, (arm, runs) in enumerate(arms.items()):
        values = np.array([100 * r.result["metrics"][METRIC] for r in runs])
        low, high = paired_interval(values - baseline)
        rows.append(
            ArmRow(
                arm=arm,
                per_seed={r.config.seed: float(v) for r, v in zip(runs, values, strict=True)},
                mean=float(values.mean()),
                sd=float(values.std(ddof=1)) if len(values) > 1 else None,
                difference=float((values - baseline).mean()) if i else None,
                low=low if i else None,
                high=high if i else None,
                flops=float(np.mean([r.flops for r in runs])),
                warmup_share=float(np.mean([r.result.get("warmup_share_of_samples", 0.0) for r in runs])),
            )
        )
    return rows


def markdown(rows: list[ArmRow], arms: dict[str, list[Run]]) -> str:
    """The table with what a reader needs to trust it."""
    seeds = ", ".join(str(s) for s in rows[0].per_seed)
    lines = [
        f"Final top-1 accuracy in per cent on {arms[rows[0].arm][0].result['metrics']['count']:.0f} images; "
        f"seeds {seeds}; differences are paired by seed, with 95 % t intervals.",
        "",
        "| arm | accuracy, mean ± sd | by seed | difference [95 %] | warm-up / image samples | FLOPs / baseline's |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        mean = f"{r.mean:.2f}" + ("" if r.sd is None else f" ± {r.sd:.2f}")
        values = ", ".join(f"{v:.2f}" for v in r.per_seed.values())
        difference = "" if r.difference is None else f"{r.difference:+.2f}"
        if r.low is not None and r.difference is not None:
            difference += f" [{r.low:+.2f}, {r.high:+.2f}]"
        share, cost = f"{100 * r.warmup_share:.3g} %", f"{r.flops / rows[0].flops:.2f}"
        lines.append(f"| {r.arm} | {mean} | {values} | {difference} | {share} | {cost} |")
    lines.append("")
    lines += [f"{r.arm}: {_verdict(r, rows[0].arm)}" for r in rows[1:]]
    lines += ["", "| arm | recipe | hashes |", "|---|---|---|"]
    for arm, runs in arms.items():
        lines.append(f"| {arm} | {runs[0].config.name} | {', '.join(r.hash for r in runs)} |")
    return "\n".join(lines) + "\n"


def _verdict(row: ArmRow, baseline: str) -> str:
    if row.low is None:
        return "one seed has no interval and decides nothing."
    if row.low > 0 or row.high < 0:
        return f"the interval excludes zero; these seeds show a difference to {baseline}."
    return f"the interval includes zero; these seeds do not show a difference to {baseline}."


def plot(arms: dict[str, list[Run]], path: Path) -> None:
    """Validation accuracy over samples seen, of the images and of the warm-up where there is one.

    Thick lines are means over the seeds, thin ones the seeds.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the picture needs matplotlib: pip install 'vitwarm[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(STAGE, METRIC, "images seen", "top-1 accuracy on the validation images, %")]
    if any("warmup" in runs[0].result["stages"] for runs in arms.values()):
        asked = "warm-up: masked tokens restored, %"
        panels.insert(0, ("warmup", "accuracy", "sequences seen", asked))
    size = (5.2 * len(panels) + 1, 4.2)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for (stage, metric, x, y), ax in zip(panels, axes[0], strict=True):
        for i, (arm, runs) in enumerate(arms.items()):
            curves = [np.array(r.curve(stage, metric)) for r in runs if stage in r.result["stages"]]
            for curve in curves:
                ax.plot(curve[:, 0], 100 * curve[:, 1], color=f"C{i}", alpha=0.35, linewidth=0.8)
            if curves and len({len(c) for c in curves}) == 1:
                mean = np.mean(curves, axis=0)
                label = f"{arm}, {len(curves)} seed" + ("s" if len(curves) > 1 else "")
                ax.plot(mean[:, 0], 100 * mean[:, 1], f"C{i}.-", linewidth=2, label=label)
        ax.set(xlabel=x, ylabel=y)
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def report(arms: dict[str, list[Run]], folder: Path) -> str:
    """Write compare.md, compare.json and compare.png into a folder; returns the Markdown."""
    rows = compare(arms)
    text = markdown(rows, arms)
    folder.mkdir(parents=True, exist_ok=True)
    curves = {
        arm: {r.config.seed: {stage: r.curve(stage, metric) for stage, metric in CURVES} for r in runs}
        for arm, runs in arms.items()
    }
    content = {"rows": [asdict(r) for r in rows], "curves": curves, "versions": arms[rows[0].arm][0].result["versions"]}
    (folder / "compare.md").write_text(text)
    (folder / "compare.json").write_text(json.dumps(content, indent=1) + "\n")
    plot(arms, folder / "compare.png")
    return text
