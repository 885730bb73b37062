"""python tools/intervals.py [out=FILE.json] [repeats=N]: how often the intervals of a budget study hold the truth."""

from vitwarm.budget.coverage import main
from vitwarm.cli import guarded

if __name__ == "__main__":
    guarded(main)()
