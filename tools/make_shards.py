"""python tools/make_shards.py source=PATH out=FOLDER: tars, offset indices and a manifest; see docs/shards.md."""

from vitwarm.cli import make_shards

if __name__ == "__main__":
    make_shards()
