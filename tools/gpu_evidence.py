"""Short records of what tools/gpu_evidence.sh has measured, and the page that is made from them.

python tools/gpu_evidence.py page OUT                      OUT/page.md, from the records in OUT alone
python tools/gpu_evidence.py run RUN RECORD -- COMMAND     of a run folder, finished or not
python tools/gpu_evidence.py compare RUNS RECORD -- COMMAND  of a folder of runs, and the table of `vitwarm compare`
python tools/gpu_evidence.py study|lab NUMBERS RECORD      of a budget study, of the laboratory
python tools/gpu_evidence.py rates PLAN NEW [--single]     each arm of a budget plan at several learning rates
python tools/gpu_evidence.py chosen PLAN STUDY NEW         each arm at the best of them
"""

import json
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench.lm import markdown as lm_markdown
from bench.train import markdown as train_markdown

from vitwarm.budget.efficiency import read_study
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.reading import dump_yaml, read_json, read_json_lines, read_yaml
from vitwarm.result import device_name, versions

RATES, RATE_SEED = (5e-4, 1e-3, 2e-3), 100  # learning rates that are tried, on a seed that is not compared
MODELS = ("tiny", "small", "base")
PARTS = {  # in order of worth: what a part is called, and its records
    "cifar10": ("ViT-T/4 on CIFAR-10", ("cifar10",)),
    "core": ("The compact core", ("core",)),
    "text": ("Warm-ups of 0.3 % before text", ("text_rates", "text")),
    "speed": ("Speed of ViTs at 224 pixels", tuple(f"speed_{model}" for model in MODELS)),
    "lab": ("The laboratory of tiny decoders", ("lab",)),
    "gpt2": ("Speed of GPT-2 124M", ("gpt2",)),
    "data": ("Waiting for data", ("data_images", "data_images_256")),
}


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
            for entry in evaluations[:: -(-len(evaluations) // 20) or 1]
        ],
    }


def of_compare(folder: Path, command: list[str]) -> dict[str, Any]:
    """The table of `vitwarm compare` in a folder of runs, and what these were run on and with."""
    results = [read_json(file) for file in sorted(folder.glob("*-seed*/result.json"))]
    return {
        "command": shlex.join(command),
        "device": "; ".join(sorted({result["device"] for result in results})),
        "versions": results[0]["versions"],
        "arms": read_json(folder / "compare" / "compare.json")["rows"],
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
        f"{name}_{i}": arm | {"label": f"{arm['label']}, {rate:g}", "set": arm.get("set", {}) | {"train.lr": rate}}
        for name, arm in plan["arms"].items()
        for i, rate in enumerate(rates)
    }
    return plan | {"arms": arms, "baseline": next(iter(arms)), "seeds": [RATE_SEED]}


def chosen(plan: dict[str, Any], study: Path) -> dict[str, Any]:
    """The plan with each arm at the rate of its lowest loss in the study of `with_rates`.

    Raises:
        UserError: an arm has no finished run there.
    """
    found = read_study(study)
    arms = {}
    for name, arm in plan["arms"].items():
        tried = [a for a in found.arms if a.name.rpartition("_")[0] == name and a.mean.value is not None]
        if not tried:
            raise UserError(f"{study}: no rate of {name} has a finished run; run the part again")
        best = min(tried, key=lambda a: a.mean.value or 0.0)
        arms[name] = arm | {"set": arm.get("set", {}) | {"train.lr": best.settings["train.lr"]}}
    return plan | {"arms": arms}


def page(folder: Path) -> str:
    """The page: what is missing first, then part by part what was measured, with its command, device and versions."""
    sections, missing = [], []
    for part, (title, names) in PARTS.items():
        lines = []
        for name in names:
            if (folder / f"{name}.json").is_file():
                record = read_json(folder / f"{name}.json")
                lines += [*_SHOW[part](record), "", *_origin(record, part), ""]
                if lack := _lack(record):
                    missing.append(f"- {title}: {lack}: `bash tools/gpu_evidence.sh OUT {part}`")
            else:
                missing.append(f"- {title}: `{name}.json` is missing: `bash tools/gpu_evidence.sh OUT {part}`")
        sections += [f"## {title}", "", *(lines or ["Not measured.", ""])]
    head = ["# Measured on a GPU", ""]
    head += ["Missing:", "", *missing, ""] if missing else ["Every part has been measured.", ""]
    return "\n".join([*head, *sections]).rstrip() + "\n"


def _lack(record: dict[str, Any]) -> str:
    if record.get("cells", 0) > record.get("done", 0):
        return f"{record['done']} of {record['cells']} runs are finished"
    seeds = {len(arm["per_seed"]) for arm in record.get("arms", []) if "per_seed" in arm}
    return "arms with one seed have no interval" if seeds and min(seeds) < 2 else ""


def _origin(record: dict[str, Any], part: str) -> list[str]:
    command = record.get("command")
    if command is None:  # of a benchmark: its options are the command
        options = {name: str(v).lower() if isinstance(v, bool) else v for name, v in record["options"].items()}
        words = [f"{name}={value}" for name, value in options.items()]
        named = "lm" if part == "gpt2" else "train"
        command = shlex.join(["python", "tools/benchmark.py", named, *words])
        command += " --nanogpt FOLDER" * ("nanogpt" in record["arms"])
    used = record["versions"]
    shown = used if isinstance(used, str) else ", ".join(f"{name} {number}" for name, number in used.items())
    return [f"    {command}", "", f"Device: {record['device']}. Versions: {shown}."]


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def _interval(value: float | None, low: float | None, high: float | None, form: str = "+.2f") -> str:
    if value is None:
        return ""
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _compare(record: dict[str, Any]) -> list[str]:
    rows = [
        [
            arm["arm"],
            str(len(arm["per_seed"])),
            _number(arm["mean"]),
            _number(arm["sd"]),
            _interval(arm["difference"], arm["low"], arm["high"]),
            _number(arm["holm"], ".3f"),
            _number(arm["device_seconds"], ".0f"),
        ]
        for arm in record["arms"]
    ]
    head = ["arm", "seeds", "top-1, %", "sd", "difference, points [95 %]", "Holm's p", "device-seconds a run"]
    return _table(head, rows)


def _study(record: dict[str, Any]) -> list[str]:
    rows = []
    for arm in record["arms"]:
        share = {key: value and 100 * value for key, value in arm["share"].items() if key != "shares"}
        rows.append(
            [
                arm["label"],
                f"{arm['set'].get('train.lr', '')}",
                str(arm["seeds"]),
                _number(arm["mean"]["value"], ".4f"),
                _interval(*(arm["difference"][key] for key in ("value", "low", "high")), "+.4f"),
                _number(arm["holm"], ".3f"),
                _interval(share["mean"], share["low"], share["high"], ".1f"),
            ]
        )
    head = ["arm", "learning rate", "seeds", record["label"], f"difference, {record['unit']} [95 %]", "Holm's p"]
    return _table([*head, "% of the text that gives the control's final value"], rows)


def _run(record: dict[str, Any]) -> list[str]:
    speed, last = record["speed"], (record["evaluations"] or [{}])[-1]
    rows = [["steps", f"{record['steps']:,}" + ("" if record["finished"] else ", then stopped")]]
    for stage, cost in record["stages"].items():
        told = f"{cost['samples']:,.0f} samples, {cost['tokens']:,.0f} tokens, {cost['seconds']:,.0f} s"
        rows.append([f"stage {stage}", told])
    rows += [[name, f"{value:,.4g}"] for name, value in speed.items()]
    rows += [[f"last evaluation, {key}", f"{value:,.4g}"] for key, value in last.items() if value is not None]
    return _table(["measured", "value"], rows)


def _lab(record: dict[str, Any]) -> list[str]:
    rows = [
        [
            *(row[name] for name in ("task", "setting", "warmup", "part")),
            str(len(row["values"])),
            _number(statistics.mean(row["values"]), ".1f"),
            _interval(row["difference"], row["low"], row["high"], "+.1f"),
            _number((row["published"] or [None])[0], ".1f"),
        ]
        for row in record["rows"]
    ]
    head = ["task", "setting", "warm-up", "part", "seeds", "accuracy, %", "difference [95 %]", "published"]
    return [*_table(head, rows), "", *(f"- {text}" for text in record["failed"])]


_SHOW: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "cifar10": _compare,
    "core": _run,
    "text": _study,
    "speed": lambda record: train_markdown(record).splitlines(),
    "lab": _lab,
    "gpt2": lambda record: lm_markdown(record).splitlines(),
    "data": _run,
}


def main(words: list[str]) -> int:
    """The command; the exit code is 0, or 2 for a user's mistake."""
    try:
        match words:
            case ["page", folder]:
                write_text(Path(folder) / "page.md", page(Path(folder)))
                print(f"written: {Path(folder) / 'page.md'}")
            case ["run" | "compare" as kind, folder, record, "--", *command] if command:
                _write(record, {"run": of_run, "compare": of_compare}[kind](Path(folder), command))
            case ["study" | "lab" as kind, source, record]:
                _write(record, {"study": of_study, "lab": of_lab}[kind](Path(source)))
            case ["rates", plan, new, *single] if single in ([], ["--single"]):
                rates = RATES[:1] if single else RATES
                write_text(Path(new), dump_yaml(with_rates(read_yaml(Path(plan)), rates)))
            case ["chosen", plan, study, new]:
                write_text(Path(new), dump_yaml(chosen(read_yaml(Path(plan)), Path(study))))
            case _:
                raise UserError(f"not understood: {shlex.join(words)}; python tools/gpu_evidence.py page OUT")
    except UserError as error:
        print(f"vitwarm: error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(file: str, record: dict[str, Any]) -> None:
    write_text(Path(file), json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
