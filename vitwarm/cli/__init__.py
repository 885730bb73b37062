"""The `vitwarm` command. Each subcommand is a module of this package with its `Options` and `run(options)`.

The modules import what they need once their options are checked, so that help, lists and errors are fast.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import vitwarm
from vitwarm.cli.guard import MISTAKE, guarded, open_standard_files, say
from vitwarm.cli.words import listing, parse, purpose, usage
from vitwarm.errors import UserError
from vitwarm.signals import end_with_launcher, ignore_stop_signals, listen

SUBCOMMANDS = (
    "train",
    "validate",
    "make-shards",
    "show",
    "recipes",
    "plan",
    "budget",
    "lab",
    "compare",
    "seeds",
    "intervals",
    "evidence",
    "ensemble",
    "generate",
    "compose",
    "inspect",
)

_RESUMABLE = ("train", "ensemble", "budget", "lab")


def main() -> NoReturn:
    """The console script, and `python -m vitwarm`: the first word names the subcommand."""
    open_standard_files()
    called = Path(sys.argv[0]).name
    program, words = "python -m vitwarm" if called == "__main__.py" else "vitwarm", sys.argv[1:]
    if not words:
        say(overview(program), sys.stderr)
        sys.exit(MISTAKE)
    _exit(guarded(lambda: _dispatch(program, words)))


def tool(name: str) -> NoReturn:
    """A file of tools/ that stands for one subcommand."""
    open_standard_files()
    _exit(guarded(lambda: _carry_out(name, sys.argv[1:], f"python {sys.argv[0]}")))


def _carry_out(name: str, words: Sequence[str], program: str) -> None:
    """`call` a subcommand, for which this process lives."""
    if name in _RESUMABLE:
        listen()  # before the slow imports, and until the process ends
        end_with_launcher()
    call(name, words, program)


def _exit(code: int) -> NoReturn:
    ignore_stop_signals()  # what was done is done: one that comes while Python ends must not change the exit code
    sys.exit(code)


def call(name: str, words: Sequence[str], program: str | None = None) -> None:
    """Carry out a subcommand.

    Args:
        name: name of the subcommand.
        words: words that follow it on the command line.
        program: how the user calls it, for the help.

    Raises:
        UserError: a mistake in the words, or whatever the subcommand refuses.
        Interrupted: a signal; the same call resumes.
    """
    program, module = program or f"vitwarm {name}", _module(name)
    if {"-h", "--help"} & set(words):
        say(usage(module.Options, program))
    elif "--version" in words:
        say(f"vitwarm {vitwarm.__version__}")
    else:
        module.run(parse(module.Options, words, program))


def overview(program: str) -> str:
    """The help of the whole command."""
    rows = [(name, purpose(_module(name).Options)) for name in SUBCOMMANDS]
    head = f"usage: {program} SUBCOMMAND [NAME=VALUE ...]\n\nWarm up transformers on procedural data."
    return f"{head}\n\n{listing(rows, indent=2)}\n\n{program} SUBCOMMAND --help says more; --version says which."


def _dispatch(program: str, words: Sequence[str]) -> None:
    name, *rest = words
    if name in ("-h", "--help"):
        say(overview(program))
    elif name == "--version":
        say(f"vitwarm {vitwarm.__version__}")
    elif name not in SUBCOMMANDS:
        from vitwarm.checks import nearest

        raise UserError(f"no subcommand {name!r}{nearest(name, SUBCOMMANDS)}; see {program} --help")
    else:
        _carry_out(name, rest, f"{program} {name}")


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name.replace('-', '_')}")
