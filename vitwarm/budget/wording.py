"""The results of a study in sentences: every number with its uncertainty beside it."""

from vitwarm.budget.efficiency import ArmRow, Mean, Study
from vitwarm.budget.equivalence import AT_MOST, NEVER, REACHED, Interval


def share_text(share: float | None) -> str:
    """A share that the plan sets: `1 %`, `62.5 %`."""
    return "" if share is None else f"{100 * share:.3g} %"


def mean_text(mean: Mean, form: str) -> str:
    """`+1.53 [+0.90, +2.12]`, without the interval where there is none."""
    if mean.value is None:
        return ""
    text = format(mean.value, form)
    return text if mean.low is None else f"{text} [{mean.low:{form}}, {mean.high:{form}}]"


def needed_text(arm: ArmRow) -> str:
    """The share that the arm needs: `72.1 % [61.0, 85.3]`."""
    found = arm.equivalence
    if found.share is None:
        return "not reached" if found.state == NEVER else "unknown"
    at_most = "at most " if found.state == AT_MOST else ""
    return f"{at_most}{_estimate(found.share)}{_bracket(found.interval, found.covered)}"


def saved_text(arm: ArmRow, cost: float = 0.0) -> str:
    """The share of the full budget that is saved, less a cost: `27.9 % [14.7, 39.0]`."""
    found = arm.equivalence
    if found.share is None:
        return ""

    def left(share: float | None) -> float | None:
        return None if share is None else 1 - share - cost

    interval = found.interval and Interval(left(found.interval.high), left(found.interval.low))
    at_least = "at least " if found.state == AT_MOST else ""
    ends = left(found.covered[1]), left(found.covered[0])
    return f"{at_least}{_estimate(left(found.share))}{_bracket(interval, ends)}"


def bootstrap_text(arm: ArmRow) -> str:
    """The bootstrap interval of the share that the arm needs."""
    return _bracket(arm.equivalence.bootstrap, arm.equivalence.covered).strip()


def crossing_text(arm: ArmRow) -> str:
    """The share at which the full-length runs first pass the baseline's final value."""
    crossing = arm.crossing
    found = [s for s in crossing.shares.values() if s is not None]
    if not crossing.shares:
        return "unknown"
    if crossing.mean is None:
        return f"{len(found)} of {len(crossing.shares)} seeds pass it"
    if crossing.low is None:
        return _estimate(crossing.mean)
    return f"{_estimate(crossing.mean)} [{100 * max(crossing.low, 0):.1f}, {100 * min(crossing.high, 1):.1f}]"


def headline(study: Study) -> list[str]:
    """The answer, a sentence or two for each arm."""
    return [_answer(study, arm) for arm in study.others]


def _answer(study: Study, arm: ArmRow) -> str:
    found, base, data = arm.equivalence, study.baseline, study.data
    if found.state == NEVER:
        text = (
            f"The arm {arm.name} does not reach the full-budget value of {base} with up to "
            f"{share_text(found.covered[1])} of the {data}, so no number can be given."
        )
        if found.interval and found.interval.low is not None and found.interval.low < found.covered[1]:
            text += f" These seeds do not rule out that {_estimate(found.interval.low)} or more would be enough."
        return text
    if found.state not in (REACHED, AT_MOST):
        return _read_off(study, arm)
    net = bool(arm.warmup) and study.setting == "additive"
    start = (
        f"{share_text(arm.warmup)} warm-up ({arm.name})" if arm.warmup else f"The start {arm.name}, without a warm-up,"
    )
    paid = ", its own cost included" if arm.warmup and not net else ""
    text = f"{start} is worth {saved_text(arm)} of the {data} in this recipe{paid}: {needed_text(arm)} of "
    text += f"{'it' if data == 'device time' else 'them'} are enough to be as good as {base} with all."
    if found.state == AT_MOST:
        text += " That is the smallest budget of the plan; smaller ones would give the number."
    if net:
        costly = ": it costs more than it saves" if 1 - found.share < arm.warmup else ""
        text += f" Less its own cost, {saved_text(arm, arm.warmup)} is left{costly}."
    return text + _doubt(study, arm, net)


def _doubt(study: Study, arm: ArmRow, net: bool) -> str:
    """A sentence on what the interval does not rule out."""
    interval, seeds = arm.equivalence.interval, max(arm.equivalence.pairs)
    if interval is None:
        return " One seed has no interval; no difference is detectable."
    if interval.high is None:
        return f" The interval is open: {seeds} seeds do not show that anything is saved."
    if net and interval.high + arm.warmup >= 1 > arm.equivalence.share + arm.warmup:
        return f" That interval includes zero: {seeds} seeds do not show that anything is left."
    return ""


def difference_sentence(study: Study, arm: ArmRow) -> str:
    """The arm against the baseline at the full budget."""
    mean = arm.difference
    if mean.value is None:
        return f"{arm.name} at the full budget: no seed has a result in both arms."
    text = f"{arm.name} at the full budget: {mean_text(mean, study.signed)} {study.unit} against {study.baseline}"
    if mean.low is None:
        return f"{text}; no difference is detectable with one seed."
    if not (mean.low > 0 or mean.high < 0):
        return f"{text}; no difference is detectable with {arm.pairs} seeds."
    if arm.p_holm is not None and arm.p_holm >= 0.05:
        alone = f"show a difference by itself, not among {len(study.others)} comparisons"
        return f"{text}; {arm.pairs} seeds {alone} (p {arm.p_holm:.2g} by Holm)."
    return f"{text}; {arm.pairs} seeds show a difference."


def _read_off(study: Study, arm: ArmRow) -> str:
    """A sentence on an arm without runs at two budgets."""
    base, crossing = study.baseline, arm.crossing
    if not crossing.shares:
        return f"Nothing can be said about the arm {arm.name} yet: it, or {base}, lacks finished runs."
    if crossing.mean is None:
        text = (
            f"The arm {arm.name}, read off one long run: {crossing_text(arm)}, the final value of {base}, on the way."
        )
    else:
        own = study.arms[0].crossing.mean
        itself = "" if own is None else f" ({base} itself after {_estimate(own)})"
        text = (
            f"Read off one long run, {arm.name} first passes the final value of {base} after {crossing_text(arm)} of "
            f"the {study.data}{itself}."
        )
    return f"{text} No run was scheduled to end there, so this is no saving that was measured."


def _estimate(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bracket(interval: Interval | None, covered: tuple[float, float] | None) -> str:
    """` [61.0, 85.3]`, in per cent; an open end is given by the last measured budget."""
    if interval is None or covered is None:
        return ""
    first, last = covered
    below, above = f"below {100 * first:.3g}", f"above {100 * last:.3g}"
    if interval.low is not None and interval.low >= last:
        return f" [{above}]"
    if interval.high is not None and interval.high <= first:
        return f" [{below}]"
    low = below if interval.low is None else f"{100 * interval.low:.1f}"
    high = above if interval.high is None else f"{100 * interval.high:.1f}"
    return f" [{low}, {high}]"
