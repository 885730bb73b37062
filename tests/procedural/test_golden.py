"""The streams, pinned: chunk c of (seed, rule, split) is the same array on every machine and under every NumPy.

The golden file changes only with the definition of a stream, which is a breaking change: results made before can then
not be repeated. To write it: `python tests/procedural/test_golden.py`.
"""

import hashlib
import json
from pathlib import Path

import pytest

from vitwarm.procedural import RuleStream, make_rule

GOLDEN = Path(__file__).with_name("golden.json")
CASES = [
    ({"name": "dyck"}, 196),
    ({"name": "dyck"}, 2048),
    ({"name": "dyck", "k": 300, "max_depth": 16}, 64),
    ({"name": "dyck", "balanced": False, "min_length": 3}, 33),
    ({"name": "dyck_shuffle"}, 196),
    ({"name": "dyck_shuffle", "close": "type", "max_depth": 16, "p_open": 0.5, "balanced": False}, 196),
    ({"name": "ww"}, 196),
    ({"name": "ww", "packed": True}, 196),
    ({"name": "identity"}, 64),
    ({"name": "reverse"}, 64),
    ({"name": "sort", "min_length": 4, "symbols": 300}, 64),
    ({"name": "set"}, 64),
    ({"name": "union"}, 64),
    ({"name": "delete"}, 64),
    ({"name": "delete", "hit": "any", "end": False}, 131),
    ({"name": "stack"}, 64),
    ({"name": "eca"}, 196),
    ({"name": "eca", "width": 40, "window": 20, "block": 4, "density": 0.3}, 60),
    ({"name": "mixture", "rules": [{"name": "dyck", "k": 8}, {"name": "sort"}], "weights": [1, 3]}, 64),
    ({"name": "shuffled", "rule": {"name": "dyck"}}, 196),
    ({"name": "curriculum", "rule": {"name": "sort"}, "level": 3}, 64),
]


def digest(*arrays):
    little_endian = (array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
    return hashlib.sha256(b"".join(little_endian)).hexdigest()


def describe(spec, length):
    stream = RuleStream(make_rule(**spec), seed=7, split="train", length=length)
    held_out = RuleStream(make_rule(**spec), seed=7, split="validation", length=length)
    first, far = stream.chunk(0), stream.chunk(10**6)
    masked = [stream.masked_rows(0, 256, p).inputs for p in (0.5, 0.3)]
    return {
        "rule": spec,
        "length": length,
        "row 0": first.tokens[0, :24].tolist(),
        "chunk 0": digest(first.tokens, first.scored, first.determined),
        "chunk 1000000": digest(far.tokens),
        "masked 0.5": digest(masked[0]),
        "masked 0.3": digest(masked[1]),
        "validation 0": digest(held_out.chunk(0).tokens),
    }


@pytest.mark.parametrize("index", range(len(CASES)))
def test_streams_are_what_they_were(index):
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == len(CASES)
    assert describe(*CASES[index]) == golden[index]


if __name__ == "__main__":
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps(describe(*case)) for case in CASES) + "\n]\n")
