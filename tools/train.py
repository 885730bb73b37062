"""accelerate launch tools/train.py recipe=NAME [key=value ...]: `vitwarm train` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("train")
