# Sourced by test.sh: .venv-lowest, with every dependency at the lower bound that pyproject.toml declares, under the oldest
# Python that is here. What these depend on in turn is as new as they allow.
# uv resolves and installs, for pip cannot choose the lowest; it reads UV_INDEX_URL and its like, not pip's configuration.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

if [ ! -x .venv-lowest/bin/python ]; then
    python=""
    for candidate in python3.10 ~/.pyenv/versions/3.10.*/bin/python python3.11 python3.12 python3.13 python3.14 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "vitwarm needs Python 3.10 or newer; install it and run this again" >&2
        exit 2
    fi
    echo "making .venv-lowest with $("$python" --version)"
    "$python" -m venv .venv-lowest || exit 2
fi
. .venv-lowest/bin/activate
unset PYTHONPATH
python -m pip install --quiet --disable-pip-version-check uv==0.13.9 || exit 1
python -m uv pip install --quiet --resolution lowest-direct -e '.[test,parquet,wandb]' || exit 1
python tools/lowest.py || exit 1
