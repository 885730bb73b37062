"""Short records of what tools/gpu_evidence.sh has measured, of which `vitwarm evidence` makes a page; and its plans.

python tools/gpu_evidence.py run RUN RECORD -- COMMAND     of a run folder, finished or not
python tools/gpu_evidence.py compare RUNS RECORD ARM ... -- COMMAND
                                                           of a folder of runs with the table of `vitwarm compare`;
                                                           the arms are those that it is to have in the end
python tools/gpu_evidence.py study|lab NUMBERS RECORD      of a budget study, of the laboratory
python tools/gpu_evidence.py rates PLAN NEW [--single]     each arm of a budget plan at several learning rates
python tools/gpu_evidence.py chosen PLAN STUDY NEW         each arm at the best of them
"""

import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from vitwarm.budget.efficiency import read_study
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.reading import dump_yaml, read_json, read_json_lines, read_yaml
from vitwarm.result import device_name, versions

RATES, RATE_SEED = (5e-4, 1e-3, 2e-3), 100  # learning rates that are tried, on a seed that is not compared


def of_run(folder: Path, command: list[str]) -> dict[str, Any]:
    """What a run has reached: its speed, medians of its log lines without the first two, and its evaluations."""
    log, result = read_json_lines(folder / "log.jsonl"), {}
    if (folder / "result.json").is_file():
        result = read_json(folder / "result.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [entry for entry in log if entry["event"] == "train"]
    if not lines:
        raise UserError(f"{folder} has no step in its log yet")
    lines = lines[2:] or lines
    names = ("samples_per_s", "tokens_per_s", "step_ms_p50", "data_wait_pct", "tflops", "mfu_pct")
    found = {name: [line[name] for line in lines if line.get(name) is not None] for name in names}
    evaluations = [entry for entry in log if entry["event"] == "eval"]
    stride = -(-len(evaluations) // 20) or 1  # counted from the last one, which is the result
    return {
        "command": shlex.join(command),
        "finished": bool(result),
        "device": result.get("device") or device_name(device),
        "versions": result.get("versions") or versions(),
        "steps": lines[-1]["step"],
        "speed": {name: statistics.median(values) for name, values in found.items() if values},
        "stages": result.get("stages", {}),
        "evaluations": [
            {name: entry.get(name) for name in ("step", "loss", "accuracy", "top1")}
            for entry in evaluations[::-stride][::-1]
        ],
    }


def of_compare(folder: Path, arms: list[str], command: list[str]) -> dict[str, Any]:
    """The table of `vitwarm compare` in a folder of runs, what these were run on and with, and the arms it lacks."""
    results = [read_json(file) for file in sorted(folder.glob("*-seed*/result.json"))]
    if not results:
        raise UserError(f"{folder} has no finished run yet; run the part again")
    rows = read_json(folder / "compare" / "compare.json")["rows"]
    return {
        "command": shlex.join(command),
        "device": "; ".join(sorted({result["device"] for result in results})),
        "versions": results[0]["versions"],
        "arms": rows,
        "missing": [arm for arm in arms if arm not in {row["arm"] for row in rows}],
    }


def of_study(file: Path) -> dict[str, Any]:
    """The arms of a budget study at its full budget."""
    study = read_study(file)
    return {
        "command": study.command,
        "device": "; ".join(study.devices),
        "versions": {name: " and ".join(found) for name, found in study.versions.items()},
        "label": study.label,
        "unit": study.unit,
        "seeds": list(study.seeds),
        "done": sum(cell.state == "done" for cell in study.cells),
        "cells": len(study.cells),
        "arms": [
            {
                "label": arm.label,
                "set": arm.settings,
                "seeds": sum(c.state == "done" and c.arm == arm.name for c in study.cells),
                "mean": vars(arm.mean),
                "difference": vars(arm.difference),
                "holm": arm.p_holm,
                "share": vars(arm.crossing),
                "device_seconds": arm.device_seconds,
            }
            for arm in study.arms
        ],
        "warnings": study.warnings,
    }


def of_lab(file: Path) -> dict[str, Any]:
    """The rows of the laboratory that have a value."""
    lab = read_json(file)
    if "rows" not in lab:
        raise UserError(f"{file} is no lab.json")
    rows = [row for row in lab["rows"] if any(o["value"] is not None for o in row["outcomes"])]
    return {name: lab[name] for name in ("command", "done", "cells", "failed")} | {
        "device": "; ".join(lab["devices"]),
        "versions": "; ".join(lab["versions"]),
        "rows": [
            row["place"]
            | {"values": [round(o["value"], 2) for o in row["outcomes"] if o["value"] is not None]}
            | {name: row[name] for name in ("difference", "low", "high", "published")}
            for row in rows
        ],
    }


def with_rates(plan: dict[str, Any], rates: tuple[float, ...]) -> dict[str, Any]:
    """A plan with each arm at each of the rates, under a seed of its own."""
    arms = {
        f"{name}_{i}": arm
        | {"label": f"{arm.get('label') or name}, {rate:g}", "set": arm.get("set", {}) | {"train.lr": rate}}
        for name, arm in plan["arms"].items()
        for i, rate in enumerate(rates)
    }
    return plan | {"arms": arms, "baseline": next(iter(arms)), "seeds": [RATE_SEED]}


def chosen(plan: dict[str, Any], study: Path) -> dict[str, Any]:
    """The plan with each arm at the rate of its best value in the study of `with_rates`.

    Raises:
        UserError: an arm has no finished run there.
    """
    found = read_study(study)
    arms = {}
    for name, arm in plan["arms"].items():
        tried = [a for a in found.arms if a.name.rpartition("_")[0] == name and a.mean.value is not None]
        if not tried:
            raise UserError(f"{study}: no rate of {name} has a finished run; run the part again")
        best = (max if found.higher else min)(tried, key=lambda a: a.mean.value or 0.0)
        arms[name] = arm | {"set": arm.get("set", {}) | {"train.lr": best.settings["train.lr"]}}
    return plan | {"arms": arms}


def main(words: list[str]) -> int:
    """The command; the exit code is 0, or 2 for a user's mistake."""
    try:
        match words:
            case ["run", folder, record, "--", *command] if command:
                _write(record, of_run(Path(folder), command))
            case ["compare", folder, record, *more] if "--" in more[:-1]:
                split = more.index("--")
                _write(record, of_compare(Path(folder), more[:split], more[split + 1 :]))
            case ["study" | "lab" as kind, source, record]:
                _write(record, {"study": of_study, "lab": of_lab}[kind](Path(source)))
            case ["rates", plan, new, *single] if single in ([], ["--single"]):
                rates = RATES[:1] if single else RATES
                write_text(Path(new), dump_yaml(with_rates(read_yaml(Path(plan)), rates)))
            case ["chosen", plan, study, new]:
                write_text(Path(new), dump_yaml(chosen(read_yaml(Path(plan)), Path(study))))
            case _:
                raise UserError(f"not understood: {shlex.join(words)}; see tools/gpu_evidence.sh")
    except UserError as error:
        print(f"vitwarm: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(file: str, record: dict[str, Any]) -> None:
    write_text(Path(file), json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
