"""accelerate launch tools/train.py recipe=NAME [key=value ...]; --help lists every key, recipe=list the recipes."""

from vitwarm.cli import train

if __name__ == "__main__":
    train()
