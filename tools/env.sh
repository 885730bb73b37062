# Sourced by quickstart.sh and test.sh: a virtual environment with the package in it.
# Uses the active environment, else makes .venv; installs again only when pyproject.toml or the extra has changed.
# usage: . tools/env.sh EXTRA

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    . tools/python.sh
    make_venv .venv python3 python3.14 python3.13 python3.12 python3.11 python3.10 || exit 2
    . .venv/bin/activate
fi

stamp="${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}/.vitwarm-$1-$(python -c \
    'import hashlib, pathlib; print(hashlib.sha256(str(pathlib.Path.cwd()).encode() + pathlib.Path("pyproject.toml").read_bytes()).hexdigest()[:12])')"
if [ ! -e "$stamp" ]; then
    echo "installing vitwarm[$1]"
    python -m pip install --quiet --disable-pip-version-check -e ".[$1]" || exit 1
    touch "$stamp"
fi
