"""python tools/compare.py BASELINE=RUNS_GLOB ARM=RUNS_GLOB ... out=FOLDER: `vitwarm compare` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("compare")
