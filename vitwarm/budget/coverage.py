"""Coverage of the intervals of a share, by simulated studies with a known answer.

Accuracies of a baseline and an arm at 25, 50, 75 and 100 % of the data; a part of the noise is common to both arms of a
seed. `vitwarm intervals` is its command line.
"""

from typing import Any

import numpy as np

from vitwarm.budget.equivalence import Interval, equivalence
from vitwarm.budget.statistics import Array, bootstrap_ceiling

BUDGETS = (0.25, 0.5, 0.75, 1.0)
SHARE = 0.6  # the true answer
CURVES = {  # points above the baseline's final value, zero at SHARE
    "logarithmic, noise 0.1": (lambda b: 5 * np.log(b / SHARE), 0.1),
    "logarithmic, noise 0.3": (lambda b: 5 * np.log(b / SHARE), 0.3),
    "power law, noise 0.1": (lambda b: 9 * (SHARE**-0.5 - b**-0.5), 0.1),
    "power law, noise 0.3": (lambda b: 9 * (SHARE**-0.5 - b**-0.5), 0.3),
    "saturating, noise 0.3": (lambda b: 20 * (np.exp(-4 * SHARE) - np.exp(-4 * b)), 0.3),
}
SEEDS = (2, 3, 5, 10)


def simulate(curve: Array, noise: float, seeds: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Values (budgets, seeds) of an arm with a known curve, and of the baseline at the full budget; in points."""
    common = rng.normal(75, 0.5, seeds)
    arm = curve[:, None] + common + rng.normal(0, noise, (len(curve), seeds))
    return arm, common + rng.normal(0, noise, seeds)


def holds(interval: Interval | None, share: float) -> bool:
    """Whether an interval holds a share; an open end holds everything."""
    return interval is not None and (interval.low or 0) <= share <= (interval.high or np.inf)


def measure(name: str, seeds: int, repeats: int) -> dict[str, float | str | None]:
    """Coverage, width and bias in one case; no width where every interval is open."""
    rng = np.random.default_rng([seeds, len(name), *name.encode()])
    curve, noise = CURVES[name]
    truth = curve(np.array(BUDGETS))
    found = [equivalence(BUDGETS, *simulate(truth, noise, seeds, rng)) for _ in range(repeats)]
    closed = [e.interval for e in found if e.interval.low is not None and e.interval.high is not None]
    shares = [e.share for e in found if e.share is not None]
    return {
        "curve": name,
        "seeds": seeds,
        "t_inversion": float(np.mean([holds(e.interval, SHARE) for e in found])),
        "bootstrap": float(np.mean([holds(e.bootstrap, SHARE) for e in found])),
        "ceiling": bootstrap_ceiling(seeds),
        "open": 1 - len(closed) / repeats,
        "width": float(np.median([i.high - i.low for i in closed])) if closed else None,
        "bias": float(np.mean(shares) - SHARE),
    }


HEAD = """\
| curve | seeds | t inversion | bootstrap | its ceiling | open | median width | bias |
|---|---|---|---|---|---|---|---|"""


def line(row: dict[str, float | str | None]) -> str:
    """A case as a line of the table below `HEAD`."""
    shares = ("t_inversion", "bootstrap", "ceiling", "open", "width", "bias")
    return f"| {row['curve']} | {row['seeds']} | {' | '.join(_percent(row[k]) for k in shares)} |"


def _percent(share: Any) -> str:
    return "none" if share is None else f"{100 * share:.1f} %"
