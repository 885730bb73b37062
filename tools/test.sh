#!/usr/bin/env bash
# bash tools/test.sh [pytest arguments]: the test suite, in the active virtual environment or in .venv
set -euo pipefail
. "$(dirname "$0")/env.sh" test
python -m pytest -m "not long" "$@"
