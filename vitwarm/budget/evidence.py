"""The page of what tools/gpu_evidence.sh has measured, from its records alone: JSON files of a few kilobytes."""

import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitwarm.budget.efficiency import Mean
from vitwarm.budget.page import Block, Code, Heading, Points, Table, Text
from vitwarm.budget.page_folder import write_page
from vitwarm.budget.speed import decoder_speed, vit_speed
from vitwarm.budget.wording import mean_text
from vitwarm.errors import UserError
from vitwarm.reading import read_json

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


def write_evidence(folder: Path) -> list[Path]:
    """Write report.html and report.md beside the records.

    Args:
        folder: of the records, such as cifar10.json; any of them may be missing.

    Returns:
        The files, report.html first.

    Raises:
        UserError: a record is damaged, or the folder holds none of them.
    """
    if not any((folder / f"{name}.json").is_file() for _, names in PARTS.values() for name in names):
        raise UserError(f"{folder} holds no record; give the folder that tools/gpu_evidence.sh has written to")
    blocks = page(folder)
    return write_page(folder, "Measured on a GPU", lambda _: blocks, {}, {})


def page(folder: Path) -> list[Block]:
    """What is missing first, then part by part what was measured, with its command, device and versions."""
    sections: list[Block] = []
    missing = []
    for part, (title, names) in PARTS.items():
        measured: list[Block] = []
        for name in names:
            if (folder / f"{name}.json").is_file():
                record = read_json(folder / f"{name}.json")
                try:
                    measured += [*_SHOW[part](record), *_origin(record, part)]
                    lack = _lack(record)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{folder / name}.json is no record of tools/gpu_evidence.sh: {error!r}") from error
            else:
                lack = f"{name}.json is missing"
            if lack:
                missing.append(f"{title}: {lack}: bash tools/gpu_evidence.sh OUT {part}")
        sections += [Heading(title), *(measured or [Text("Not measured.")])]
    first: list[Block] = [Points(missing, "warning")] if missing else [Text("Every part has been measured.")]
    return [*first, *sections]


def _lack(record: dict[str, Any]) -> str:
    if record.get("cells", 0) > record.get("done", 0):
        return f"{record['done']} of {record['cells']} runs are finished"
    if missing := record.get("missing"):
        return f"no finished runs of {', '.join(missing)}"
    seeds = {len(arm["per_seed"]) for arm in record.get("arms", []) if "per_seed" in arm}
    return "arms with one seed have no interval" if seeds and min(seeds) < 2 else ""


def _origin(record: dict[str, Any], part: str) -> list[Block]:
    command = record.get("command")
    if command is None:  # of a benchmark: its options are the command
        options = {name: str(v).lower() if isinstance(v, bool) else v for name, v in record["options"].items()}
        named = "lm" if part == "gpt2" else "train"
        command = shlex.join(["python", "tools/benchmark.py", named, *(f"{k}={v}" for k, v in options.items())])
        command += " --nanogpt FOLDER" * ("nanogpt" in record["arms"])
    used = record["versions"]
    shown = used if isinstance(used, str) else ", ".join(f"{name} {number}" for name, number in used.items())
    return [Code(command), Text(f"Device: {record['device']}. Versions: {shown}.", "small")]


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def _compare(record: dict[str, Any]) -> list[Block]:
    rows = [
        [
            arm["arm"],
            str(len(arm["per_seed"])),
            _number(arm["mean"]),
            _number(arm["sd"]),
            mean_text(Mean(arm["difference"], arm["low"], arm["high"]), "+.2f"),
            _number(arm["holm"], ".3f"),
            _number(arm["device_seconds"], ".0f"),
        ]
        for arm in record["arms"]
    ]
    heads = ["arm", "seeds", "top-1, %", "sd", "difference, points [95 %]", "Holm's p", "device-seconds a run"]
    return [Table(heads, rows)]


def _study(record: dict[str, Any]) -> list[Block]:
    rows = []
    for arm in record["arms"]:
        share: list[Any] = [x if x is None else 100 * x for x in (arm["share"][key] for key in ("mean", "low", "high"))]
        rows.append(
            [
                arm["label"],
                f"{arm['set'].get('train.lr', '')}",
                str(arm["seeds"]),
                _number(arm["mean"]["value"], ".4f"),
                mean_text(Mean(**arm["difference"]), "+.4f"),
                _number(arm["holm"], ".3f"),
                mean_text(Mean(*share), ".1f"),
            ]
        )
    heads = ["arm", "learning rate", "seeds", record["label"], f"difference, {record['unit']} [95 %]", "Holm's p"]
    return [Table([*heads, "% of the text that gives the control's final value"], rows)]


def _run(record: dict[str, Any]) -> list[Block]:
    speed, last = record["speed"], (record["evaluations"] or [{}])[-1]
    rows = [["steps", f"{record['steps']:,}" + ("" if record["finished"] else ", then stopped")]]
    for stage, cost in record["stages"].items():
        told = f"{cost['samples']:,.0f} samples, {cost['tokens']:,.0f} tokens, {cost['seconds']:,.0f} s"
        rows.append([f"stage {stage}", told])
    rows += [[name, f"{value:,.4g}"] for name, value in speed.items()]
    rows += [[f"last evaluation, {key}", f"{value:,.4g}"] for key, value in last.items() if value is not None]
    return [Table(["measured", "value"], rows)]


def _lab(record: dict[str, Any]) -> list[Block]:
    rows = [
        [
            *(row[name] for name in ("task", "setting", "warmup", "part")),
            str(len(row["values"])),
            _number(statistics.mean(row["values"]), ".1f"),
            mean_text(Mean(row["difference"], row["low"], row["high"]), "+.1f"),
            _number((row["published"] or [None])[0], ".1f"),
        ]
        for row in record["rows"]
    ]
    heads = ["task", "setting", "warm-up", "part", "seeds", "accuracy, %", "difference [95 %]", "published"]
    failed: list[Block] = [Points(record["failed"], "warning")] if record["failed"] else []
    return [Table(heads, rows, names=4), *failed]


_SHOW: dict[str, Callable[[dict[str, Any]], list[Block]]] = {
    "cifar10": _compare,
    "core": _run,
    "text": _study,
    "speed": vit_speed,
    "lab": _lab,
    "gpt2": decoder_speed,
    "data": _run,
}
