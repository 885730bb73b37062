"""The command runs, its figures belong together, and mistakes end in one line."""

import json

import pytest
from bench import data
from bench.data import OURS, main
from tarmaking import random_image, samples, write_tar


def test_the_command_measures_every_arm(tmp_path, capsys):
    write_tar(tmp_path / "t.tar", samples(12))
    options = ["size=16", "batch=4", "rounds=1", "--json", str(tmp_path / "out.json")]
    assert main([f"shards={tmp_path}", *options]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert {"timm", OURS} <= set(result["transform"])
    assert {"timm, ImageFolder", "timm, ReaderWds", "torchvision, ImageFolder", OURS} == set(result["loader"])
    for kind in ("transform", "loader"):
        arms = result[kind]
        assert arms[OURS]["ours_over_it"] == 1.0
        for arm in arms.values():
            ratio = arms[OURS]["images_per_s"] / arm["images_per_s"]
            assert arm["ours_over_it"] == pytest.approx(ratio)  # of one round
    assert len(result["crops"]) == 4 and all(row["distance"] < row["chance"] for row in result["crops"])
    assert result["fidelity"]["psnr_median_db"] > result["fidelity"]["bilinear_median_db"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in result["loader"])


def test_a_law_that_differs_is_told_from_timms(monkeypatch):
    images = [random_image(seed, 40 + seed, 60, "JPEG") for seed in range(4)]
    drawn = data.random_crop_box
    monkeypatch.setattr(data, "random_crop_box", lambda w, h, scale, *rest: drawn(w, h, (0.12, 1.0), *rest))
    found = {row["property"]: row for row in data.crops(images)}
    assert found["share of the area"]["distance"] > found["share of the area"]["chance"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "which shards"),
        (["shards=/nowhere"], "no such file"),
        (["shards={0}", "batch=99"], "fewer than batch=99"),
        (["shards={0}", "rounds=none"], "cannot use 'rounds=none'"),
        (["shards={0}", "batch=2", "folder=/nowhere"], "leave it out"),
        (["shards={0}", "--json", "/nowhere/x.json"], "a folder that exists"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, options, message):
    write_tar(tmp_path / "t.tar", samples(3))
    assert main([option.format(tmp_path) for option in options]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
