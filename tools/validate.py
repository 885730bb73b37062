"""python tools/validate.py export=RUN/export shards=SHARDS: exact top-1, top-5, loss, images per second."""

from vitwarm.cli import validate

if __name__ == "__main__":
    validate()
