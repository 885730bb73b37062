"""The cache folder, for files that can be made again: tokens, the digits, the indices of tars in read-only folders."""

import os
from pathlib import Path

from vitwarm.errors import UserError


def cache_dir() -> Path:
    """The user's cache folder: `$VITWARM_CACHE`, else `$XDG_CACHE_HOME/vitwarm`, else `~/.cache/vitwarm`.

    Raises:
        UserError: none is named, and this user has no home folder.
    """
    named = os.environ.get("VITWARM_CACHE")
    try:
        return Path(named or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vitwarm")).expanduser()
    except RuntimeError:
        raise UserError("there is no home folder to keep files in; set VITWARM_CACHE to a writable folder") from None
