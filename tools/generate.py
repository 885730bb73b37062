"""python tools/generate.py export=FOLDER prompt="...": `vitwarm generate` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("generate")
