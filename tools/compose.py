"""python tools/compose.py target=RUN out=FOLDER attention=A mlp=B: `vitwarm compose` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("compose")
