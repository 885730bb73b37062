"""The results of a study in sentences: every number with its uncertainty beside it."""

from vitwarm.budget.efficiency import ArmRow, Mean, Study
from vitwarm.budget.equivalence import AT_MOST, NEVER, UNKNOWN, Interval
from vitwarm.budget.statistics import without_interval

_NUMBERS = dict(enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=2))

LISTED = 4  # arms that a sentence on all of them names, and that the head of a page describes


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
        return f"{len(found)} of {len(crossing.shares)} seeds pass"
    if crossing.low is None:
        return _estimate(crossing.mean)
    return f"{_estimate(crossing.mean)} [{100 * max(crossing.low, 0):.1f}, {100 * min(crossing.high, 1):.1f}]"


def headline(study: Study) -> str:
    """What the study found, without numbers: a sentence for all arms of which the same can be said."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for arm in study.others:
        found.setdefault(_finding(study, arm), []).append(arm.label)
    every = f"any of the {len(study.others)} other arms" if len(study.others) > LISTED else None
    sentences = []
    for (text, last, more), arms in found.items():
        named = every if every and len(arms) == len(study.others) and last == "or" else _listed(arms, last)
        sentences.append(f"{text} {named}{more}.")
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _finding(study: Study, arm: ArmRow) -> tuple[str, str, str]:
    """(Words before the arm, how several arms are joined, words after it)."""
    found, cost = arm.equivalence, arm.warmup or 0.0
    if found.state == UNKNOWN:
        return _final_finding(study, arm)
    seeds = _seeds(max(found.pairs))
    low, high = (found.interval.low or 0.0, found.interval.high) if found.interval else (0.0, None)
    net = _net(study, arm)
    if found.share is None and found.interval and low >= found.covered[1]:
        return f"{seeds} rule out that anything is saved by", "or", ""
    if high is None or not _better(study, arm):
        costly = ", and the warm-up costs more than it could save" if net and low + cost > 1 else ""
        return f"{seeds} do not show that anything is saved by", "or", costly
    if not net:
        more = ", the cost of the warm-up included" if cost else ""
    elif high + cost < 1:
        more = ", also after the cost of the warm-up"
    elif low + cost > 1:
        more = ", but the warm-up costs more than it saves"
    else:
        more = ", but not that anything is left after the cost of the warm-up"
    return f"{seeds} show a saving of {study.data} by", "and", more


def _final_finding(study: Study, arm: ArmRow) -> tuple[str, str, str]:
    """The same for an arm without runs at two budgets: what its runs at the full budget show."""
    mean, metric, seeds = arm.difference, f"final {study.label.partition(',')[0]}", _seeds(arm.pairs)
    if mean.value is None:
        return "nothing can be said yet, for want of finished runs, about", "or", ""
    if mean.low is None or mean.low <= 0 <= mean.high or not _adjusted(arm):
        return f"{seeds} do not show a difference in {metric} between {study.base} and", "or", ""
    side = "better" if (mean.value > 0) == study.higher else "worse"
    return f"{seeds} show a {side} {metric} than that of {study.base} for", "and", ""


def _seeds(number: int) -> str:
    return "the runs of one seed" if number == 1 else f"{_NUMBERS.get(number, number)} seeds"


def _adjusted(arm: ArmRow) -> bool:
    """Whether the difference at the full budget is one among all comparisons of the study too; seeds that all agree
    show no spread, so that nothing can be said of it."""
    return arm.p_holm is not None and arm.p_holm < 0.05


def _better(study: Study, arm: ArmRow) -> bool:
    """Whether the arm's full budget shows a gain; a loss that is certain does not show that data are saved."""
    return _adjusted(arm) and arm.difference.value is not None and (arm.difference.value > 0) == study.higher


def _net(study: Study, arm: ArmRow) -> bool:
    """Whether the cost of the arm's warm-up is still to be taken from what it saves."""
    return bool(arm.warmup) and study.setting == "additive"


def _listed(words: list[str], last: str) -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def arm_sentences(study: Study, arm: ArmRow) -> str:
    """What the runs of an arm give, every number with its interval."""
    if arm.equivalence.state == UNKNOWN:
        return f"{difference_sentence(study, arm)} {_read_off(study, arm)}"
    return f"{_needed(study, arm)} {difference_sentence(study, arm)}"


def _needed(study: Study, arm: ArmRow) -> str:
    """How much data the arm needs."""
    found, base, data = arm.equivalence, study.base, study.data
    them = "it" if data == "device time" else "them"
    start = f"{arm.label}, a warm-up of {share_text(arm.warmup)}:" if arm.warmup else f"{arm.label}:"
    if found.share is None:
        text = (
            f"{start} the mean does not reach the final value of {base} with up to {share_text(found.covered[1])} of "
        )
        text += f"the {data}, so no number can be given."
        if found.interval and found.interval.low is not None and found.interval.low < found.covered[1]:
            text += f" It is not ruled out that {_estimate(found.interval.low)} or more would be enough."
        return text
    are = "is" if data == "device time" else "are"
    text = f"{start} {needed_text(arm)} of the {data} {are} enough to be as good as {base} with all of {them}, "
    text += f"a saving of {saved_text(arm)}{', its own cost included' if arm.warmup and not _net(study, arm) else ''}."
    if found.state == AT_MOST:
        text += " That is the smallest budget of the plan; smaller ones would give the number."
    if _net(study, arm):
        text += f" Less its own cost, the saving is {saved_text(arm, arm.warmup)}."
    return text


def difference_sentence(study: Study, arm: ArmRow) -> str:
    """The arm against the baseline at the full budget."""
    mean = arm.difference
    if mean.value is None:
        return f"{arm.label} at the full budget: no seed has a result in both arms."
    text = f"{arm.label} at the full budget: {mean_text(mean, study.signed)} {study.unit} against {study.base}"
    if mean.low is None:
        return f"{text}; {without_interval(arm.pairs)}, so that no difference is detectable."
    if not (mean.low > 0 or mean.high < 0):
        return f"{text}; no difference is detectable with {arm.pairs} seeds."
    if not _adjusted(arm):
        alone = f"show a difference by itself, not among {len(study.others)} comparisons"
        return f"{text}; {arm.pairs} seeds {alone} (p {arm.p_holm:.2g} by Holm)."
    return f"{text}; {arm.pairs} seeds show a difference."


def _read_off(study: Study, arm: ArmRow) -> str:
    """A sentence on an arm without runs at two budgets."""
    base, crossing = study.base, arm.crossing
    if not crossing.shares:
        return f"It, or {base}, lacks finished runs."
    if crossing.mean is None:
        text = f"Read off its long runs, {crossing_text(arm)} the final value of {base} on the way"
    else:
        own = study.arms[0].crossing.mean
        itself = "" if own is None else f" ({base} itself after {_estimate(own)})"
        text = f"Read off its long runs, it first passes the final value of {base} after {crossing_text(arm)} of "
        text += f"the {study.data}{itself}"
    return f"{text}: no run was scheduled to end there, so no saving was measured."


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
