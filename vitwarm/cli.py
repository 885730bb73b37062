"""The command lines. Exit code 2 and one line for a user's mistake, 75 for a run to resume, a traceback for ours."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

from vitwarm.errors import Interrupted, UserError

MISTAKE, RESUME = 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: try the same command again


def guarded(main: Callable[[list[str]], None]) -> Callable[[], None]:
    """Turn a function of the arguments into a command with the exit codes of this project."""

    def command() -> None:
        code = 0
        try:
            main(sys.argv[1:])
        except UserError as error:
            code = MISTAKE
            _complain(f"error: {error}")
        except Interrupted as error:
            code = RESUME
            _complain(f"{error}; run the same command to go on")
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
            _complain("stopped at once; run the same command to go on from the newest checkpoint")
        except BrokenPipeError:  # as in `... | head`
            code = 128 + signal.SIGPIPE
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would complain again
        except MemoryError as error:
            code = MISTAKE
            _complain(f"error: out of memory: {error}; lower the batch, the rows' length or the model's size")
        except OSError as error:
            from vitwarm.training.processes import disk_trouble

            trouble = disk_trouble(error)
            if trouble is None:
                raise
            code = MISTAKE
            _complain(f"error: {trouble}")
        _leave_group()
        sys.exit(code)

    return command


def _say(text: str, file: TextIO | None = None) -> None:
    if os.environ.get("RANK", "0") == "0":  # every process comes here; one of them speaks
        print(text, file=file, flush=True)


def listing(lines: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, in two columns."""
    lines = list(lines)
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {purpose}" for name, purpose in lines)


def _complain(text: str) -> None:
    _say(f"vitwarm: {text}", sys.stderr)


def _leave_group() -> None:
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _train(arguments: list[str]) -> None:
    from vitwarm.recipe import help_text, list_recipes, load_recipe

    if {"-h", "--help"} & set(arguments):
        _say("usage: accelerate launch tools/train.py recipe=NAME [key=value ...]\n\n" + help_text())
        return
    if "recipe=list" in arguments:
        _say(listing((name, purpose) for name, _path, purpose in list_recipes()))
        return
    config = load_recipe(arguments)
    from vitwarm.training.signals import stop_signals

    with stop_signals() as stop:
        from vitwarm.result import summary  # imports torch: only once the recipe is known to be good
        from vitwarm.run import run, run_folder

        result = run(config, stop)
    _say(summary(result, run_folder(config)))


train = guarded(_train)


def _pairs(arguments: list[str], usage: str) -> dict[str, str]:
    """`key=value` arguments as a dict."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        sys.exit(0 if arguments else MISTAKE)
    pairs = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key or key in pairs:
            raise UserError(f"cannot use {argument!r}; usage: {usage}")
        pairs[key] = value
    return pairs


def _validate(arguments: list[str]) -> None:
    usage = "python tools/validate.py export=RUN/export shards=SHARDS [batch=256] [workers=N]"
    pairs = _pairs(arguments, usage)
    unknown = set(pairs) - {"export", "shards", "batch", "workers"}
    if unknown or not {"export", "shards"} <= set(pairs):
        raise UserError(f"unknown {sorted(unknown)}; usage: {usage}" if unknown else f"usage: {usage}")
    batch, workers = _whole_number(pairs, "batch", 256, least=1), _whole_number(pairs, "workers", None)
    from vitwarm.validate import validate_export

    result = validate_export(pairs["export"], pairs["shards"], batch=batch, workers=workers)
    shown = (f"{value:.4f}" if isinstance(value, float) else str(value) for value in result.values())
    _say("\n".join(f"{name:16} {value}" for name, value in zip(result, shown, strict=True)))


def _whole_number(pairs: dict[str, str], key: str, default: int | None, least: int = 0) -> int | None:
    if key not in pairs:
        return default
    if not pairs[key].isdecimal() or int(pairs[key]) < least:
        bound = f" of at least {least}" if least else ""
        raise UserError(f"{key} is a whole number{bound}, not {pairs[key]!r}")
    return int(pairs[key])


def _compare(arguments: list[str]) -> None:
    usage = "python tools/compare.py BASELINE=RUNS_GLOB ARM=RUNS_GLOB ... out=FOLDER [tuned=train.lr,...]"
    from pathlib import Path

    pairs = _pairs(arguments, usage)
    if "out" not in pairs:
        raise UserError(f"no out=FOLDER; usage: {usage}")
    out, tuned = Path(pairs.pop("out")), [key for key in pairs.pop("tuned", "").split(",") if key]
    from vitwarm.budget.compare import report
    from vitwarm.budget.runs import read_arm

    print(report({arm: read_arm(pattern) for arm, pattern in pairs.items()}, out, tuned))
    print(f"written: {out}/compare.md, compare.json, compare.png, differences.png")


def _make_shards(arguments: list[str]) -> None:
    usage = (
        "python tools/make_shards.py source=PATH out=FOLDER [workers=N] [kind=KIND] [labels=FILE] [split=NAME] "
        "[seed=0] [shuffle=true] [images_per_shard=N] [shard_mb=256] [max_damaged=0.001]"
    )
    pairs = _pairs(arguments, usage)
    if unknown := set(pairs) - set(re.findall(r"(\w+)=", usage)):
        raise UserError(f"unknown {', '.join(sorted(unknown))}; usage: {usage}")
    if not pairs.get("source"):
        raise UserError(f"no source=PATH; usage: {usage}")
    from pathlib import Path

    from vitwarm.data.making import Options, make_shards

    if pairs.get("shuffle", "true") not in ("true", "false"):
        raise UserError(f"shuffle is true or false, not {pairs['shuffle']!r}")
    source, out, labels = (Path(pairs[k]).expanduser() if pairs.get(k) else None for k in ("source", "out", "labels"))
    options = Options(
        seed=_whole_number(pairs, "seed", Options.seed),
        shuffle=pairs.get("shuffle", "true") == "true",
        images_per_shard=_whole_number(pairs, "images_per_shard", None),
        shard_mb=_number(pairs, "shard_mb", Options.shard_mb),
        max_damaged=_number(pairs, "max_damaged", Options.max_damaged),
    )
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = _whole_number(pairs, "workers", cpus)
    made = make_shards(source, out, pairs.get("kind"), labels, pairs.get("split"), workers, options)
    for name, split in made.splits.items():
        odd = "".join(f", {count} {note}" for note, count in split.notes.items())
        print(f"{name:6} {split.samples:,} images in {len(split.shards)} tars, {split.bytes / 1e6:,.1f} MB{odd}")


def _number(pairs: dict[str, str], key: str, default: float) -> float:
    try:
        return float(pairs.get(key, default))
    except ValueError:
        raise UserError(f"{key} is a number, not {pairs[key]!r}") from None


validate = guarded(_validate)
make_shards = guarded(_make_shards)
compare = guarded(_compare)
