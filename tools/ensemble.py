"""python tools/ensemble.py recipe=NAME seeds=0-9 [key=value ...]: `vitwarm ensemble` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("ensemble")
