"""The command runs, its figures belong together, and mistakes end in one line."""

import json
import re
import sys
import types

import numpy as np
import pytest
from bench import data, sides, workers
from bench.data import OURS, main
from bench.rivals import rivals
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


class Packets:
    width, height = 64, 48


def spdls_stand_in(described: list[str]) -> types.ModuleType:
    """What the benchmark calls of spdl.io: it keeps the filters that FFmpeg would be given."""
    media = types.ModuleType("spdl.io")
    media.demux_image = lambda data: Packets()
    media.decode_packets = lambda packets, filter_desc: described.append(filter_desc)
    media.convert_frames = media.to_torch = lambda frames: frames
    return media


def test_other_libraries_are_measured_where_they_run(monkeypatch):
    described: list[str] = []
    package = types.ModuleType("spdl")
    package.io = spdls_stand_in(described)
    monkeypatch.setitem(sys.modules, "spdl", package)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    arms, missing = rivals(32, 4)
    assert set(arms) == {"SPDL"} and set(missing) == {"DALI, cubic", "DALI, linear"}
    for _ in range(50):
        arms["SPDL"]([b"image"] * 4, 0)
    pattern = r"crop=(\d+):(\d+):(\d+):(\d+):exact=1,scale=32:32:flags=bicubic,(hflip,)?format=rgb24"
    found = [re.fullmatch(pattern, one) for one in described]
    boxes = np.array([[int(number) for number in one.groups()[:4]] for one in found])
    assert (boxes[:, 0] + boxes[:, 2] <= 64).all() and (boxes[:, 1] + boxes[:, 3] <= 48).all()
    assert 60 < sum(one[5] is not None for one in found) < 140  # flips of 201


def test_a_library_without_its_own_libraries_is_left_out(monkeypatch):
    package = types.ModuleType("spdl")
    package.io = spdls_stand_in([])

    def fails(data):
        raise RuntimeError("Failed to import libspdl.\nand why")

    package.io.demux_image = fails
    monkeypatch.setitem(sys.modules, "spdl", package)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    assert rivals(32, 4)[1]["SPDL"] == "Failed to import libspdl."


def test_smaller_sides_are_faster_and_differ(tmp_path, capsys):
    image = random_image(0, 90, 120, "JPEG")
    write_tar(tmp_path / "t.tar", [part for i in range(3) for part in ((f"{i}.jpg", image), (f"{i}.cls", b"0"))])
    out = tmp_path / "out.json"
    options = ["sides=40,200", "size=16", "rounds=1", "--json", str(out)]
    assert sides.main([f"shards={tmp_path}", *options]) == 0
    full, small, same = json.loads(out.read_text())["rows"]
    assert (small["share_made_smaller"], same["share_made_smaller"]) == (1, 0)
    assert small["kilobytes"] < full["kilobytes"] == same["kilobytes"] == len(image) / 1e3
    assert small["train_median_db"] < 60 < same["train_median_db"]  # equal pixels give 78 dB
    assert full["train_over_full_size"] == 1.0 and small["evaluation_images_per_s"] > 0
    assert "| 40 | 100 % |" in capsys.readouterr().out
    assert sides.main([f"shards={tmp_path}", "sides=256,x"]) == 2
    assert "sides=256,x: whole numbers above 0" in capsys.readouterr().err


def test_the_parts_of_the_loader_and_its_workers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "WORKERS", (0, 1))
    write_tar(tmp_path / "t.tar", samples(8))
    out = tmp_path / "out.json"
    options = ["size=16", "batch=4", "passes=1", "rounds=1", "--json", str(out)]
    assert workers.main([f"shards={tmp_path}", *options]) == 0
    result = json.loads(out.read_text())
    alone, own = (result["parts_us"][name] for name in ("transform, with its generators", "of these the generators"))
    assert 0 < own < alone
    none, one = result["loaders"]
    assert none["cpu_us_workers"] < one["cpu_us_workers"] and one["clock_over_one_worker"] == 1.0
    assert "| 1 |" in capsys.readouterr().out
