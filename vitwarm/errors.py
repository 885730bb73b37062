"""The two exceptions that end a run without a traceback, and the system errors that count as the first one."""

import errno
import re
import unicodedata


class UserError(Exception):
    """A mistake that the user can fix: one plain line on what is wrong and what to do. Exit code 2."""


class Interrupted(Exception):
    """A signal stopped the run; everything is saved and the same command resumes it. Exit code 75 (EX_TEMPFAIL)."""


# Errors that a user can fix; any other OSError is a bug.
_ADVICE = {
    "free space": ("ENOSPC", "EDQUOT", "EFBIG"),
    "fix the path or its permissions": ("EACCES", "EPERM", "EROFS", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG"),
    "see to the disk": ("EIO", "ESTALE"),
}
_ADVICE_OF = {getattr(errno, name, None): advice for advice, names in _ADVICE.items() for name in names}


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
    if code is None or code not in _ADVICE_OF:
        return None
    return f"cannot write{where}: {reason}; {_ADVICE_OF[code]}, then run the same command again"


# Parts of an address that let whoever reads it in: user and password, and the values of signed queries.
_SECRET = re.compile(
    r"(?<=://)[^/?#@\s]+(?=@)"
    r"|(?<=[?&])((?:x-(?:amz|goog|ms|oss)-[\w-]+|awsaccesskeyid|googleaccessid|ossaccesskeyid|sig|signature|expires|policy"
    r"|key-pair-id|hdnts|auth\w*|\w*token|\w*secret|\w*password|api_?key|credential)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """The text, with `...` for the secrets of the addresses in it."""
    return _SECRET.sub(lambda found: f"{found[1] or ''}...", text)


def shown(text: str) -> str:
    """The text as a terminal may have it: no secrets, and control characters but line breaks written out."""
    escaped = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n" else c
        for c in without_secrets(text)
    )
    return "".join(escaped)
