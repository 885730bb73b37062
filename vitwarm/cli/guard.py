"""Exit codes: 2 and one line for a user's mistake, 75 for a run to resume, a traceback for a bug."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from vitwarm.errors import Interrupted, UserError, disk_trouble, shown

MISTAKE, RESUME = 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: try the same command again


def guarded(action: Callable[[], None]) -> int:
    """Run an action and return the exit code of the process."""
    code = 0
    try:
        action()
    except UserError as error:
        code = MISTAKE
        _complain(f"error: {error}")
    except Interrupted as error:
        code = RESUME
        _complain(f"{error}; run the same command to resume")
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        _complain("stopped at once; run the same command to resume from the newest checkpoint")
    except BrokenPipeError:  # as in `... | head`
        code = 128 + signal.SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would complain again
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        code = MISTAKE
        reason = str(error).partition("\n")[0]
        _complain(f"error: out of memory: {reason}; lower the batch, the sequence length or the size of the model")
    except OSError as error:
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        code = MISTAKE
        _complain(f"error: {trouble}")
    _leave_group()
    return code


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line, on one of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)


def _complain(text: str) -> None:
    """One line on stderr; before the processes have met, each speaks for itself: the others may be well."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not _has_group():
        who = "vitwarm" if rank == "0" else f"vitwarm (process {rank})"
        print(f"{who}: {' '.join(shown(text).splitlines())}", file=sys.stderr, flush=True)


def open_standard_files() -> None:
    """Open what the caller closed of stdin, stdout and stderr, or files of ours would take their places.

    What a terminal's encoding lacks is printed as a question mark.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _has_group() -> bool:
    if "torch.distributed" not in sys.modules:
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _leave_group() -> None:
    if _has_group():
        import torch.distributed as dist

        dist.destroy_process_group()
