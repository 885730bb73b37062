"""Speed of the rules on one core: `python tools/benchmark.py rules [--json FILE] [--peer CHECKOUT]`.

Ours, a plain sequential generator and, if asked, a public one run in turn in one process, round after round, so that
what else the machine does falls on all alike. Times are CPU seconds of the one thread that works; figures are medians
over the rounds, ratios medians of the ratio within each round.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from bench.machine import processor
from bench.sequential import sequential_batch
from vitwarm.files import write_text
from vitwarm.procedural.registry import make_rule
from vitwarm.procedural.stream import CHUNK, RuleStream

__all__ = ["main"]

# rule, tokens in a row, the bar in millions of tokens a second, the batch that counts for it
CASES = [
    ("dyck", {}, 196, 20, "masked"),
    ("dyck", {}, 2048, 20, "masked"),
    ("dyck_shuffle", {}, 196, 10, "masked"),
    ("dyck_shuffle", {}, 2048, 10, "masked"),
    ("dyck_shuffle", {"close": "type", "max_depth": 16, "p_open": 0.5, "balanced": False}, 2048, 10, "masked"),
    ("ww", {}, 196, 10, "masked"),
    ("identity", {}, 130, 10, "masked"),
    ("reverse", {}, 130, 10, "masked"),
    ("sort", {}, 130, 50, "masked"),
    ("set", {}, 130, 10, "masked"),
    ("union", {}, 131, 10, "masked"),
    ("delete", {}, 131, 10, "masked"),
    ("stack", {}, 128, 10, "masked"),
    ("eca", {}, 196, 200, "rows"),
    ("eca", {"width": 100}, 6000, 200, "rows"),
]

FIRST_BATCH_S = 0.050  # the bar for 32 rows right after the import: of the cases above, and of
FIRST_BATCHES = [("ww", {"packed": True}, 2048), ("shuffled", {"rule": {"name": "dyck"}}, 2048)]

# module and class in the public code of arXiv 2601.21725, and its arguments for rows of the same content
PEERS = {
    ("dyck", 196): ("dyck", "DyckDataset", {"k": 64, "seq_length": 196, "p_open": 0.6}),
    ("dyck", 2048): ("dyck", "DyckDataset", {"k": 64, "seq_length": 2048, "p_open": 0.6}),
    ("dyck_shuffle", 196): ("dyck_shuffle", "DyckShuffleDataset", {"k": 64, "seq_length": 196}),
    ("dyck_shuffle", 2048): ("dyck_shuffle", "DyckShuffleDataset", {"k": 64, "seq_length": 2048}),
    **{
        (name, length): (name, f"{name.capitalize()}Dataset", {"seq_len": 64, "vocab_size": 100})
        for name, length in (
            ("identity", 130),
            ("reverse", 130),
            ("sort", 130),
            ("set", 130),
            ("union", 131),
            ("delete", 131),
            ("stack", 128),
        )
    },
}


def _timed(work: Callable[[int], Any], times: int = 1) -> float:
    """CPU seconds of work(0), ..., work(times - 1), a call."""
    start = time.thread_time()
    for index in range(times):
        work(index)
    return (time.thread_time() - start) / times


def _peer(checkout: Path, name: str, length: int) -> Callable[[int], Any] | None:
    """Draws and collates a number of rows with the public code in a folder that the user names, on this thread."""
    if (name, length) not in PEERS:
        return None
    module_name, class_name, arguments = PEERS[name, length]
    path = checkout / "procedural_data" / f"{module_name}.py"
    spec = importlib.util.spec_from_file_location(f"peer_{module_name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dataset = getattr(module, class_name)

    def draw(count: int) -> None:
        for _ in module.DataLoader(dataset(num_samples=count, **arguments), batch_size=count, num_workers=0):
            pass

    return draw


def measure(rounds: int, peer: Path | None) -> list[dict[str, Any]]:
    """One record for each of `CASES`, over interleaved rounds."""
    # A process that has built a model has freed large arrays, and glibc keeps as much for the next ones. Without that
    # it would give the memory of each batch back to the system, and get it again page by page.
    np.ones(2**25 - 2**16, np.uint8)
    jobs = []
    for name, parameters, length, bar, counted in CASES:
        stream = RuleStream(make_rule(name, **parameters), 0, "train", length)
        few = 2**13 // length  # the papers' batch of 8,192 tokens
        public = _peer(peer, name, length) if peer else None
        jobs.append((name, parameters, length, bar, counted, stream, few, public, Random(0), []))
    for turn in range(rounds):
        for name, _, length, _, _, stream, few, public, random, times in jobs:
            chunks = max(1, 2**19 // (CHUNK * length))  # about 20 ms of work, so that caches are as warm as in training
            start = turn * chunks

            def rows(i: int, stream=stream, start=start) -> None:
                stream.rows((start + i) * CHUNK, (start + i + 1) * CHUNK)

            def masked(i: int, stream=stream, start=start) -> None:
                stream.masked_rows((start + i) * CHUNK, (start + i + 1) * CHUNK, 0.5)

            def python(_: int, name=name, random=random, few=few, length=length) -> None:
                sequential_batch(name, random, few, length, 0.5)

            times.append(
                {
                    "rows": _timed(rows, chunks) / (CHUNK * length),
                    "masked": _timed(masked, chunks) / (CHUNK * length),
                    "python": _timed(python) / (few * length),
                    "public": _timed(lambda _, public=public, few=few: public(few)) / (few * length)
                    if public
                    else None,
                }
            )
    records = []
    for name, parameters, length, bar, counted, *_, times in jobs:
        times = times[1:]  # the first round warms up
        record = {"rule": name, "parameters": parameters, "length": length, "bar": bar, "counted": counted}
        for kind in ("rows", "masked", "python", "public"):
            if times[0][kind] is not None:
                record[f"{kind}_mtokens_per_s"] = statistics.median(1e-6 / t[kind] for t in times)
                record[f"over_{kind}"] = statistics.median(t[kind] / t[counted] for t in times)
        record["passes"] = record[f"{counted}_mtokens_per_s"] >= bar
        records.append(record)
    return records


def first_batch(name: str, parameters: dict[str, Any], length: int, starts: int) -> dict[str, Any]:
    """CPU seconds to import the package and then to make a first batch of 32 rows: medians over fresh interpreters."""
    code = (
        "import time; a = time.thread_time(); from vitwarm.procedural import RuleStream, make_rule; "
        "b = time.thread_time(); "
        f"RuleStream(make_rule({name!r}, **{parameters!r}), 0, 'train', {length}).masked_rows(0, 32, 0.5); "
        "print(b - a, time.thread_time() - b)"
    )
    times = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(starts)
    ]
    imported, made = (statistics.median(float(t[i]) for t in times) for i in (0, 1))
    case = {"rule": name, "parameters": parameters, "length": length}
    return case | {"import_s": imported, "first_batch_s": made, "passes": made < FIRST_BATCH_S}


def memory(batches: int) -> dict[str, Any]:
    """Resident MiB after the first and the last of many batches of 256 rows; None where /proc is not there."""

    def resident() -> float | None:
        statm = Path("/proc/self/statm")
        if not statm.exists():
            return None
        return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    stream = RuleStream(make_rule("dyck"), 0, "train", 196)
    marks = []
    for batch in range(batches):
        stream.masked_rows(batch * CHUNK, (batch + 1) * CHUNK, 0.5)
        if batch in (batches // 10, batches - 1):
            marks.append(resident())
    return {"batches": batches, "mib_after_a_tenth": marks[0], "mib_at_the_end": marks[-1]}


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [
        "| rule | tokens a row | rows | masked batch | bar | plain Python | ratio | public code | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in result["rules"]:
        figures = {kind: f"{r[f'{kind}_mtokens_per_s']:.1f}" for kind in ("rows", "masked")}
        figures[r["counted"]] = f"**{figures[r['counted']]}**"
        public = f"{r['public_mtokens_per_s']:.2f} | {r['over_public']:.0f}x" if "over_public" in r else "- | -"
        lines.append(
            f"| {_case(r)} | {r['length']} | {figures['rows']} | {figures['masked']} | "
            f"{r['bar']}{'' if r['passes'] else ' (missed)'} | {r['python_mtokens_per_s']:.2f} | "
            f"{r['over_python']:.0f}x | {public} |"
        )
    lines += ["", "| rule | tokens a row | first batch, ms | bar |", "|---|---:|---:|---:|"]
    for r in result["first_batch"]:
        missed = "" if r["passes"] else " (missed)"
        lines.append(f"| {_case(r)} | {r['length']} | {1000 * r['first_batch_s']:.1f} | 50{missed} |")
    used = result["memory"]
    imported = statistics.median(r["import_s"] for r in result["first_batch"])
    lines += ["", f"Import: {1000 * imported:.0f} ms."]
    if used["mib_at_the_end"] is not None:
        lines.append(
            f"Memory after batch {used['batches'] // 10} and batch {used['batches']} of 256 rows: "
            f"{used['mib_after_a_tenth']:.1f} and {used['mib_at_the_end']:.1f} MiB."
        )
    return "\n".join(lines)


def _case(record: dict[str, Any]) -> str:
    return record["rule"] + "".join(f" {key}={value}" for key, value in record["parameters"].items())


def main(argv: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 1 when a bar was missed."""
    parser = argparse.ArgumentParser(prog="benchmark rules", description="Speed of the rules on one core.")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peer", type=Path, help="checkout of the public code of arXiv 2601.21725, to measure as well")
    parser.add_argument("--rounds", type=int, default=16, help="interleaved rounds, the first of which is left out")
    parser.add_argument("--batches", type=int, default=10_000, help="batches over which memory is watched")
    options = parser.parse_args(argv)
    if options.rounds < 2 or options.batches < 10:
        parser.error("at least 2 rounds and 10 batches")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: the folder {options.json.parent} does not exist")
    for module in sorted({module for module, _, _ in PEERS.values()} if options.peer else ()):
        if not (path := options.peer / "procedural_data" / f"{module}.py").is_file():
            parser.error(f"--peer names a checkout with procedural_data/; {path} does not exist")
    starts = min(options.rounds, 7)
    result = {
        "rules": measure(options.rounds, options.peer),
        "first_batch": [first_batch(*case[:3], starts) for case in [*CASES, *FIRST_BATCHES]],
        "memory": memory(options.batches),
        "rounds": options.rounds,
        "machine": {"processor": processor(), "python": platform.python_version(), "numpy": np.__version__},
    }
    print(markdown(result))
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0 if all(record["passes"] for record in result["rules"] + result["first_batch"]) else 1
