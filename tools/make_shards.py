"""python tools/make_shards.py source=PATH out=FOLDER: `vitwarm make-shards` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("make-shards")
