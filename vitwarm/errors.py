"""The two ways in which a run ends early without a traceback, and which faults of the system belong to the first."""

import errno
import re


class UserError(Exception):
    """A mistake that the user can mend: one plain line on what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal asked the run to stop; everything is saved and the same command goes on. Exit code 75 (EX_TEMPFAIL)."""


# What a user can mend; any other OSError is a fault of ours.
_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EIO", "ESTALE")
_DISK_CODES = {getattr(errno, name) for name in _DISK if hasattr(errno, name)}


def disk_trouble(error: Exception) -> str | None:
    """What to tell a user whose disk is full or closed to us; None for other faults.

    Args:
        error: an OSError, or a SafetensorError, which hides the system's error in its text.
    """
    code, reason, where = getattr(error, "errno", None), getattr(error, "strerror", None), ""
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
    elif found := re.search(r"([^:]+) \(os error (\d+)\)", str(error)):
        code, reason = int(found[2]), found[1].strip()
    if code not in _DISK_CODES:
        return None
    return f"cannot write{where}: {reason}; free space or mend the path, then run the same command again"
