"""python tools/validate.py export=RUN/export shards=SHARDS: `vitwarm validate` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("validate")
