#!/usr/bin/env bash
# bash tools/test.sh [pytest arguments]: the test suite, in the active virtual environment or in .venv, in two processes
# (-n 0: in one)
# bash tools/test.sh --lowest [pytest arguments]: the fast tests, in .venv-lowest with the lower bounds of pyproject.toml
set -euo pipefail
if [ "${1:-}" = --lowest ]; then
    shift
    . "$(dirname "$0")/lowest.sh"
    [ $# -gt 0 ] || set -- tests --ignore=tests/integration
else
    . "$(dirname "$0")/env.sh" test
fi
PYTHONWARNDEFAULTENCODING=1 OMP_NUM_THREADS=1 python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder "$@"  # or slow files of few tests come last
