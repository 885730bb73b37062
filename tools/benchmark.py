"""python tools/benchmark.py rules|data|train|lm|ensemble [options] [--json FILE]: measured speed; each has a --help."""

import sys
from importlib import import_module

BENCHMARKS = {
    "rules": "vitwarm.procedural.benchmark",
    "data": "vitwarm.data.benchmark",
    "train": "vitwarm.stages.benchmark",
    "lm": "vitwarm.stages.lm_benchmark",
    "ensemble": "vitwarm.stages.ensemble_benchmark",
}

if __name__ == "__main__":
    name, *options = sys.argv[1:] or ["--help"]
    if name not in BENCHMARKS:
        print(f"usage: python tools/benchmark.py {{{','.join(BENCHMARKS)}}} [options]", file=sys.stderr)
        sys.exit(2)
    sys.exit(import_module(BENCHMARKS[name]).main(options))
