"""python tools/budget.py plan=NAME [key=value ...] [--dry-run | --report]: `vitwarm budget` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("budget")
