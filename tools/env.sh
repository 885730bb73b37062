# Sourced by quickstart.sh and test.sh: a virtual environment with the package in it.
# Uses the active environment, else makes .venv; installs again only when pyproject.toml or the extra has changed.
# usage: . tools/env.sh EXTRA

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        python=""
        for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
        if [ -z "$python" ]; then
            echo "vitwarm needs Python 3.10 or newer; install it and run this again" >&2
            exit 2
        fi
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv || exit 2
    fi
    . .venv/bin/activate
fi

stamp="${VIRTUAL_ENV:-${CONDA_PREFIX:-.venv}}/.vitwarm-$1-$(python -c \
    'import hashlib, pathlib; print(hashlib.sha256(str(pathlib.Path.cwd()).encode() + pathlib.Path("pyproject.toml").read_bytes()).hexdigest()[:12])')"
if [ ! -e "$stamp" ]; then
    echo "installing vitwarm[$1]"
    python -m pip install --quiet --disable-pip-version-check -e ".[$1]" || exit 1
    touch "$stamp"
fi
