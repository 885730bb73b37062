"""python tools/benchmark.py NAME [options] [--json FILE]: speed; NAME is one of BENCHMARKS, each has a --help."""

import sys
from importlib import import_module

BENCHMARKS = ("rules", "data", "sides", "workers", "train", "lm", "ensemble", "tiny")

if __name__ == "__main__":
    name, *options = sys.argv[1:] or ["--help"]
    if name not in BENCHMARKS:
        print(f"usage: python tools/benchmark.py {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        sys.exit(2)
    sys.exit(import_module(f"bench.{name}").main(options))
