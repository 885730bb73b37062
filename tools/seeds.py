"""python tools/seeds.py ARM=RUNS_GLOB ... [metrics=accuracy,exact]: `vitwarm seeds` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("seeds")
