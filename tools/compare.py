"""python tools/compare.py BASELINE=RUNS_GLOB ARM=RUNS_GLOB ... out=FOLDER: table, paired intervals, learning curves."""

from vitwarm.cli import compare

if __name__ == "__main__":
    compare()
