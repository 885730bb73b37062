"""python tools/intervals.py [out=FILE.json] [repeats=N]: `vitwarm intervals` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("intervals")
