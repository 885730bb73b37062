"""The two exceptions that end a run without a traceback, and the system errors that count as the first one."""

import errno
import re


class UserError(Exception):
    """A mistake that the user can fix: one plain line on what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal stopped the run; everything is saved and the same command resumes it. Exit code 75 (EX_TEMPFAIL)."""


# Errors that a user can fix; any other OSError is a bug.
_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EIO", "ESTALE")
_DISK_CODES = {getattr(errno, name) for name in _DISK if hasattr(errno, name)}


def disk_trouble(error: Exception) -> str | None:
    """The message for a full disk or a missing permission; None for other errors.

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
    return f"cannot write{where}: {reason}; free space or fix the path, then run the same command again"
