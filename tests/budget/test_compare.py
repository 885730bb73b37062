"""Comparisons over run folders written here with known numbers."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from vitwarm.budget.compare import compare, markdown, report
from vitwarm.budget.metrics import counted
from vitwarm.budget.runs import read_arm
from vitwarm.budget.seeds import seed_rows
from vitwarm.config import Config, TextConfig
from vitwarm.data.text.glue import TASKS
from vitwarm.errors import UserError
from vitwarm.recipe import freeze, load_recipe


def write_run(folder: Path, top1: float, *overrides: str, recipe: str = "digits_proc") -> None:
    config = load_recipe([f"recipe={recipe}", *overrides])
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(freeze(config))
    stages = {}
    if config.images.train:
        stages["images"] = {"flops": 2e9, "samples": 1000, "seconds": 20.0, "metrics": {}}
    if config.warmup.budget != "0":
        stages["warmup"] = {"flops": 1e9, "samples": 500, "seconds": 5.0, "metrics": {}}
    result = {
        "seed": config.seed,
        "stages": stages,
        "metrics": {"top1": top1, "count": 360.0},
        "versions": {},
        "processes": 2,
    }
    (folder / "result.json").write_text(json.dumps(result))
    lines = [
        {"event": "train", "stage": "images", "step": 5, "loss": 1.0},
        {"event": "eval", "stage": "images", "step": 10, "top1": top1 / 2},
        {"event": "eval", "stage": "images", "step": 20, "top1": top1},
    ]
    if "warmup" in stages:
        lines.insert(0, {"event": "eval", "stage": "warmup", "step": 7, "accuracy": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


DEFAULT, WARMED = (0.70, 0.72, 0.71), (0.74, 0.73, 0.76)


@pytest.fixture
def arms(tmp_path):
    for seed, (a, b) in enumerate(zip(DEFAULT, WARMED, strict=True)):
        write_run(tmp_path / f"default-{seed}", a, f"seed={seed}", recipe="digits_default")
        write_run(tmp_path / f"warmed-{seed}", b, f"seed={seed}")
    return {"default": read_arm(str(tmp_path / "default-*")), "warmed": read_arm(str(tmp_path / "warmed-*"))}


def test_the_table_is_what_scipy_says_of_the_pairs(arms):
    default, warmed = compare(arms)
    expected = stats.ttest_rel(WARMED, DEFAULT).confidence_interval(0.95)
    assert (warmed.low, warmed.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert warmed.difference == pytest.approx(100 * (np.mean(WARMED) - np.mean(DEFAULT)))
    assert default.mean == pytest.approx(71) and default.sd == pytest.approx(100 * np.std(DEFAULT, ddof=1))
    assert default.difference is None and warmed.per_seed == pytest.approx({0: 74, 1: 73, 2: 76})
    assert (default.warmup_share, warmed.warmup_share) == (0, 0.5)
    assert warmed.flops / default.flops == 1.5
    assert (default.device_seconds, warmed.device_seconds) == (40, 50)
    assert default.holm is None and warmed.holm == pytest.approx(stats.ttest_rel(WARMED, DEFAULT).pvalue)


def test_several_comparisons_are_adjusted_for_and_said_so(arms):
    third = {"third": arms["warmed"], "again": arms["default"]}
    rows = compare(arms | third)
    p = stats.ttest_rel(WARMED, DEFAULT).pvalue
    assert [r.holm for r in rows] == [None, *[pytest.approx(value) for value in (min(3 * p, 1), min(3 * p, 1), 1)]]
    assert "adjusted for 3 comparisons" in markdown(rows, arms | third)
    assert "Holm" not in markdown(compare(arms), arms)


@pytest.mark.parametrize("changed", ["warmed-1", "default-2"])
def test_runs_that_read_other_data_are_not_compared(arms, tmp_path, changed):
    for folder in tmp_path.glob("*-?"):
        count = 12 if folder.name == changed else 9
        (folder / "data.json").write_text(json.dumps({"images.train": "18 images", "images.val": f"{count} images"}))
    again = {arm: read_arm(str(tmp_path / f"{arm}-*")) for arm in arms}
    for table in (compare, lambda both: seed_rows(both, ["top1"])):
        with pytest.raises(
            UserError, match=rf"{changed} read other data than \S*default-0 \(images\.val: 12 images, there 9"
        ):
            table(again)
    (tmp_path / changed / "data.json").write_text(json.dumps({"images.train": "18 images", "images.val": "9 images"}))
    assert compare({arm: read_arm(str(tmp_path / f"{arm}-*")) for arm in arms}) == compare(arms)


def test_what_the_intervals_and_times_do_not_cover_is_said(arms, tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"given-{seed}", 0.7, f"seed={seed}", "init_from=a.safetensors", recipe="digits_default")
        file = tmp_path / f"given-{seed}" / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"versions": {"torch": f"2.{seed}"}, "device": "b"}))
    text = markdown(compare(arms), arms)
    assert "same weights" not in text and "different" not in text
    arms |= {"given": read_arm(str(tmp_path / "given-*"))}
    text = markdown(compare(arms), arms)
    assert "given: every seed starts from the same weights, so its spread lacks that of the warm-up." in text
    assert "different devices (None; b)" in text and "different versions: torch 2.0, torch 2.1, torch 2.2." in text


def test_keys_that_were_chosen_for_each_arm_are_shown(arms, tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"tuned-{seed}", 0.75, f"seed={seed}", "train.lr=3e-3")
    tuned = arms | {"tuned": read_arm(str(tmp_path / "tuned-*"))}
    rows = compare(tuned, ["train.lr"])
    assert [r.tuned["train.lr"] for r in rows] == [2e-3, 2e-3, 3e-3]
    assert "| 0.003 |" in markdown(rows, tuned)
    with pytest.raises(UserError, match=r"no key train\.Lr; did you mean train\.lr\?"):
        compare(tuned, ["train.Lr"])
    with pytest.raises(UserError, match=r"images\.val says what is measured"):
        compare(tuned, ["train.lr", "images.val"])
    with pytest.raises(UserError, match=r"images\.epochs"):
        write_run(tmp_path / "other-0", 0.7, "seed=0", "images.epochs=7")
        compare({"default": arms["default"][:1], "other": read_arm(str(tmp_path / "other-*"))}, ["train.lr"])
    with pytest.raises(UserError, match=r"train\.lr, in one arm"):
        write_run(tmp_path / "mixed-0", 0.7, "seed=0")
        write_run(tmp_path / "mixed-1", 0.7, "seed=1", "train.lr=3e-3")
        compare({"a": read_arm(str(tmp_path / "mixed-*")), "b": arms["default"][:2]}, ["train.lr"])
    with pytest.raises(UserError, match=r"warmup\.\S+, in one arm"):
        write_run(tmp_path / "rules-0", 0.7, "seed=0")
        write_run(tmp_path / "rules-1", 0.7, "seed=1", "warmup.budget=7 steps")
        compare({"a": read_arm(str(tmp_path / "rules-*")), "b": arms["default"][:2]})


def test_what_is_no_result_is_not_taken_for_one(arms, tmp_path):
    """Logs and smoke runs that match a pattern; runs without validation data."""
    (tmp_path / "default-0.log").write_text("a log")
    write_run(tmp_path / "default-0-smoke", 0.1, "seed=0", "run.smoke=true", recipe="digits_default")
    assert [run.folder for run in read_arm(str(tmp_path / "default-*"))] == [run.folder for run in arms["default"]]
    with pytest.raises(UserError, match="but smoke runs, which are no results"):
        read_arm(str(tmp_path / "default-*-smoke"))
    result = json.loads((tmp_path / "warmed-1/result.json").read_text()) | {"metrics": {"count": 0.0}}
    (tmp_path / "warmed-1/result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="warmed-1 has measured no top1"):
        compare(arms | {"warmed": read_arm(str(tmp_path / "warmed-*"))})


def test_what_an_arm_starts_from_is_part_of_its_cost(tmp_path):
    """A warm-up by itself; two runs of both stages that start from it or from each other; a composition of all."""
    write_run(tmp_path / "warm", 0.5, "images.train=", "warmup.budget=500 steps")
    write_run(tmp_path / "both", 0.7)
    (tmp_path / "both/warmup").mkdir()
    starts = {
        "first": [f"init_from={tmp_path}/warm"],  # the whole of it
        "second": [f"init_from={tmp_path}/both"],  # of a run that warmed up, its warmed model
        "third": [f"init_from={tmp_path}/both/export"],  # or what it trained
        "chain": [f"init_from={tmp_path}/first/export"],
        "again": [f"init_from={tmp_path}/first"],  # which had no warm-up of its own: all of it
        "composed": [f"transfer.sources={{attention: {tmp_path}/warm, mlp: {tmp_path}/chain/export}}"],
        "foreign": ["init_from=timm:vit_tiny_patch16_224"],
    }
    for name, start in starts.items():
        write_run(tmp_path / name, 0.7, *start, recipe="digits_default")
    (tmp_path / "first/warmup").mkdir()  # with what it was given
    rows = compare({name: read_arm(str(tmp_path / name)) for name in starts})
    assert [r.flops / 1e9 for r in rows] == [3, 3, 5, 5, 5, 7, 2]
    assert [r.device_seconds for r in rows] == [50, 50, 90, 90, 90, 130, 40]
    assert [r.warmup_share for r in rows] == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0]
    assert [r.unknown for r in rows] == [[], [], [], [], [], [], ["timm:vit_tiny_patch16_224"]]


def test_losses_have_four_decimals(arms):
    rows = [replace(row, metric="loss") for row in compare(arms)]
    table = markdown(rows, arms)
    assert "| 74.0000, 73.0000, 76.0000 | +3.3333 [" in table


def test_one_seed_decides_nothing(arms):
    rows = compare({name: runs[:1] for name, runs in arms.items()})
    assert rows[1].low is None and rows[1].sd is None
    assert "no difference is detectable" in markdown(rows, arms)
    assert " images; seeds " in markdown(rows, arms)


@pytest.mark.parametrize(
    ("stage", "task", "unit"),
    [
        ("images", "language", "images"),
        ("algorithmic", "language", "questions"),
        ("text", "language", "predictions"),
        ("text", "mathematics", "questions"),
        *(("text", task, "examples") for task in TASKS),
    ],
)
def test_a_comparison_says_what_its_evaluations_count(stage, task, unit):
    assert counted(Config(text=TextConfig(task=task)), stage) == unit


@pytest.mark.parametrize("package", ["scipy", "matplotlib"])
def test_what_is_not_installed_is_named_with_its_command(arms, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"need.? {package}: pip install 'vitwarm\[plot\]'"):
        report(arms, tmp_path / "out")


def test_verdicts_follow_the_interval(arms, tmp_path):
    text = markdown(compare(arms), arms)
    excludes = stats.ttest_rel(WARMED, DEFAULT).pvalue < 0.05
    assert ("excludes zero" in text) == excludes
    write_run(tmp_path / "far-0", 0.9, "seed=0")
    write_run(tmp_path / "far-1", 0.921, "seed=1")
    write_run(tmp_path / "far-2", 0.909, "seed=2")
    far = arms | {"far": read_arm(str(tmp_path / "far-*"))}
    assert "far: the interval excludes zero; these seeds show a difference" in markdown(compare(far), far)
    rows = compare(far)
    near = [rows[0], rows[1], replace(rows[2], holm=0.064)]
    assert "far: the interval excludes zero, but not among 2 comparisons (p 0.064 by Holm)" in markdown(near, far)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": {"top1": float("nan"), "count": 1.0}}, "its top1 is nan, no finite number; leave this seed out"),
        ({"metrics": {"top1": None, "count": 1.0}}, "its top1 is None, no finite number"),
        ({"seed": 77}, "is of seed 77, recipe.yaml of 1: they are of two runs"),
        ({"stages": {"images": {"samples": 1, "seconds": 1.0}}}, "stages.images.flops is no finite number"),
        ({"processes": "two"}, "processes"),
        ({"stages": {}}, "was trained or measured on nothing"),
        ({"stages": {"images": {"samples": 0, "seconds": 1.0, "flops": 1.0}}}, "was trained or measured on nothing"),
        ({"metrics": {"top1": 0.5}}, "was trained or measured on nothing"),
    ],
)
def test_a_damaged_result_is_named(arms, tmp_path, changes, says):
    file = tmp_path / "warmed-1/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=says):
        compare(arms | {"warmed": read_arm(str(tmp_path / "warmed-*"))})


@pytest.mark.parametrize("line", [{"step": 1, "top1": None}, {"step": 1, "top1": "x"}, {"top1": 0.5}])
def test_a_damaged_line_of_a_log_is_named(arms, tmp_path, line):
    run = read_arm(str(tmp_path / "warmed-1"))[0]
    (run.folder / "log.jsonl").write_text(json.dumps({"event": "eval", "stage": "images"} | line) + "\n")
    with pytest.raises(UserError, match="log.jsonl: a line of stage images has a step or top1 that is no number"):
        run.curve("images", "top1")


def test_the_report_has_table_curves_and_picture(arms, tmp_path):
    text = report(arms, tmp_path / "out")
    assert (tmp_path / "out/compare.md").read_text() == text
    content = json.loads((tmp_path / "out/compare.json").read_text(), parse_constant=pytest.fail)
    batch = arms["warmed"][0].config.train.global_batch
    assert content["curves"]["warmed"]["1"]["images"] == [[10 * batch, WARMED[1] / 2], [20 * batch, WARMED[1]]]
    assert content["curves"]["default"]["1"]["warmup"] == []
    warmup_batch = arms["warmed"][0].config.warmup.global_batch
    assert content["curves"]["warmed"]["1"]["warmup"] == [[7 * warmup_batch, 0.5]]
    for name in ("compare.png", "differences.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("override", "named"), [("train.lr=1e-4", "train.lr"), ("images.epochs=7", "images.epochs"), ("seed=9", "seeds")]
)
def test_arms_that_differ_in_more_than_the_start_are_refused(tmp_path, override, named):
    write_run(tmp_path / "a", 0.7, recipe="digits_default")
    write_run(tmp_path / "b", 0.7, override)
    with pytest.raises(UserError, match=named):
        compare({"a": read_arm(str(tmp_path / "a")), "b": read_arm(str(tmp_path / "b"))})


def test_initialisations_are_arms_and_the_rest_of_the_model_is_not(tmp_path):
    write_run(tmp_path / "a", 0.7, recipe="digits_default")
    write_run(tmp_path / "b", 0.8, "model.init=mimetic", recipe="digits_default")
    write_run(tmp_path / "c", 0.8, "model.init=mimetic", "model.num_classes=11", recipe="digits_default")
    a, b, c = ({name: read_arm(str(tmp_path / name))} for name in "abc")
    assert compare(a | b)[1].difference == pytest.approx(10)
    with pytest.raises(UserError, match=r"model\.num_classes"):
        compare(a | c)


def test_what_is_no_arm_is_refused(tmp_path, arms):
    with pytest.raises(UserError, match="no run folder matches"):
        read_arm(str(tmp_path / "nothing-*"))
    with pytest.raises(UserError, match="same seed"):
        write_run(tmp_path / "default-9", 0.5, "seed=0", recipe="digits_default")
        read_arm(str(tmp_path / "default-*"))
    (tmp_path / "warmed-0/result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        read_arm(str(tmp_path / "warmed-*"))
    with pytest.raises(UserError, match="two arms"):
        compare({"default": arms["default"]})
