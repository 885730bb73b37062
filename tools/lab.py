"""python tools/lab.py plan=NAME [key=value ...] [--dry-run | --report]: `vitwarm lab` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("lab")
