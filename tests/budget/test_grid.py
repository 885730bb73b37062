"""Plans and their cells: what a plan may say, and the recipes that it becomes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from vitwarm.budget.grid import Work, make_grid, required_stage
from vitwarm.budget.launch import Launch, _devices
from vitwarm.budget.metrics import measured
from vitwarm.budget.plan import find_plan, list_plans, read_plan
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.study import StudyFolder

PLAN = {
    "arms": {"default": {"recipe": "digits_default"}, "warmed": {"recipe": "digits_proc"}},
    "budgets": ["25%", "50%", "100%"],
    "seeds": [0, 1],
}
PAGE = {"label": "x", "arm": "warmed", "metric": "top1", "value": 79.21, "source": "y"}
STEPS = {"warmup": 250, "images": 1000}  # so the warm-up is a quarter of the main stage


@pytest.mark.parametrize(
    ("visible", "jobs", "each"),
    [
        (None, 1, [None]),
        (None, 2, ["0,2", "1"]),  # of three
        (None, 4, ["0", "1", "2", "0"]),
        ("5", 2, ["5", "5"]),
    ],
)
def test_cells_take_equal_parts_of_the_gpus_or_share_them(monkeypatch, visible, jobs, each):
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(visible.split(",")) if visible else 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [_devices(Launch(jobs=jobs), slot) for slot in range(jobs)] == each


def read(folder: Path, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (PLAN | changes).items() if v is not None}))
    return read_plan(path)


def measure(config):
    stages = STEPS if config.warmup.budget != "0" else {"images": STEPS["images"]}
    return {s: Work(n, 64 * n, 64 * 16 * n, 1e6 * n, 0.01 * n) for s, n in stages.items()}


def grid(folder: Path, **changes):
    return make_grid(read(folder, **changes), folder / "cells", measure)


def cell(found, arm, budget, seed=0):
    return next(c for c in found.cells if (c.arm, c.budget, c.seed) == (arm, budget, seed))


def test_cells_are_arms_times_budgets_times_seeds_full_ones_first(tmp_path):
    found = grid(tmp_path)
    assert [c.budget for c in found.cells] == [1.0] * 4 + [0.5] * 4 + [0.25] * 4
    assert len({c.hash for c in found.cells}) == len({c.folder for c in found.cells}) == 12


def test_a_cell_is_the_recipe_that_its_command_line_gives(tmp_path):
    for one in grid(tmp_path).cells:
        assert recipe_hash(load_recipe(list(one.arguments))) == one.hash


def test_a_cells_command_line_sets_each_key_once(tmp_path):
    """The command refuses a key with two values; the cell's own setting must be the one that stands."""
    own = {"train.lr_warmup": "10 epochs", "images.epochs": 40}
    found = grid(
        tmp_path, set={"train.lr_warmup": "5 epochs"}, arms={n: a | {"set": own} for n, a in PLAN["arms"].items()}
    )
    for one in found.cells:
        keys = [word.partition("=")[0] for word in one.arguments]
        assert len(set(keys)) == len(keys)
        assert (
            one.config.images.epochs == pytest.approx(40 * one.budget)
            and "train.lr_warmup=5 epochs" not in one.arguments
        )


def test_additive_budgets_shorten_the_main_stage_alone(tmp_path):
    found = grid(tmp_path)
    for arm, warmup in (("default", "0"), ("warmed", "1000 steps")):
        for budget in (0.25, 0.5, 1.0):
            config = cell(found, arm, budget).config
            assert config.images.epochs == pytest.approx(60 * budget)
            assert config.warmup.budget == warmup


def test_substitutive_budgets_pay_for_the_warmup(tmp_path):
    found = grid(tmp_path, setting="substitutive", budgets=["50%", "100%"])
    assert cell(found, "default", 0.5).config.images.epochs == 30
    assert cell(found, "warmed", 0.5).config.images.epochs == pytest.approx(60 * 0.25)
    assert cell(found, "warmed", 1.0).config.images.epochs == pytest.approx(60 * 0.75)


@pytest.mark.parametrize("unit", ["samples", "tokens", "flops", "device_seconds"])
def test_the_unit_says_what_the_warmup_costs(tmp_path, unit):
    factor = {"samples": 1, "tokens": 2, "flops": 3, "device_seconds": 0.5}

    def by_unit(config):
        work = measure(config)
        if "warmup" in work:
            w = work["warmup"]
            work["warmup"] = Work(w.steps, w.samples, 2 * w.tokens, 3 * w.flops, 0.5 * w.device_seconds)
        return work

    plan = read(tmp_path, setting="substitutive", unit=unit, budgets=["100%"])
    found = make_grid(plan, tmp_path, by_unit)
    assert cell(found, "warmed", 1.0).main == pytest.approx(1 - 0.25 * factor[unit])
    assert found.warmup_share("warmed") == pytest.approx(0.25 * factor[unit])


def test_shorter_runs_go_on_from_where_the_full_one_left_its_warmup(tmp_path):
    found = grid(tmp_path)
    whole, half = cell(found, "warmed", 1.0), cell(found, "warmed", 0.5)
    assert whole.config.run.keep_at == [250]
    assert half.needs == whole.folder / "checkpoints/step-00000250" and str(half.needs) in " ".join(half.arguments)
    assert half.trunk is None and set(half.work) == {"images"} and half.work["images"].steps == 500
    assert cell(found, "default", 0.5).needs is None


def test_branches_leave_the_trunk_before_they_cool_down(tmp_path):
    wsd = {"train.schedule": "wsd", "train.cooldown": "20%"}
    found = grid(tmp_path, points="branched", set=wsd)
    whole = cell(found, "warmed", 1.0)
    steps = {b: 250 + round(1000 * b * 0.8) - 1 for b in (0.25, 0.5)}
    assert whole.config.run.keep_at == [250, *sorted(steps.values())]
    assert whole.config.train.lr_warmup == "100 steps"  # 10 % of the full run; as many in its branches
    for budget, step in steps.items():
        branch = cell(found, "warmed", budget)
        assert branch.trunk == whole.hash and branch.needs.name == f"step-{step:08d}"
        assert branch.config.train.lr_warmup == "100 steps"
        assert branch.work["images"].steps == pytest.approx(1000 * budget - (step - 250))
    with pytest.raises(UserError, match="train.schedule: wsd"):
        grid(tmp_path, points="branched")


def test_reading_off_one_long_run_needs_no_shorter_ones(tmp_path):
    assert {c.budget for c in grid(tmp_path, points="crossing").cells} == {1.0}


def test_arms_may_vary_in_what_the_plan_names(tmp_path):
    arms = PLAN["arms"] | {"fast": {"recipe": "digits_proc", "set": {"train.lr": 5e-3}}}
    with pytest.raises(UserError, match="arm fast differs from default in train.lr"):
        grid(tmp_path, arms=arms)
    assert cell(grid(tmp_path, arms=arms, tuned=["train.lr"]), "fast", 1.0).config.train.lr == 5e-3
    longer = PLAN["arms"] | {"longer": {"recipe": "digits_default", "set": {"images.epochs": 500}}}
    plan = read(tmp_path, arms=longer, tuned=["images.epochs"])
    with pytest.raises(UserError, match=r"arm longer sees 64,000 samples, default 6,400; a budget is a share"):
        make_grid(plan, tmp_path, lambda c: {"images": Work(0, 64_000 if c.images.epochs == 500 else 6_400, 0, 0)})


@pytest.mark.parametrize(
    ("stage", "task", "metrics"),
    [
        ("algorithmic", "language", {"loss", "accuracy", "exact"}),
        ("text", "language", {"loss", "accuracy"}),
        ("text", "mathematics", {"loss", "accuracy", "exact"}),
        ("text", "cola", {"loss", "accuracy", "matthews"}),
        ("text", "qqp", {"loss", "accuracy", "f1"}),
        ("text", "mnli", {"loss", "accuracy"}),
    ],
)
def test_a_plan_asks_for_what_its_stage_measures(stage, task, metrics):
    config = Config()
    assert measured(replace(config, text=replace(config.text, task=task)), stage) == metrics


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"seeds": []}, "seeds is missing or empty"),
        ({"seeds": [0, 0]}, "comes twice"),
        ({"seeds": ["x"]}, "seeds: whole numbers"),
        ({"budgets": ["50%", "120%"]}, "a share goes up to 100%"),
        ({"budgets": ["50%"]}, "budgets lacks 100%"),
        ({"budgets": ["3 epochs", "100%"]}, "is not a share"),
        ({"baseline": "defalt"}, "no arm named 'defalt'; did you mean default"),
        ({"arms": {"default": {"recipe": "digits_default"}}}, "needs at least two"),
        ({"arms": PLAN["arms"] | {"x": "digits_proc"}}, "arms.x: write"),
        ({"unit": "steps"}, "unit is one of samples"),
        ({"metric": "topp1"}, "metric is one of top1"),
        ({"metric": ["top1"]}, "metric is one of top1"),
        ({"metric": "exact"}, "a run on images gives no exact; set metric to one of loss, top1, top5"),
        ({"metric": "f1"}, "a run on images gives no f1"),
        ({"tuned": [["train.lr"]]}, "tuned: no key"),
        ({"set": {"run": {"dir": "x"}}}, "run.dir belongs to the study"),
        ({"published": [{"label": "x", "warmup": float("nan"), "needed": 50, "source": "y"}]}, "published: a list of"),
        ({"arms": PLAN["arms"] | {"../x": {"recipe": "digits_proc"}}}, "part of a folder's name"),
        ({"sedes": [0]}, "unknown key sedes; did you mean seeds"),
        ({"set": {"recipe": "digits_proc"}}, "recipe belongs to the study"),
        (
            {"arms": PLAN["arms"] | {"x": {"recipe": "digits_mimetic", "set": {"recipe": "digits_proc"}}}},
            "recipe belongs",
        ),
        ({"set": {"images.val": ""}}, "measure nothing without validation images; set images.val"),
        ({"set": {"seed": 3}}, "seed belongs to the study"),
        ({"tuned": ["train.lrr"]}, "tuned: no key train.lrr; did you mean train.lr"),
        ({"tuned": ["images.subset"]}, "tuned: images.subset says what is measured"),
        ({"arms": PLAN["arms"] | {"x": {"recipe": "digits_mimetic", "label": "warmed"}}}, "two are called 'warmed'"),
        ({"effect": -1}, "effect is a positive number"),
        ({"published": [{"label": "x"}]}, "published: a list of"),
        ({"published": [PAGE | {"value": "high"}]}, "published: a list of"),
        ({"published": [PAGE | {"budget": 50}]}, "published: a list of"),
        ({"published": "the paper"}, "published: a list of"),
        ({"published": [PAGE | {"arm": "warmd"}]}, "published: no arm 'warmd'; did you mean warmed"),
        ({"published": [PAGE | {"metric": "top2"}]}, "published: no metric 'top2'"),
        ({"published": [PAGE | {"arm": ["warmed"]}]}, "published: no arm"),
        ({"set": {"train.lrr": 1}}, "unknown key train.lrr"),
        ({"arms": PLAN["arms"] | {"twin": {"recipe": "digits_default"}}}, "are the same recipe"),
        ({"arms": PLAN["arms"] | {"given": {"recipe": "digits_default", "set": {"init_from": "a"}}}}, "what that cost"),
        (
            {"arms": PLAN["arms"] | {"g": {"recipe": "digits_proc", "set": {"transfer.sources": {"attention": "a"}}}}},
            "what that cost",
        ),
        ({"setting": "substitutive"}, "nothing is left for the main stage of arm warmed"),
        ({"arms": {"a": {"recipe": "no_such"}, "b": {"recipe": "digits_proc"}}}, "no recipe named 'no_such'"),
    ],
)
def test_bad_plans_are_refused_in_one_line(tmp_path, changes, why):
    with pytest.raises(UserError, match=why) as caught:
        grid(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_number_is_no_key(tmp_path):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN | {8: 1, "sedes": [0]}, sort_keys=False))
    with pytest.raises(UserError, match="unknown key 8"):
        read_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    "word", ["seeds=x", "budgets=10", "effect=-1", "unit=steps", "baseline=x", "arms=x", "seed=3", "recipe=digits_proc"]
)
def test_a_mistake_on_the_command_line_is_not_the_plan_s(tmp_path, word):
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    key, _, value = word.partition("=")
    with pytest.raises(UserError, match=f"^command line: {key}") as caught:
        read_plan(tmp_path / "plan.yaml", {key: value})
    assert "\n" not in str(caught.value)


def test_the_command_line_overrides_plan_and_recipe(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    given = {"seeds": "[3,4]", "setting": "substitutive", "images.epochs": "20", "warmup.rule.k": "3"}
    plan = read_plan(path, given)
    assert (plan.seeds, plan.setting) == ((3, 4), "substitutive")
    path.write_text(
        yaml.safe_dump(
            PLAN
            | {
                "arms": {
                    "default": PLAN["arms"]["default"],
                    "warmed": {
                        "recipe": "digits_proc",
                        "set": {"images": {"epochs": 7}, "warmup.rule": {"name": "dyck", "k": 5}},
                    },
                }
            }
        )
    )
    recipe = read_plan(path, given).recipe_of("warmed")
    assert (recipe.images.epochs, recipe.warmup.rule["k"]) == (20, 3)  # also what an arm sets for itself


def test_a_study_of_one_budget_is_the_start_of_one_of_several(tmp_path):
    """Its runs have kept what the shorter ones go on from."""
    first, more = (cell(grid(tmp_path, budgets=b), "warmed", 1.0) for b in (["100%"], ["50%", "100%"]))
    assert first.hash == more.hash and first.config.run.keep_at == more.config.run.keep_at == [250]


def test_an_arm_is_a_recipe_beside_the_plan_or_a_variant_of_one(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: digits_proc\nvariants: {small: {seed: 3, train: {lr: 0.5}}}")
    plan = read(tmp_path, arms={"a": {"recipe": "mine.yaml"}, "b": {"recipe": "mine.yaml:small"}}, baseline="a")
    monkeypatch.chdir("/")
    assert [plan.recipe_of(arm).train.lr for arm in "ab"] == [2e-3, 0.5]


@pytest.mark.parametrize("name", [name for name, _ in list_plans()])
def test_every_shipped_plan_has_its_cells(name, tmp_path):
    plan = read_plan(find_plan(name), {"seeds": "0"})  # of each seed the same
    found = make_grid(plan, tmp_path, measure_any)
    assert len(found.cells) == len(plan.arms) * len(plan.budgets) * len(plan.seeds)
    assert not found.warnings


def test_a_measured_rate_belongs_to_a_recipe(tmp_path):
    """Not to an arm's name: a plan that was changed in the same folder must not use it."""
    plan = read(tmp_path, train_images=1437)
    rates = {recipe_hash(plan.recipe_of(name)): {"images": 0.5, "warmup": 0.25} for name in plan.arms}
    (tmp_path / "rates.json").write_text(json.dumps(rates))

    def seconds(plan):
        work = StudyFolder(plan, tmp_path, Launch()).grid.work["warmed"]
        return {name: w.device_seconds and w.device_seconds / w.steps for name, w in work.items()}

    assert seconds(plan) == {"images": 0.5, "warmup": 0.25}
    assert seconds(read(tmp_path, train_images=1437, set={"train.weight_decay": 0.01})) == {
        "images": None,
        "warmup": None,
    }


def measure_any(config):
    sizes = {required_stage(config): 10_000} | ({"warmup": 100} if config.warmup.budget != "0" else {})
    return {s: Work(n, n, n, n) for s, n in sizes.items()}
