"""python tools/plan.py recipe=NAME gpus=8 device=h100: `vitwarm plan` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("plan")
