"""Made inputs through the real commands, in this process: each is refused in one line, or read as it should be.

    def make(rng, folder): ...; return Case(act, right, what)

`act` does what a user would do and returns what was read; `right` compares it with what a few lines of this test, that
share nothing with the package, find in the same input. The seed of an input is its kind and number, so that
`VITWARM_FUZZ=5000` begins with the same 500, and `FUZZ_ONLY=17` runs one alone.
"""

import contextlib
import io
import os
import random
import shutil
import signal
import tarfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitwarm.cli import call
from vitwarm.cli.guard import MISTAKE, guarded

SECONDS = 20  # after which an input counts as hung
OUTCOMES = ("refused", "worked", "wrong", "hung", "traceback")


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        act: what a user does with it; returns what was read.
        right: whether that is what an independent reader finds; for what must be refused it is always False.
        what: the input in words, for a failure's message.
    """

    act: Callable[[], Any]
    right: Callable[[Any], bool]
    what: str


@dataclass
class Found:
    """What became of a kind's inputs; `str()` is the line for the results page."""

    kind: str
    counts: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{self.counts[outcome]} {outcome}" for outcome in OUTCOMES)
        return f"fuzz {self.kind}: {self.counts.total()} tried: {counts}"


class Hung(BaseException):
    """Nothing of the package may catch it."""


def _hang(*_: object) -> None:
    raise Hung


def command(name: str, *words: object) -> None:
    """A subcommand of `vitwarm`."""
    call(name, [str(word) for word in words])


def outcome(case: Case) -> tuple[str, str]:
    """One of `OUTCOMES`, and what is to say of it."""
    said, got = io.StringIO(), []
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = guarded(lambda: got.append(case.act()))
            right = code != 0 or case.right(got[0])
    except (Hung, Exception) as error:
        *_, place = [one for one in traceback.extract_tb(error.__traceback__) if one.name != "_hang"]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return (
            ("hung", where) if isinstance(error, Hung) else ("traceback", f"{type(error).__name__}: {error} ({where})")
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if code == 0:
        return ("worked", "") if right else ("wrong", repr(got[0])[:400])
    lines = [line for line in said.getvalue().split("\n") if line and not line.startswith("vitwarm: warning: ")]
    if code != MISTAKE or len(lines) != 1 or not lines[0].startswith("vitwarm: error: "):
        return "traceback", f"exit code {code}: {lines}"
    if not lines[0].isprintable():
        return "traceback", f"control characters on the terminal: {lines[0]!r}"
    return "refused", lines[0]


def sweep(
    kind: str, make: Callable[[random.Random, Path], Case], folder: Path, number: int, most_refused: float = 0.9
) -> Found:
    """Make `number` inputs of a kind, and what became of them.

    Args:
        kind: names the seeds.
        make: an input in an empty folder.
        folder: where these folders are made.
        number: how many.
        most_refused: a sweep that refuses a larger share has tested little, and fails.
    """
    found, home = Found(kind), os.getcwd()
    only = os.environ.get("FUZZ_ONLY")
    for i in range(number) if only is None else [int(only)]:
        rng, own = random.Random(f"{kind} {i}"), folder / f"{kind}-{i}"
        own.mkdir()
        os.chdir(own)
        try:
            case = make(rng, own)
            what, why = outcome(case)
        finally:
            os.chdir(home)
        found.counts[what] += 1
        if os.environ.get("FUZZ_SHOW"):
            print(f"{kind} {i}: {what}: {case.what} -> {why}", flush=True)
        if what not in ("refused", "worked"):
            found.failures.append(f"{kind} {i}: {what}: {case.what} -> {why[:300]}")
        shutil.rmtree(own, ignore_errors=True)
    if only is None and found.counts["refused"] > most_refused * number + 1:
        found.failures.append(f"{kind}: {found.counts['refused']} of {number} are refused; the sweep tests too little")
    return found


def labelled(tar: Path) -> list[tuple[int, bytes]]:
    """(label, encoded image) of each sample in a tar that was made."""
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, ending = member.name.partition(".")
            parts.setdefault(key, {})[ending] = archive.extractfile(member).read()
    found = []
    for part in parts.values():
        label = int(part.pop("cls"))
        (image,) = part.values()
        found.append((label, image))
    return found
