"""Studies of cells whose values, and so whose answers, are known."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import stats
from studymaking import ARMS, make

from vitwarm.budget.cells import CRASHED, DONE, Status
from vitwarm.budget.efficiency import analyse, plan_warnings
from vitwarm.budget.equivalence import Interval
from vitwarm.budget.plan import Arm
from vitwarm.budget.report import write_report
from vitwarm.budget.wording import arm_sentences, difference_sentence, headline

NOISE = np.random.default_rng(0).normal(0, 0.001, (4, 3, 9))


def value(crossing, slope=0.1):
    """Accuracy 0.6 of the default at its full budget; the warmed arm has it at `crossing` of the main stage."""

    def of(arm, main, seed):
        place = 1.0 if arm == "default" else crossing
        noise = NOISE[round(4 * main) - 1, ("default", "warmed", "mimetic").index(arm), seed]
        return 0.6 + slope * np.log(main / place) + 0.05 * seed + noise

    return of


def exact(crossing, apart=1e-5):
    """The same with a mean that has no noise; the differences of the seeds are `apart`."""

    def of(arm, main, seed):
        place, spread = (1, 0.0) if arm == "default" else (crossing, apart * (seed - 1))
        return 0.6 + 0.1 * np.log(main / place) + 0.05 * seed + spread

    return of


def arm_of(study, name="warmed"):
    return next(arm for arm in study.arms if arm.name == name)


def test_the_share_that_is_needed_comes_out_and_the_warmup_is_paid_for(tmp_path):
    study = analyse(*make(tmp_path, exact(0.4)))
    arm = arm_of(study)
    assert arm.equivalence.share == pytest.approx(0.4) and arm.warmup == pytest.approx(0.1)
    assert arm.equivalence.between == (0.25, 0.5) and arm.equivalence.pairs == (3, 3, 3)
    assert headline(study) == "Three seeds show a saving of images by warmed, also after the cost of the warm-up."
    text = arm_sentences(study, arm)
    assert "warmed, a warm-up of 10 %: 40.0 % [40.0, 40.0] of the images are enough" in text
    assert "a saving of 60.0 % [60.0, 60.0]. Less its own cost, the saving is 50.0 % [50.0, 50.0]." in text


def test_a_total_budget_counts_the_warmup(tmp_path):
    """The warmed arm's main stage is a tenth shorter; 0.4 of it is what the target needs, and so half of the total."""
    study = analyse(*make(tmp_path, exact(0.4), setting="substitutive"))
    assert arm_of(study).equivalence.share == pytest.approx(0.5)
    assert headline(study) == "Three seeds show a saving of images by warmed, the cost of the warm-up included."
    assert "a saving of 50.0 % [50.0, 50.0], its own cost included." in arm_sentences(study, arm_of(study))


def test_differences_are_paired_and_have_the_intervals_of_scipy(tmp_path):
    grid, statuses = make(tmp_path, value(0.4))
    arm = arm_of(analyse(grid, statuses))
    runs = {(c.arm, c.seed): 100 * statuses[c.hash].run.result["metrics"]["top1"] for c in grid.cells if c.budget == 1}
    warmed, default = ([runs[a, s] for s in range(3)] for a in ("warmed", "default"))
    test = stats.ttest_rel(warmed, default)
    interval = test.confidence_interval()
    assert (arm.difference.low, arm.difference.high) == pytest.approx((interval.low, interval.high))
    assert arm.p == pytest.approx(test.pvalue) == arm.p_holm
    assert arm.sd_difference < 1 < arm.sd  # seeds differ by 5 points in both arms alike


def test_of_many_comparisons_one_alone_shows_nothing(tmp_path):
    arm = arm_of(study := analyse(*make(tmp_path, value(0.4))))
    assert difference_sentence(study, arm).endswith("3 seeds show a difference.")
    said = difference_sentence(study, replace(arm, p_holm=0.064))
    assert said.endswith("3 seeds show a difference by itself, not among 1 comparisons (p 0.064 by Holm).")


def test_costs_are_those_of_the_runs(tmp_path):
    study = analyse(*make(tmp_path, exact(0.4)))
    assert arm_of(study).flops == pytest.approx(1100e6) and arm_of(study, "default").flops == pytest.approx(1000e6)
    assert arm_of(study).device_seconds == pytest.approx(2 * 11)
    cell = next(c for c in study.cells if (c.arm, c.budget, c.seed) == ("warmed", 0.5, 1))
    assert (cell.samples, cell.device_seconds) == (600 * 64, pytest.approx(12))


def test_a_lost_cell_is_marked_and_its_pair_left_out(tmp_path):
    lost = [("warmed", 0.5, 1), ("default", 1.0, 2)]
    study = analyse(*make(tmp_path, value(0.4), lost=lost))
    found = {(c.arm, c.budget, c.seed): c for c in study.cells}
    for place in lost:
        assert found[place].state == CRASHED and found[place].value is None and found[place].note == "the disk is full"
    assert arm_of(study).equivalence.pairs == (2, 1, 2)  # and so 50 % is not used
    assert arm_of(study).equivalence.covered == (0.25, 1.0) and arm_of(study).equivalence.between == (0.25, 1.0)
    warning = next(w for w in study.warnings if "no usable result" in w)
    assert "2 of 18 runs" in warning and "warmed at 50 % (2 of 3)" in warning and "default at 100 % (2 of 3)" in warning
    assert arm_of(study).pairs == 2


def test_a_run_with_a_damaged_log_keeps_its_value_and_loses_its_curve(tmp_path):
    grid, statuses = make(tmp_path, exact(0.5), curve=lambda *place: 0.5)
    whole = analyse(grid, statuses)
    log = next(c.folder for c in grid.cells if (c.arm, c.budget, c.seed) == ("warmed", 1.0, 1)) / "log.jsonl"
    log.write_text(log.read_text() + "{bad\n")
    study = analyse(grid, statuses)
    assert study.points == whole.points and study.curves["warmed"].keys() == {0, 2}
    assert any("warmed, seed 1: without a curve" in text for text in study.warnings)


def test_a_lost_cell_never_changes_what_the_others_say(tmp_path):
    whole = analyse(*make(tmp_path / "a", value(0.4)))
    lost = analyse(*make(tmp_path / "b", value(0.4), lost=[("warmed", 0.25, 0)]))
    assert arm_of(whole).difference == arm_of(lost).difference
    assert [p for p in whole.points if p.budget > 0.25] == [p for p in lost.points if p.budget > 0.25]


def test_without_a_single_run_nothing_is_claimed(tmp_path):
    everything = [(a, b, s) for a in ARMS for b in (0.25, 0.5, 1.0) for s in (0, 1, 2)]
    study = analyse(*make(tmp_path, exact(0.4), lost=everything))
    assert headline(study) == "Nothing can be said yet, for want of finished runs, about warmed."
    assert arm_sentences(study, arm_of(study)).endswith("It, or default, lacks finished runs.")
    assert arm_of(study).equivalence.share is None and arm_of(study).mean.value is None


@pytest.mark.parametrize(
    ("crossing", "said"),
    [
        (0.1, "at most 25.0 % [below 25] of the images are enough"),
        (0.1, "a saving of at least 75.0 % [above 75]. That is the smallest budget of the plan"),
        (4.0, "does not reach the final value of default with up to 100 % of the images, so no number"),
    ],
)
def test_censored_answers_are_said_in_words(tmp_path, crossing, said):
    study = analyse(*make(tmp_path, value(crossing)))
    assert said in arm_sentences(study, arm_of(study))
    assert ("rule out that anything is saved by warmed" in headline(study)) == (crossing > 1)


def test_the_headline_says_one_finding_for_all_arms_that_share_it(tmp_path):
    """With a saving that is clear, one that is not, and one that is clear alone but not among all comparisons."""
    study = analyse(*make(tmp_path, value(0.4)))
    clear = arm_of(study)
    open_end = replace(clear.equivalence, interval=Interval(0.3, None))
    unclear = [replace(clear, name=n, label=n, equivalence=open_end) for n in ("a", "b", "c", "d", "e")]
    alone = replace(clear, name="f", label="f", p_holm=0.06)

    def said(*arms):
        return headline(replace(study, arms=[study.arms[0], *arms]))

    shown = "Three seeds show a saving of images by warmed, also after the cost of the warm-up."
    assert said(clear, alone, *unclear[:2]) == f"{shown} Three seeds do not show that anything is saved by f, a or b."
    assert said(*unclear) == "Three seeds do not show that anything is saved by any of the 5 other arms."
    costly = replace(clear, warmup=0.8, label="costly")
    assert said(costly).endswith("by costly, but the warm-up costs more than it saves.")


def test_an_interval_that_is_open_says_so(tmp_path):
    study = analyse(*make(tmp_path, value(0.99, slope=0.003)))
    assert arm_of(study).equivalence.interval.high is None
    assert any("interval is open" in w for w in study.warnings)


def test_a_warmup_that_costs_more_than_it_saves(tmp_path):
    study = analyse(*make(tmp_path, exact(0.95)))
    assert headline(study) == "Three seeds show a saving of images by warmed, but the warm-up costs more than it saves."
    assert "a saving of 5.0 % [5.0, 5.0]. Less its own cost, the saving is -5.0 %" in arm_sentences(
        study, arm_of(study)
    )


def test_a_full_budget_that_is_certainly_worse_shows_no_saving(tmp_path):
    """The arm's few images happen to do well, and with all of them it is worse at each seed."""

    def of(arm, main, seed):
        noise = 0.001 * (seed - 1)
        if arm == "default":
            return 0.6 + 0.1 * np.log(main)
        return 0.55 + noise if main == 1 else 0.70 + 0.15 * (seed - 1)

    study = analyse(*make(tmp_path, of))
    arm = arm_of(study)
    assert arm.p_holm < 0.05 and arm.difference.high < 0 and arm.equivalence.interval.high is not None
    assert headline(study) == "Three seeds do not show that anything is saved by warmed."


def test_seeds_that_agree_are_not_one_seed(tmp_path):
    study = analyse(*make(tmp_path, exact(0.4, apart=0.0)))
    arm = arm_of(study)
    assert headline(study) == "Three seeds do not show that anything is saved by warmed."
    assert arm.difference.low is arm.p is arm.detectable is None  # agreement is no precision
    assert difference_sentence(study, arm).endswith(
        "; 3 seeds that agree have no interval, so that no difference is detectable."
    )


def test_one_seed_has_no_interval(tmp_path):
    study = analyse(*make(tmp_path, exact(0.4), seeds=(5,)))
    assert arm_of(study).equivalence.interval is None
    assert headline(study) == "The runs of one seed do not show that anything is saved by warmed."
    assert any(w.startswith("1 seed: too few") for w in study.warnings)


def test_reading_one_long_run_stands_apart(tmp_path):
    def curve(arm, share, seed):
        return 0.6 + 0.05 * seed + (0.01 if arm == "warmed" and share >= 0.7 or share == 0.9 else -0.1)

    study = analyse(*make(tmp_path, exact(0.4), curve=curve))
    assert arm_of(study).crossing.mean == pytest.approx(0.7)
    assert arm_of(study, "default").crossing.mean == pytest.approx(0.9)  # the default against itself: luck
    assert study.curves["warmed"][1][6] == pytest.approx((0.7, 66.0))
    only = analyse(*make(tmp_path / "b", value(0.4), budgets=(1.0,), points="crossing", curve=curve))
    assert headline(only) == "Three seeds show a better final top-1 accuracy than that of default for warmed."
    said = arm_sentences(only, arm_of(only))
    assert "after 70.0 % of the images (default itself after 90.0 %): no run was scheduled" in said


def test_a_report_of_runs_that_reach_nothing_is_still_a_report(tmp_path):
    """No arm gets to the baseline, some have not run, and a log was lost."""
    arms = ARMS | {"third": replace(ARMS["warmed"], name="third")}
    lost = [("third", 1.0, seed) for seed in range(3)]

    def final(arm, main, seed):
        return 0.5 + 0.01 * seed - (0.0 if arm == "default" else 0.1 + 0.01 * seed)

    def curve(arm, share, seed):
        return 0.1 + 0.01 * seed

    grid, statuses = make(tmp_path, final, (1.0,), arms=arms, curve=curve, lost=lost, points="crossing")
    (next(c for c in grid.cells if c.arm == "warmed").folder / "log.jsonl").unlink()
    study = analyse(grid, statuses)
    write_report(study, tmp_path / "report")
    warmed, third = study.others
    assert third.p_holm is None and warmed.p_holm == pytest.approx(min(1, 2 * warmed.p))  # of two arms, in the end


def test_a_long_run_of_a_total_budget_begins_after_its_warmup(tmp_path):
    study = analyse(*make(tmp_path, exact(0.4), setting="substitutive", curve=lambda *_: 0.0))
    assert [x for x, _ in study.curves["warmed"][0]] == pytest.approx([0.1 + 0.9 * i / 10 for i in range(1, 11)])


def test_lower_is_better_for_losses(tmp_path):
    study = analyse(*make(tmp_path, lambda *a: 3 - exact(0.4)(*a), metric="loss"))
    assert arm_of(study).equivalence.share == pytest.approx(0.4) and arm_of(study).difference.value < 0


def test_a_plan_that_cannot_decide_is_told_so(tmp_path):
    grid, statuses = make(tmp_path, value(0.4), effect=0.05)
    warning = next(w for w in analyse(grid, statuses).warnings if "cannot detect" in w)
    assert "3 seeds" in warning and "effect is 0.05" in warning
    assert not plan_warnings(replace(grid.plan, effect=5.0), sd=0.2)
    assert "about 34 seeds" in plan_warnings(replace(grid.plan, effect=0.5, sd=1.0))[0]


def test_several_arms_share_the_level(tmp_path):
    arms = ARMS | {"mimetic": Arm("mimetic", "digits_default", {"model.init": "mimetic"})}
    study = analyse(*make(tmp_path, value(0.4), arms=arms))
    p = sorted(arm.p for arm in study.others)
    assert sorted(arm.p_holm for arm in study.others) == pytest.approx([min(1, 2 * p[0]), max(2 * p[0], p[1])])
    assert any("2 arms are compared" in w for w in study.warnings)
    assert arm_of(study, "mimetic").changes == [("model.init", "default", "mimetic")]


def test_runs_of_different_devices_and_versions_are_noticed(tmp_path):
    grid, statuses = make(tmp_path, exact(0.4))
    cell = grid.cells[0]
    run = statuses[cell.hash].run
    other = replace(run, result=run.result | {"device": "another", "versions": {"torch": "2.9"}})
    study = analyse(grid, statuses | {cell.hash: Status(DONE, other)})
    assert any("different devices (a device; another)" in w for w in study.warnings)
    assert any("torch 2.6 and 2.9" in w for w in study.warnings)


def test_branches_are_labelled(tmp_path):
    grid, statuses = make(tmp_path, exact(0.4))
    assert not any("branches" in w for w in analyse(grid, statuses).warnings)
    branched = [replace(c, trunk="x") if c.budget < 1 else c for c in grid.cells]
    assert any("are branches" in w for w in analyse(replace(grid, cells=branched), statuses).warnings)


def test_a_large_warmup_is_named_with_its_share(tmp_path):
    assert any("is 10 % of the main stage" in w for w in analyse(*make(tmp_path, exact(0.4))).warnings)


def test_a_study_is_plain_json(tmp_path):
    study = analyse(*make(tmp_path, value(0.4), lost=[("warmed", 0.5, 1)]), "the command")
    assert json.loads(json.dumps(asdict(study), allow_nan=False))["command"] == "the command"
