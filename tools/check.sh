#!/usr/bin/env bash
# bash tools/check.sh: lint, format and types, in the active virtual environment or in .venv; lists what failed
set -euo pipefail
. "$(dirname "$0")/env.sh" dev
failed=()
check() {
    echo "$*"
    "$@" || failed+=("$*")
}
check python -m ruff check .
check python -m ruff format --check .
check python -m mypy
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
