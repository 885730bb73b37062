"""The cache folder, for files that can be made again: the digits, the indices of tars in read-only folders."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder: `$VITWARM_CACHE`, else `$XDG_CACHE_HOME/vitwarm`, else `~/.cache/vitwarm`."""
    if named := os.environ.get("VITWARM_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitwarm"
