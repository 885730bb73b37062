# Sourced by test.sh: .venv-lowest, with every dependency at the lower bound that pyproject.toml declares, under the oldest
# Python that is here. What these depend on in turn is as new as they allow.
# uv resolves and installs, for pip cannot choose the lowest; it reads UV_INDEX_URL and its like, not pip's configuration.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

. tools/python.sh
make_venv .venv-lowest python3.10 ~/.pyenv/versions/3.10.*/bin/python python3.11 python3.12 python3.13 python3.14 python3 || exit 2
. .venv-lowest/bin/activate
unset PYTHONPATH
python -m pip install --quiet --disable-pip-version-check uv==0.13.9 || exit 1
python -m uv pip install --quiet --resolution lowest-direct -e '.[test,parquet,wandb]' || exit 1
# A bound below what the other bounds allow is one that nobody can have, and so one that no test has seen.
python - <<'EOF' || exit 1
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

declared = [Requirement(text) for text in requires("vitwarm")]
floors = {(r.name, s.version) for r in declared for s in r.specifier if s.operator == ">="}
wrong = False
for name, floor in sorted(floors):
    try:
        installed = Version(version(name))
    except PackageNotFoundError:  # of an extra that is not installed
        continue
    print(name, installed)
    lowest = Version(floor).release
    if installed.release[: len(lowest)] != lowest:
        print(f"{name}>={floor}: {installed} is the lowest that the other bounds allow; declare that", file=sys.stderr)
        wrong = True
sys.exit(wrong)
EOF
