"""Metrics seed by seed, over run folders with known numbers."""

import json
import subprocess
import sys

import pytest
from scipy import stats
from test_compare import write_run

from vitwarm.budget.runs import read_arm
from vitwarm.budget.seeds import markdown, plot, seed_rows
from vitwarm.errors import UserError

NONE, SET = (0.10, 0.12, 0.90), (0.20, 0.15, 0.95)


@pytest.fixture
def runs(tmp_path):
    for arm, values in (("none", NONE), ("set", SET)):
        for seed, top1 in enumerate(values):
            folder = tmp_path / f"{arm}-{seed}"
            write_run(folder, top1, f"seed={seed}", recipe="digits_default")
            result = json.loads((folder / "result.json").read_text())
            result |= {"start": "fresh weights", "metrics": result["metrics"] | {"loss": 3 * top1}}
            (folder / "result.json").write_text(json.dumps(result))
    return tmp_path


def arms(runs, **names):
    return {name.replace("_", "/"): read_arm(str(runs / f"{arm}-*")) for name, arm in names.items()}


def test_differences_are_paired_within_a_panel_and_losses_no_percentages(runs):
    rows = seed_rows(arms(runs, a_none="none", a_set="set", b_set="set"), ["top1", "loss"])
    assert [(r.panel, r.metric, r.arm) for r in rows] == [
        ("a", "top1", "none"), ("a", "top1", "set"), ("a", "loss", "none"), ("a", "loss", "set"),
        ("b", "top1", "set"), ("b", "loss", "set"),
    ]  # fmt: skip
    for row, scale in ((rows[1], 100), (rows[3], 3)):
        expected = stats.ttest_rel(SET, NONE).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((scale * expected.low, scale * expected.high))
        assert list(row.values.values()) == pytest.approx([scale * v for v in SET])
    assert rows[0].difference is rows[4].difference is rows[0].low is None
    assert "| set | 43.3 | 44.8 | +6.0" in markdown(rows) and "| a loss |" in markdown(rows)


def test_what_cannot_be_paired_or_drawn(runs):
    (runs / "set-2" / "result.json").rename(runs / "kept")
    with pytest.raises(UserError, match="not finished"):
        arms(runs, set="set")
    both = arms(runs, none="none") | {"two": read_arm(str(runs / "set-[01]"))}
    with pytest.raises(UserError, match=r"two has seeds \[0, 1\], not \[0, 1, 2\]"):
        seed_rows(both, ["top1"])
    with pytest.raises(UserError, match="no metric exact; it has top1"):
        seed_rows(arms(runs, none="none"), ["exact"])
    file = runs / "none-1/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"metrics": {"top1": None}}))
    with pytest.raises(UserError, match="none-1: its top1 is no finite number; leave this seed out"):
        seed_rows(arms(runs, none="none"), ["top1"])
    (runs / "none-1/result.json").unlink()
    with pytest.raises(UserError, match="one metric"):
        plot(seed_rows({"none": read_arm(str(runs / "none-[02]"))}, ["top1", "loss"]), runs / "x.png")


def test_an_arm_is_one_recipe_and_more_than_another_start_is_said(runs):
    write_run(runs / "mixed-0", 0.2, "seed=0", recipe="digits_default")
    write_run(runs / "mixed-1", 0.3, "seed=1", "train.lr=1e-4", recipe="digits_default")
    with pytest.raises(UserError, match=r"mixed-1 differs from \S*mixed-0 in train\.lr, in one arm"):
        seed_rows(arms(runs, mixed="mixed"), ["top1"])
    for seed in range(3):
        write_run(runs / f"fast-{seed}", 0.4, f"seed={seed}", "train.lr=9e-3", recipe="digits_default")
        write_run(runs / f"warmed-{seed}", 0.4, f"seed={seed}", recipe="digits_proc")
    rows = seed_rows(arms(runs, none="none", fast="fast", warmed="warmed"), ["top1"])
    assert [r.other_keys for r in rows] == [[], ["train.lr"], []]
    assert markdown(rows).endswith("\n\nfast differs from the first arm by more than its start: train.lr.")
    assert "by more" not in markdown([rows[0], rows[2]])
    for seed in range(3):  # a panel may compare data sets, which its recipes then name
        write_run(runs / f"other-{seed}", 0.4, f"seed={seed}", "images.val=elsewhere", recipe="digits_default")
        for arm, read in (("none", "9 images"), ("other", "12 images")):
            (runs / f"{arm}-{seed}" / "data.json").write_text(json.dumps({"images.val": read}))
    assert seed_rows(arms(runs, none="none", other="other"), ["top1"])[1].other_keys == ["images.val"]


def test_names_with_signs_of_markup_are_written_as_they_are(runs, tmp_path):
    rows = seed_rows({"a|b $x_y^$": read_arm(str(runs / "none-*"))}, ["top1"])
    assert "| a\\|b $x_y^$ |" in markdown(rows)
    plot(rows, tmp_path / "x.png")  # matplotlib would take it for a formula, and a wrong one
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_the_tool_writes_table_numbers_and_picture(runs):
    words = [f"none={runs}/none-*", f"set={runs}/set-*", "metrics=top1,loss"]
    words += [f"out={runs}/o.json", f"png={runs}/new/o.png"]
    command = [sys.executable, "-m", "vitwarm", "seeds", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("| top1 | mean")
    written = json.loads((runs / "o.json").read_text())
    assert [r["arm"] for r in written] == ["none", "set"] * 2 and written[0]["values"]["2"] == pytest.approx(90)
    assert (runs / "new/o.png").read_bytes()[1:4] == b"PNG"
