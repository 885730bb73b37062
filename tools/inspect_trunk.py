"""python tools/inspect_trunk.py export=RUN [vs=RUN] [--png [FILE.png]]: `vitwarm inspect` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("inspect")
