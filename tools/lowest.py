"""Whether every dependency is installed at its declared lower bound: `python tools/lowest.py`, see lowest.sh.

A bound below what the other bounds allow is one that nobody can have, and so one that no test has seen.
"""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version


def main() -> int:
    wrong = 0
    for requirement in sorted({str(Requirement(text.partition(";")[0])) for text in requires("vitwarm") or []}):
        name = Requirement(requirement).name
        floors = [Version(s.version) for s in Requirement(requirement).specifier if s.operator == ">="]
        try:
            installed = Version(version(name))
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        if floors and installed.release[: len(floors[0].release)] != floors[0].release:
            print(f"{requirement}: {installed} is the lowest that the others allow; declare that")
            wrong += 1
        elif floors:
            print(f"{name} {installed}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
