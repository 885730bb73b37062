"""The laboratory: what a plan means, what its cells share, what their folders tell."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vitwarm.analysis.inspection import attention_entropy, inspect_trunk
from vitwarm.budget.cells import CRASHED, DONE, FOREIGN, WAITING, Folders, Status
from vitwarm.budget.launch import Launch
from vitwarm.budget.runs import WARMUP, Run
from vitwarm.errors import UserError
from vitwarm.lab.figures import heat_map
from vitwarm.lab.folder import LabFolder
from vitwarm.lab.grid import STAGE, Place, make_lab
from vitwarm.lab.outcomes import _control, _row, control_of, find_outcomes, take_off
from vitwarm.lab.plan import NONE, find_lab, list_labs, read_lab
from vitwarm.lab.report import _averages, agrees, write_report
from vitwarm.procedural import RuleStream, make_rule
from vitwarm.recipe import freeze, load_recipe, override_words, recipe_hash
from vitwarm.run import run
from vitwarm.trunk import build_decoder

PLAN = {
    "seeds": "0-1",
    "tasks": {"hay": {"recipe": "haystack_default", "take_off": 20, "set": {"algorithmic.size": 3}}},
    "warmups": {
        "set": {"recipe": "haystack_set", "set": {"warmup.length": 9}},
        "eca": {"recipe": "haystack_eca", "set": {"warmup.length": 5}},
        "mix": {"sources": {"attention": "set", "mlp": "eca"}, "title": "both"},
    },
    "parts": {
        "full": {"set": {"transfer.groups": ["trunk"]}},
        "attention": {"set": {"transfer.groups": ["attention"], "algorithmic.embeddings": "fresh"}},
        "composed": None,
    },
    "set": {"run.log_every": 7},
    "settings": {
        "slow": {
            "set": {"train.lr": 1e-3, "warmup.lr": 5e-5, "warmup.min_lr": 0.0},
            "warmups": {"eca": {"warmup.lr": 1e-2}},
        },
        "fast": {"set": {"train.lr": 4e-3}, "prediction": "it takes off"},
    },
    "cells": [
        {"tasks": "hay", "warmups": [NONE, "set"], "parts": ["full", "attention"], "settings": ["slow", "fast"]},
        {"tasks": "hay", "warmups": ["mix", NONE], "parts": "composed"},
    ],
    "published": [{"task": "hay", "warmup": "set", "part": "attention", "value": 88.9, "source": "a paper"}],
}


def with_part(**keys):
    return PLAN["parts"] | {"full": {"set": keys}}


@pytest.fixture
def lab(tmp_path):
    def lab(overrides=None, **changes):
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
        return make_lab(read_lab(file, overrides), tmp_path / "runs")

    return lab


def test_a_warmup_is_trained_once_a_seed_and_before_what_needs_it(lab, tmp_path):
    found = lab()
    kinds = [cell.stage for cell in found.cells]
    # none, two parts of Set, in two settings; the composition, whose control is there already: for two seeds
    assert kinds.count(STAGE) == 2 * (2 * 3 + 1) and len(found.places) == 14
    assert kinds.count(WARMUP) == 2 * 3  # Set slow and fast, rule 110 slow
    folders = [cell.folder for cell in found.cells]
    assert len(set(folders)) == len(folders) == 20
    for at, cell in enumerate(found.cells):
        assert all(folders.index(need.folder) < at for need in cell.needs) and cell.folder.parent == tmp_path / "runs"
        assert cell.ready() == (not cell.needs)
    cells = {cell.hash: cell for cell in found.cells}

    def of(*place, seed=1):
        return cells[found.places[Place("hay", *place), seed]]

    full, attention, mix = of("set", "full", "slow"), of("set", "attention", "slow"), of("mix", "composed", "slow")
    assert full.needs == attention.needs != of("set", "full", "fast").needs
    assert full.config.init_from == str(full.needs[0].folder) and full.config.seed == 1
    assert attention.config.transfer.groups == ["attention"] and full.config.transfer.groups == ["trunk"]
    assert mix.config.transfer.sources == {"attention": str(full.needs[0].folder), "mlp": str(mix.needs[1].folder)}
    assert mix.needs[0] == full.needs[0]
    warmups = [cell.config for cell in found.cells if cell.stage == WARMUP]
    assert [need.config.warmup.lr for need in mix.needs] == [5e-5, 1e-2]
    assert {c.algorithmic.task for c in warmups} == {None}
    assert {c.run.log_every for c in (*warmups, mix.config)} == {7}
    assert of(NONE, NONE, "fast").config.train.lr == 4e-3 and not of(NONE, NONE, "fast").needs
    lone = lab({"seeds": "5", "train.lr": "0.5", "warmup.lr": "0.25"})
    assert {cell.seed for cell in lone.cells} == {5}
    assert {c.config.train.lr for c in lone.cells if c.stage == STAGE} == {0.5}
    assert {c.config.warmup.lr for c in lone.cells if c.stage == WARMUP} == {0.25}


def test_seeds_of_a_block_count_more_than_those_of_the_plan(lab):
    cells = [PLAN["cells"][0] | {"seeds": "3-4"}, PLAN["cells"][1]]
    assert {cell.seed for cell in lab(cells=cells).cells} == {0, 1, 3, 4}
    assert {cell.seed for cell in lab({"seeds": "7"}, cells=cells).cells} == {7}


def test_a_folder_is_the_same_however_its_path_is_written(tmp_path, monkeypatch):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    spelled = [Path("out"), tmp_path / "out"]
    found = [LabFolder(read_lab(file), out, Launch(jobs=1, accelerate=None)) for out in spelled]
    assert [c.hash for c in found[0].lab.cells] == [c.hash for c in found[1].lab.cells]


def test_finished_cells_are_known_by_the_path_that_they_name_or_the_command_is_refused(tmp_path, monkeypatch):
    file, deep = tmp_path / "tiny.yaml", tmp_path / "deep"
    file.write_text(yaml.safe_dump(PLAN, sort_keys=False))
    deep.mkdir()
    (tmp_path / "link").symlink_to(deep)

    def hashes(out):
        return [c.hash for c in LabFolder(read_lab(file), out, Launch(jobs=1, accelerate=None)).lab.cells]

    monkeypatch.chdir(deep)
    cells = LabFolder(read_lab(file), Path("out"), Launch(jobs=1, accelerate=None)).lab.cells
    begun = next(cell for cell in cells if cell.needs)
    begun.folder.mkdir(parents=True)
    (begun.folder / "recipe.yaml").write_text(freeze(begun.config))
    assert hashes(deep / "out") == hashes(tmp_path / "link/out") == [cell.hash for cell in cells]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"name their warm-ups as seen from {deep}; start the command there"):
        hashes(deep / "out")


def test_a_part_is_not_made_another_one_under_its_name(lab):
    with pytest.raises(
        UserError, match=r"the command line sets transfer\.groups, which is what parts\.full stands for"
    ):
        lab({"transfer.groups": "[mlp]"})
    settings = PLAN["settings"] | {"fast": {"warmups": {"set": {"algorithmic.embeddings": "mean"}}}}
    with pytest.raises(UserError, match=r"settings\.fast sets algorithmic\.embeddings, which is what parts\.attention"):
        lab(settings=settings)


@pytest.mark.parametrize("word", ["seeds=x", "seeds=0,0", "train.rate=1", "run.dir=x"])
def test_a_mistake_on_the_command_line_is_not_the_plan_s(lab, word):
    key, _, value = word.partition("=")
    with pytest.raises(UserError, match=f"^command line: .*{key}"):
        lab({key: value})


def test_the_words_of_a_cell_are_its_recipe(lab):

    found = lab()
    for cell in found.cells[-4:]:
        assert recipe_hash(load_recipe(list(cell.arguments))) == cell.hash


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": {"hay": {"recipe": "haystack_default"}}}, "tasks.hay: recipe and take_off say what a task is"),
        ({"warmups": {"set": {}}}, "warmups.set: write a recipe, or sources"),
        ({"warmups": {"set": {"recipe": "haystack_set"}, "mix": {"sources": {"mlp": "eca"}}}}, "no warm-up eca"),
        ({"set": {"train.rate": 1}}, "set: no key train.rate"),
        ({"set": {"init_from": "x"}}, "init_from belongs to the laboratory"),
        ({"cells": [{"tasks": "hay", "warmups": "sett"}]}, "cells.0.: warmups: no 'sett'; did you mean set"),
        ({"cells": [{"tasks": "", "warmups": "set"}]}, "cells.0.: tasks: no ''"),
        ({"cells": []}, "cells: a list of"),
        ({"seeds": "0-"}, "seeds: whole numbers and spans"),
        ({"seeds": [1, "0-2"]}, "seeds: one of them comes twice"),
        ({"arms": {}}, "unknown key arms"),
        ({"published": [{"task": "hay"}]}, "published: a list of"),
        ({"published": 5}, "published is a list, not 5"),
        *(
            ({"published": [PLAN["published"][0] | {key: value}]}, "published: a list of .* in per cent, not")
            for key, value in (("value", float("nan")), ("value", 101), ("value", -1), ("source", None))
        ),
        ({"set": {"run.smoke": True}}, "run.smoke belongs to the laboratory"),
        (
            {"settings": {"slow": {"warmups": {"sett": {"warmup.lr": 1}}}}},
            "settings.slow.warmups: no 'sett'; did you mean set",
        ),
        (
            {"warmups": {"set": {"recipe": "haystack_set", "set": {"train.lr": 1}}}},
            "warmups.set.set: train.lr has no effect there",
        ),
        ({"parts": {"full": {"set": {"warmup.lr": 1}}}}, "parts.full.set: warmup.lr would set the arm apart"),
        ({"parts": {"full": {"set": {"train.lr": 1}}}}, "parts.full.set: train.lr would set the arm apart"),
        (
            {"settings": {"slow": {"warmups": {"set": {"warmup.lr": 1, "algorithmic.budget": "9 steps"}}}}},
            "settings.slow.warmups.set: algorithmic.budget would set the arm apart from its control",
        ),
        ({"settings": {"slow": {"warmups": {"mix": {"warmup.lr": 1}}}}}, "mix: a composition trains nothing; set its"),
        ({"settings": {"slow": {"warmups": {NONE: {"train.lr": 1}}}}}, "settings.slow.warmups: no 'none'"),
        ({"parts": with_part(**{"transfer.groups": ["layers=5"]})}, "slow, seed 0: .*layers=5"),
        ({"parts": with_part(**{"transfer.groups": ["heads=9"]})}, "hay · set · full · slow, seed 0: .*heads"),
        ({"parts": with_part(**{"transfer.fit": "expand"})}, "seed 0: transfer.fit=expand takes a core: three blocks"),
        (
            {"parts": with_part(**{"transfer.groups": ["attention"], "transfer.controls": {"mlp": "shuffle"}})},
            "seed 0: control shuffle of mlp: no source gives anything of it",
        ),
        (
            {"warmups": PLAN["warmups"] | {"mix": {"sources": {"attention": "set", "attention layers=0": "eca"}}}},
            "hay · mix · composed · slow, seed 0: .* both give blocks.0.attn",
        ),
        ({"warmups": PLAN["warmups"] | {"mix": {"sources": ["set"]}}}, "warmups.mix: sources is a mapping"),
        ({"warmups": PLAN["warmups"] | {"mix": {"sources": {"": "set"}}}}, "warmups.mix: sources: write which groups"),
        ({"settings": {"slow": {"warmups": ["set"]}}}, "settings.slow: warmups is a mapping"),
        ({"parts": {"full": {"set": [1]}}}, "parts.full: set is a mapping"),
        ({"tasks": {"hay": {"recipe": None, "take_off": 20}}}, "tasks.hay: recipe and take_off say what a task is"),
        (
            {"warmups": PLAN["warmups"] | {"mix": {"sources": {"mlp": "set"}, "set": {"warmup.lr": 1}}}},
            "warmups.mix: a composition has no keys; set those of its sources",
        ),
        (
            {"warmups": PLAN["warmups"] | {"set": {"recipe": "haystack_default"}}},
            "plan tiny: warmup-set-slow: nothing to train",
        ),
        ({"tasks": {"hay": {"recipe": "digits_default", "take_off": 20}}}, "is not of an algorithmic task"),
        *(
            ({"tasks": {"hay": {"recipe": "haystack_default", "take_off": at}}}, "take_off is an accuracy in per cent")
            for at in (float("nan"), True, 0.2, 101, "20")
        ),
        ({"seeds": []}, "seeds: no seed; write"),
        ({"settings": {}, "cells": [{"tasks": "hay", "warmups": "set"}]}, "settings is missing; cells name them"),
        ({"parts": {}, "cells": [{"tasks": "hay", "warmups": "set"}]}, "parts is missing; cells name them"),
        (
            {"published": [{"task": "hay", "warmup": NONE, "part": "full", "value": 9, "source": "a paper"}]},
            "published: warmup none, part full: part is none without a warm-up, and only there",
        ),
        ({"published": [PLAN["published"][0]] * 2}, "warmup set, part attention comes twice; leave one value"),
        ({"published": [PLAN["published"][0] | {"part": NONE}]}, "warmup set, part none: part is none without"),
        ({"published": [PLAN["published"][0] | {"task": NONE}]}, "published: no task 'none'"),
        (
            {"warmups": PLAN["warmups"] | {"set": {"recipe": "haystack_set", "set": {"model.decoder.size": "3_4_16"}}}},
            "hay · set · full · slow, seed 0: the warm-up has model.decoder.size 3_4_16, the task 2_4_16",
        ),
        (
            {"warmups": PLAN["warmups"] | {"mix": {"sources": {"norm": "set", "trunk": "eca"}}}},
            "transfer.sources: 'norm' and 'trunk' both hold norm1; narrow one of them",
        ),
        (
            {
                "parts": PLAN["parts"]
                | {"full": {"set": {"transfer.controls": {"attention": "shuffle", "trunk": "noise:1"}}}}
            },
            "transfer.controls: 'attention' and 'trunk' both hold attention; narrow one of them",
        ),
        (
            {"warmups": PLAN["warmups"] | {"mix": {"sources": {"attention": "set", "trunk": "eca"}}}},
            "transfer.sources: 'attention' and 'trunk' both hold attention; narrow one of them",
        ),
    ],
)
def test_what_a_plan_cannot_mean_is_refused_in_one_line(lab, changes, says):
    with pytest.raises(UserError, match=says):
        lab(**changes)


def test_what_could_not_start_is_refused_before_its_warm_up_is_trained(lab, tmp_path):
    lab({}, set={"algorithmic.budget": "5 steps", "train.lr_warmup": "9 steps"})
    folder = LabFolder(read_lab(tmp_path / "tiny.yaml"), tmp_path / "out", Launch(jobs=1, accelerate=None))
    for carry_out in (lambda: folder.run([]), folder.summary):
        with pytest.raises(UserError, match="plan tiny: hay · none · none · slow, seed 0: train.lr_warmup .9 steps"):
            carry_out()
    assert not (tmp_path / "out").exists()


def test_controls_alone_need_no_parts(lab):
    made = lab(parts={}, warmups={}, published=[], settings={"ours": {}}, cells=[{"tasks": "hay", "warmups": NONE}])
    assert {place.part for place, _ in made.places} == {NONE} and len(made.cells) == 2


def test_names_and_titles_may_be_numbers(lab):
    settings = {8: {"title": 0.001, "prediction": 90}, "nine": {"title": None, "prediction": "of two\nlines"}}
    made = lab(settings=settings, cells=[{"tasks": "hay", "warmups": "set"}])
    assert made.plan.title("settings", "8") == "0.001" and made.plan.settings["8"].prediction == "90"
    assert made.plan.title("settings", "nine") == "nine" and made.plan.settings["nine"].prediction == "of two lines"
    assert [cell.folder.name.split("-")[0] for cell in made.cells][:1] == ["warmup"]


def test_a_key_within_a_mapping_of_an_earlier_layer_counts_alone(lab):
    warmups = {"set": {"recipe": "haystack_set", "set": {"warmup.rule": {"name": "set", "symbols": 20, "end": False}}}}
    settings = {"more": {"set": {"warmup.rule.symbols": 40}}}
    cells = [{"tasks": "hay", "warmups": "set", "parts": "attention", "settings": "more"}]
    (warmup,) = {c.config.warmup.rule["symbols"] for c in lab(warmups=warmups, settings=settings, cells=cells).cells
                 if c.stage == "warmup"}  # fmt: skip
    assert warmup == 40
    layers = {"warmup.rule.k": 3, "warmup.lr": 1}, {"warmup.rule": {"name": "set"}}, {"warmup.rule.end": "false"}
    words = override_words(*layers)
    assert words == ["warmup.lr=1", 'warmup.rule={"name": "set", "end": false}']


def test_a_warmup_is_found_under_the_name_that_another_plan_gave_it(lab):
    first = next(cell for cell in lab().cells if cell.stage == WARMUP)
    elsewhere = first.folder.with_name(f"another-seed{first.seed}-{first.hash[:6]}")
    elsewhere.mkdir(parents=True)
    (elsewhere / "result.json").write_text("{}")
    (elsewhere / "recipe.yaml").write_text(freeze(first.config))
    cells = lab().cells
    assert next(cell for cell in cells if cell.hash == first.hash).folder == elsewhere
    assert any(elsewhere == cell.needs[0].folder and cell.ready() for cell in cells if cell.needs)
    first.folder.mkdir()
    shutil.copytree(elsewhere, first.folder, dirs_exist_ok=True)  # its own came after all: tasks name that folder
    assert next(cell for cell in lab().cells if cell.hash == first.hash).folder == first.folder


def test_a_task_does_not_start_from_a_run_that_is_not_its_warm_up(lab):
    cells = lab().cells
    task = next(cell for cell in cells if len(cell.needs) == 1)
    (warmup,) = task.needs
    warmup.folder.mkdir(parents=True)
    (warmup.folder / "result.json").write_text("{}")
    assert not task.ready()
    other = next(cell for cell in cells if cell.stage == WARMUP and cell is not warmup)
    (warmup.folder / "recipe.yaml").write_text(freeze(other.config))
    assert not task.ready()
    (warmup.folder / "recipe.yaml").write_text(freeze(warmup.config))
    assert task.ready()


def test_shipped_plans_are_good(tmp_path):
    assert {"lab_quick", "lab_search", "lab_tables"} <= {name for name, purpose in list_labs() if purpose}
    assert len(make_lab(read_lab(find_lab("lab_quick")), tmp_path).cells) == 9
    for name, _ in list_labs():
        read_lab(find_lab(name))
    with pytest.raises(UserError, match="no plan named 'lab_quik'; did you mean lab_quick"):
        find_lab("lab_quik")


def test_take_off_is_the_first_evaluation_at_the_threshold():
    curve = [(100, 11.0), (200, 20.0), (300, 19.0), (400, 35.0)]
    assert take_off(curve, 20) == 200 and take_off(curve, 30) == 400 and take_off(curve, 36) is None


def test_entropy_counts_the_asked_tokens_alone():
    model = build_decoder("2_2_8", 25, 12, "test", seed=0)
    rule = make_rule("set", symbols=20, end=False)
    tokens = torch.from_numpy(RuleStream(rule, 0, "validation", 9).rows(0, 64).tokens)
    every = torch.ones(tokens.shape, dtype=torch.bool)
    expected = inspect_trunk(model, rule, length=9).entropy
    np.testing.assert_allclose(attention_entropy(model, tokens, every), expected, rtol=1e-5)
    some = every.clone()
    some[:, 5:] = False
    np.testing.assert_allclose(
        attention_entropy(model, tokens, some), attention_entropy(model, tokens[:, :5], every[:, :5]), rtol=1e-5
    )


def test_a_plan_is_carried_out_in_folders_and_reported(lab, tmp_path):
    """Two short runs for real, chosen values for the others, one that crashed, one that waits."""
    found = lab(
        {"algorithmic.budget": "2 steps", "warmup.budget": "2 steps", "train.lr_warmup": "0", "warmup.lr_warmup": "0"},
        cells=[{"tasks": "hay", "warmups": [NONE, "set"], "parts": "attention", "settings": "fast"}],
    )
    folders = Folders(tmp_path / "runs", tmp_path)
    by_seed = {seed: [cell for cell in found.cells if cell.seed == seed] for seed in (0, 1)}
    ready = []
    for cell in by_seed[0]:
        ready.append(cell.ready())
        run(replace(cell.config, run=replace(cell.config.run, dir=str(cell.folder))))
    assert ready == [True] * 3  # each after what it needs
    statuses = folders.statuses(found)
    assert [statuses[cell.hash].state for cell in by_seed[0]] == [DONE] * 3
    assert found.progress(statuses) == "warm-ups: 1 done (#), 1 waiting (.)\ntasks: 2 done (#), 2 waiting (.)"
    statuses[by_seed[1][1].hash] = Status(CRASHED, note="the disk is full")

    findings = find_outcomes(found, statuses, tmp_path, "vitwarm lab plan=tiny")
    control, warmed = findings.rows
    assert [o.state for o in warmed.outcomes] == [DONE, WAITING] and control.outcomes[0].value == control.mean
    result = statuses[found.places[warmed.place, 0]].run.result
    assert warmed.mean == 100 * result["metrics"]["accuracy"] and warmed.published == (88.9, "a paper")
    assert warmed.difference == pytest.approx(warmed.mean - control.mean) and warmed.low is None
    assert warmed.outcomes[0].curve == [(2000, warmed.mean)] and warmed.outcomes[0].take_off is None
    assert np.shape(warmed.outcomes[0].entropy) == (2, 4) and list(warmed.outcomes[0].warmup) == [""]
    assert agrees(control) is None and agrees(warmed) is False
    assert json.loads((tmp_path / "entropy.json").read_text()).keys() == {
        o.hash for o in (control.outcomes[0], warmed.outcomes[0])
    }

    write_report(findings, tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert f"hay, Set, attention: {warmed.mean:.1f} (1 seed) against 88.9: differs by" in page.replace(
        "set, att", "Set, att"
    )
    assert f"| 0: {warmed.outcomes[0].warmup['']:.1f} |" in page  # its warm-up, by seed
    assert "the disk is full" in page and "it takes off" in page and "3 of 6 cells are finished." in page
    numbers = json.loads((tmp_path / "lab.json").read_text())
    assert [len(row["outcomes"]) for row in numbers["rows"]] == [1, 1]  # what is finished
    assert numbers["rows"][1]["outcomes"][0]["value"] == warmed.mean
    assert {"report.html", "dots-hay.svg", "curves-hay.png"} <= {p.name for p in tmp_path.iterdir()}
    assert "of one comparison" not in page  # nor is there an interval
    (tmp_path / "entropy.json").unlink()
    shutil.rmtree(statuses[found.places[warmed.place, 0]].run.folder / "export")  # what it started from is still there
    assert any(
        "its attention cannot be measured" in line for line in find_outcomes(found, statuses, tmp_path, "").failed
    )
    write_report(replace(findings, rows=[control, replace(warmed, low=-1.0, high=2.0)]), tmp_path)
    assert "of one comparison" in (tmp_path / "report.md").read_text()


def test_settings_of_the_warm_up_alone_share_the_control_of_the_task(lab, tmp_path):
    settings = {
        "slow": {"set": {"train.lr": 1e-3}},
        "gentle": {"set": {"train.lr": 1e-3, "warmup.lr": 5e-5, "warmup.min_lr": 0.0}},
        "fast": {"set": {"train.lr": 4e-3}},
    }
    cells = [
        {"tasks": "hay", "warmups": NONE, "settings": "slow"},
        {"tasks": "hay", "warmups": "set", "parts": "full", "settings": ["gentle", "fast"]},
    ]
    plan = lab(settings=settings, cells=cells)
    found = find_outcomes(plan, {cell.hash: Status(WAITING) for cell in plan.cells}, tmp_path, "")
    control, gentle, fast = found.rows
    assert control_of(found.plan, found.rows, gentle.place) is control
    orders = [{"train.weight_decay": 0.1, "train.lr": 1e-3}, {"train.lr": 1e-3, "train.weight_decay": 0.1}]
    turned = {name: {"set": keys} for name, keys in zip(("slow", "gentle"), orders, strict=True)}
    turned["fast"] = settings["fast"]
    plan = lab(settings=turned, cells=cells)
    found = find_outcomes(plan, {cell.hash: Status(WAITING) for cell in plan.cells}, tmp_path, "")
    assert control_of(found.plan, found.rows, found.rows[1].place) is found.rows[0]
    assert control_of(found.plan, found.rows, fast.place) is None


def test_the_best_warm_up_is_the_one_that_gains_most_over_the_seeds_of_both(lab, tmp_path):
    cells = [{"tasks": "hay", "warmups": [NONE, "set"], "parts": ["full", "attention"], "settings": "slow"}]
    plan = lab(cells=cells, seeds="0-2")
    found = find_outcomes(plan, {cell.hash: Status(WAITING) for cell in plan.cells}, tmp_path, "")

    def headline(*values):
        """Of no warm-up, the whole of Set, its attention; by seed."""
        statuses = {}
        for row, of_row in zip(found.rows, values, strict=True):
            for outcome, value in zip(row.outcomes, of_row, strict=True):
                statuses[row.place, outcome.seed] = value
        outcomes = {
            row.place: [replace(o, value=statuses[row.place, o.seed]) for o in row.outcomes] for row in found.rows
        }
        known = {seed: value for seed, value in enumerate(values[0]) if value is not None}
        control = {_control(plan.plan, found.rows[0].place): known}
        rows = [_row(plan.plan, place, of_place, control) for place, of_place in outcomes.items()]
        return replace(found, rows=rows).headline()[1]

    no, full, attention = (99.0, 98.0, 60.0), (95.0, 96.0, None), (90.0, None, None)
    assert headline(no, full, attention).startswith("hay: nothing is better than no warm-up; best is set, full, 95.5 %")
    assert headline(no, full, (99.5, None, None)).startswith(
        "hay: best is set, attention, 99.5 % (1 seed), +0.5 points"
    )
    three = (95.0, 96.0, 70.0)
    assert headline(no, three, (99.5, None, None)).startswith("hay: best is set, full, 87.0 % (3 seeds), +1.3 [")
    lone = (60.0, None, None)
    assert "set, full, 87.0 % (3 seeds), +35.0 points against no warm-up (over 1 of 3 seeds)." in headline(
        lone, three, (None, None, None)
    )
    none = (None, None, None)
    assert headline(no, none, none) == "hay: 85.7 % (3 seeds) without a warm-up."


def test_a_damaged_folder_does_not_hide_the_others(lab, tmp_path):
    plan = lab(cells=[{"tasks": "hay", "warmups": NONE, "settings": "slow"}])
    statuses = {}
    for cell in plan.cells:
        cell.folder.mkdir(parents=True)
        stage = {"samples": 1, "seconds": 1.0}
        result = {"metrics": {"accuracy": 0.5, "exact": 0.25}, "stages": {STAGE: stage}, "versions": {"torch": "2"}}
        statuses[cell.hash] = Status(DONE, Run(cell.folder, cell.config, cell.hash, result))
    first, second = (cell.hash for cell in plan.cells)
    (tmp_path / "entropy.json").write_text(json.dumps({first: [[0.5]]}))  # the export of the second is gone
    found = find_outcomes(plan, statuses, tmp_path, "")
    assert [(o.value, o.state) for o in found.rows[0].outcomes] == [(50.0, DONE)] * 2 and found.done == 2
    assert [line for line in found.failed if "seed 1" in line and "its attention cannot be measured" in line]
    for damaged in (
        "{",
        json.dumps({first: 3}),
        json.dumps({first: [["a"]]}),
        json.dumps({first: [[0.1, 0.2], [0.3]]}),
    ):
        (tmp_path / "entropy.json").write_text(damaged)  # measured again, where that can be
        assert len(find_outcomes(plan, statuses, tmp_path, "").failed) == 2
    damaged = {
        "result.json has no finite exact": {"metrics": {"accuracy": 0.5, "exact": float("nan")}},
        "has an evaluation without a finite accuracy": {},
    }
    step = {"event": "eval", "stage": STAGE, "step": 1, "accuracy": float("nan")}
    for says, changes in damaged.items():
        if not changes:
            (plan.cells[1].folder / "log.jsonl").write_text(json.dumps(step) + "\n")
        spoilt = replace(statuses[second].run, result=statuses[second].run.result | changes)
        found = find_outcomes(plan, statuses | {second: Status(DONE, spoilt)}, tmp_path, "")
        assert [o.value for o in found.rows[0].outcomes] == [50.0, None] and any(says in line for line in found.failed)
    (plan.cells[1].folder / "log.jsonl").write_text("{bad\n")
    found = find_outcomes(plan, statuses, tmp_path, "")
    assert [o.value for o in found.rows[0].outcomes] == [50.0, None] and found.done == 1
    assert found.rows[0].outcomes[1].state == FOREIGN


def test_values_that_are_published_are_met_within_three_points_or_the_interval(lab, tmp_path):
    found = find_outcomes(lab(), {cell.hash: Status(WAITING) for cell in lab().cells}, tmp_path, "")
    row = next(row for row in found.rows if row.published)
    assert agrees(row) is None  # nothing ran

    def of(*values):
        outcomes = [replace(row.outcomes[0], value=v, seed=i) for i, v in enumerate(values)]
        return agrees(replace(row, outcomes=outcomes))

    assert of(86.0) and not of(85.8) and not of(10.0, 99.0)
    assert of(70.0, 99.0, 99.0, 75.0, 98.0) and not of(70.0, 71.0, 72.0, 70.0, 71.0)


def test_means_over_the_tasks_take_the_seeds_that_all_of_them_have(lab, tmp_path):
    tasks = {name: {"recipe": "haystack_default", "take_off": 20, "set": {"algorithmic.size": size}}
             for name, size in (("hay", 3), ("straw", 4))}  # fmt: skip
    cells = [{"tasks": ["hay", "straw"], "warmups": [NONE, "set"], "parts": "full", "settings": "slow"}]
    published = [
        {"task": t, "warmup": NONE, "part": NONE, "value": v, "source": "it"} for t, v in (("hay", 10), ("straw", 30))
    ]
    plan = lab(tasks=tasks, cells=cells, published=published)
    found = find_outcomes(plan, {cell.hash: Status(WAITING) for cell in plan.cells}, tmp_path, "")
    values = {
        ("hay", NONE): (10.0, 20.0),
        ("straw", NONE): (50.0, 70.0),
        ("hay", "set"): (90.0, None),
        ("straw", "set"): (None, 80.0),
    }
    rows = [
        replace(
            row,
            outcomes=[
                replace(o, value=v) for o, v in zip(row.outcomes, values[row.place.task, row.place.warmup], strict=True)
            ],
        )
        for row in found.rows
    ]
    assert _averages(replace(found, rows=rows)).rows == [["no warm-up", "2", "37.5 ± 10.6", "20.0"]]


def test_titles_of_the_map_stand_beside_each_other_however_long(lab, tmp_path):
    long = "a title that goes on and on, as one does that tells of every block and head of two warm-ups"
    of_tasks = {name: {"recipe": "haystack_default", "take_off": 20, "title": f"a task of many words, {name}"}
                for name in "abc"}  # fmt: skip
    warmups = {"set": {"recipe": "haystack_set", "title": long}}
    cells = [{"tasks": [*of_tasks], "warmups": "set", "parts": "full", "settings": "slow", "seeds": 0}]
    plan = lab(tasks=of_tasks, warmups=warmups, settings={"slow": {}}, cells=cells, published=[])
    found = find_outcomes(plan, {cell.hash: Status(WAITING) for cell in plan.cells}, tmp_path, "")
    rows = [_row(plan.plan, row.place, [replace(o, value=50.0) for o in row.outcomes], {}) for row in found.rows]
    figure = heat_map(replace(found, rows=rows), "slow")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = sorted((label.get_window_extent() for label in ax.get_xticklabels()), key=lambda box: box.x0)
    assert len(boxes) == 3 and all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))
    assert min(label.get_window_extent().x0 for label in ax.get_yticklabels()) >= 0
