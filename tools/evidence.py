"""python tools/evidence.py out=FOLDER: `vitwarm evidence` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("evidence")
