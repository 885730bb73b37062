"""The kit for a GPU: the page of its records, its plans, what it refuses; all of it at toy size is a long test."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import gpu_evidence
import pytest
from gpu_evidence import RATE_SEED, RATES, main, with_rates
from tarmaking import random_image, write_tar

from vitwarm.budget.evidence import MODELS, PARTS
from vitwarm.budget.plan import find_plan, read_plan
from vitwarm.cli import evidence
from vitwarm.errors import UserError
from vitwarm.reading import dump_yaml, read_yaml

TOOLS = Path(gpu_evidence.__file__).parent
ARM = {"per_seed": {"0": 50.0, "1": 51.0}, "mean": 50.5, "sd": 0.7, "holm": None, "device_seconds": 9.0}
ARM |= dict.fromkeys(("difference", "low", "high"))
SCRIPT = ["bash", str(TOOLS / "gpu_evidence.sh")]


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "cifar10.json").write_text("{}")
    with pytest.raises(UserError, match="cifar10.json is no record of tools/gpu_evidence.sh: KeyError"):
        evidence.run(evidence.Options(out=tmp_path))


def test_the_page_says_what_is_missing_and_where_a_figure_is_from(tmp_path, capsys):
    with pytest.raises(UserError, match="holds no record; give the folder that tools/gpu_evidence.sh has written to"):
        evidence.run(evidence.Options(out=tmp_path))
    shutil.copy(TOOLS.parent / "docs/results/lm_speed_124m.json", tmp_path / "gpt2.json")
    evidence.run(evidence.Options(out=tmp_path))
    shown = (tmp_path / "report.md").read_text()
    for part, (title, names) in PARTS.items():
        if part == "gpt2":
            continue
        assert f"## {title}\n\nNot measured." in shown
        assert all(f"{name}.json is missing: bash tools/gpu_evidence.sh OUT {part}" in shown for name in names)
    log = [{"event": "train", "step": i, "samples_per_s": 10.0 * i, "data_wait_pct": 5.0} for i in (1, 2, 3, 4, 5)]
    log += [{"event": "eval", "step": i, "loss": 9.0 - i} for i in range(1, 42)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    record = tmp_path / "data_images.json"
    assert main(["run", str(tmp_path / "run"), str(record), "--", "vitwarm", "train", "a=b c"]) == 0
    found = json.loads(record.read_text())
    assert found["speed"] == {"samples_per_s": 40.0, "data_wait_pct": 5.0}  # without the first two lines
    assert found["steps"] == 5 and not found["finished"]
    assert [entry["step"] for entry in found["evaluations"]] == list(range(2, 42, 3))  # some, and the last
    evidence.run(evidence.Options(out=tmp_path))
    assert capsys.readouterr().out.endswith(f"written: {tmp_path}/report.html\n")
    shown = (tmp_path / "report.md").read_text()
    assert "data_images.json is missing" not in shown and "data_images_256.json is missing" in shown
    assert "| steps | 5, then stopped |" in shown and "    vitwarm train 'a=b c'\n" in shown
    assert "| ours | 1679.2 | 1 | 76 | 0.057 | 62.3 |  |" in shown  # a benchmark, whose options are its command
    assert "    python tools/benchmark.py lm size=12_12_768 length=64 batch=2 " in shown
    assert f"Device: {found['device']}. Versions: python {found['versions']['python']}, " in shown


def test_arms_that_are_not_measured_yet_are_missing(tmp_path):
    runs, record = tmp_path / "runs", tmp_path / "cifar10.json"
    for path, content in (("a-seed0/result.json", {"device": "GPU", "versions": {"torch": "2"}}),
                          ("compare/compare.json", {"rows": [ARM | {"arm": arm} for arm in "ab"]})):  # fmt: skip
        (runs / path).parent.mkdir(parents=True)
        (runs / path).write_text(json.dumps(content))
    for arms, says in (("abc", "no finished runs of c: bash tools/gpu_evidence.sh OUT cifar10"), ("ab", None)):
        assert main(["compare", str(runs), str(record), *arms, "--", "bash", "tools/gpu_evidence.sh"]) == 0
        evidence.run(evidence.Options(out=tmp_path))
        shown = (tmp_path / "report.md").read_text()
        assert ("no finished runs of" in shown) == bool(says) and (not says or says in shown)


def test_each_arm_at_each_rate(tmp_path):
    plan = read_yaml(find_plan("text_6_6_384"))
    (tmp_path / "rates.yaml").write_text(dump_yaml(with_rates(plan, RATES)))
    tried = read_plan(tmp_path / "rates.yaml")
    assert tried.seeds == (RATE_SEED,) and len(tried.arms) == len(plan["arms"]) * len(RATES)
    assert [tried.recipe_of(f"dyck_{i}").train.lr for i in range(len(RATES))] == list(RATES)
    assert with_rates({"arms": {"bare": {"recipe": "books_small"}}}, (0.5,))["arms"]["bare_0"]["label"] == "bare, 0.5"
    assert {"name": "dyck", "k": 16, "p_open": 0.5}.items() <= tried.recipe_of("dyck_1").warmup.rule.items()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "usage: bash tools/gpu_evidence.sh OUT"),
        (["-h"], "usage"),
        (["OUT", "cifar"], "no part cifar; usage"),
        (["core"], "OUT is a folder to make, not a part; usage"),
        (["OUT"], "PyTorch sees no GPU here"),
    ],
)
def test_the_script_refuses_in_one_line(words, why, tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "SMALL": ""}
    done = subprocess.run([*SCRIPT, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(why) and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder; give the one that tools/gpu_evidence.sh has"):
        evidence.run(evidence.Options(out=tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["page"],
        ["run", "here", "there"],
        ["run", "nowhere", "there", "--", "x"],
        ["compare", "nowhere", "there", "--", "x"],
        ["lab", str(TOOLS.parent / "docs/results/lm_speed_124m.json"), "there"],
    ],
)
def test_the_record_maker_refuses_in_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.long
def test_every_part_at_toy_size(tmp_path):
    """All figures are there; a part that is stopped says so, and goes on."""
    images = [
        member
        for i in range(50)
        for member in ((f"s{i:03}.png", random_image(i, 32, 32)), (f"s{i:03}.cls", str(i % 10).encode()))
    ]
    for name in ("images", "text"):
        (tmp_path / name).mkdir()
    write_tar(tmp_path / "images/train-0.tar", images[:80])
    write_tar(tmp_path / "images/val-0.tar", images[80:])
    (tmp_path / "text/train.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (tmp_path / "text/val.txt").write_text("a slow green turtle walks under a sleeping cat. " * 20)
    given = dict.fromkeys(("DATA", "IMAGES", "IMAGES_256"), str(tmp_path / "images"))
    environment = os.environ | given | {"TEXT": str(tmp_path / "text"), "SMALL": "1"}

    def run(*words, **more):
        command = [*SCRIPT, str(tmp_path / "out"), *words]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True)

    stopped = run("core", LIMIT="1")
    assert stopped.returncode == 75 and "core: stopped by its time limit; run it again" in stopped.stdout
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{part}: measured" in done.stdout for part in PARTS)
    records = sorted(path.stem for path in (tmp_path / "out").glob("*.json"))
    assert records == sorted(name for _, names in PARTS.values() for name in names)
    assert {f"speed_{model}" for model in MODELS} <= set(records)
    assert all(path.stat().st_size < 12_000 for path in (tmp_path / "out").glob("*.json"))
    shown = (tmp_path / "out/report.md").read_text()
    assert not any(words in shown for words in ("is missing", "runs are finished", "crashed"))
    lacking = run("cifar10", DATA="")
    assert lacking.returncode == 2 and "cifar10: set DATA=FOLDER" in lacking.stderr
