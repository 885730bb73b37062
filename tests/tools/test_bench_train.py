"""The benchmark of training: its arms do the work that they say, its arithmetic holds, bad options end in one line."""

import contextlib
import json
from argparse import Namespace
from statistics import median

import pytest
import torch
from bench import train
from bench.profile import NO_KERNEL, profile
from bench.train import Bare, main, matmul_rate, measure, read_options, recipe

from vitwarm.errors import UserError

TINY = ["model=test_vit", "size=32", "classes=5", "batch=4", "steps=2", "rounds=3", "precision=fp32", "compile=false"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_the_arms_and_their_arithmetic(tmp_path, capsys, monkeypatch):
    report, seen = train.report, []
    monkeypatch.setattr(
        train, "report", lambda options, rounds, *rest: seen.extend(rounds) or report(options, rounds, *rest)
    )
    file = tmp_path / "train.json"
    assert main([*TINY, "--json", str(file)]) == 0
    shown, result = capsys.readouterr().out, json.loads(file.read_text())
    assert set(result["arms"]) == {"bare", "images", "warmup"}
    for name, arm in result["arms"].items():
        assert f"| {name} |" in shown
        assert arm["samples_per_s"] == pytest.approx(4e3 / arm["step_ms"])
        assert arm["mfu_pct"] == pytest.approx(100 * arm["tflops"] / result["matmul_tflops"])
        assert arm["tokens_per_s"] == pytest.approx(5 * arm["samples_per_s"])  # 2 x 2 patches of 16, class token
    bare, images = (result["arms"][name] for name in ("bare", "images"))
    # the same model: FLOPs a sample are one figure
    assert bare["tflops"] / bare["samples_per_s"] == pytest.approx(images["tflops"] / images["samples_per_s"])
    assert len(seen) == 3
    assert result["ratios"] == {
        "images_speed_over_bare": pytest.approx(median(times["bare"] / times["images"] for times in seen)),
        "warmup_token_speed_over_images": pytest.approx(median(times["images"] / times["warmup"] for times in seen)),
    }
    assert all(f"| {name} |" in shown for name in result["profile"])
    assert any(name.startswith("aten::") for name in result["profile"])


def test_a_profile_shares_out_the_time(monkeypatch):
    """Of a step that takes a second, by a clock and kernels of our own."""
    clock = Namespace(now=0.0)
    events = [Namespace(key=f"kernel {i}", self_cpu_time_total=3e6 * share) for i, share in enumerate((0.1, 0.5, 0.2))]

    @contextlib.contextmanager
    def profiler(**_):
        yield Namespace(key_averages=lambda: events)

    def step():
        clock.now += 1

    monkeypatch.setattr("bench.profile.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr(torch.profiler, "profile", profiler)
    found = profile(step, torch.device("cpu"), steps=3, most=2)
    assert list(found) == ["kernel 1", "kernel 2", "others", NO_KERNEL]
    assert list(found.values()) == pytest.approx([0.5, 0.2, 0.1, 0.2])


def test_every_arm_trains(monkeypatch):
    seen = {}

    def spy(options, rounds, arms, *rest):
        for name, arm in arms.items():
            model = arm.model if isinstance(arm, Bare) else arm.training.model
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            arm.step()
            moved = [not torch.equal(before[n], p) for n, p in model.named_parameters()]
            seen[name] = (sum(moved), len(moved))
        return {}

    monkeypatch.setattr(train, "report", spy)
    measure(read_options(TINY)[0])
    assert set(seen) == {"bare", "images", "warmup"} and all(moved == count for moved, count in seen.values())


def test_the_bare_loop_is_timms_model_under_fused_adamw(tmp_path):
    config = recipe(read_options(TINY)[0], tmp_path / "x.tar")
    bare = Bare(config, torch.device("cpu"))
    before = [p.detach().clone() for p in bare.model.parameters()]
    torch.nn.functional.cross_entropy(bare.model(bare.images), bare.labels).backward()
    bare.optimizer.step()
    expected = [p.detach().clone() for p in bare.model.parameters()]
    with torch.no_grad():
        for p, start in zip(bare.model.parameters(), before, strict=True):
            p.copy_(start)
    bare.optimizer = torch.optim.AdamW(bare.model.parameters(), lr=1e-4, weight_decay=0.05)
    bare.optimizer.zero_grad()
    bare.step()
    for p, other in zip(bare.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), other)


def test_the_rate_is_that_of_the_fastest_product(monkeypatch):
    seconds = iter([0.5, 0.25, *[1.0] * 8])

    def timed(action, device):
        assert action().shape == (1024, 1024)
        return next(seconds)

    monkeypatch.setattr(train, "timed", timed)
    assert matmul_rate(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.25


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["modle=x"], "unknown modle"),
        (["batch=0"], "batch is a whole number"),
        (["batch=many"], "batch is a whole number"),
        (["precision=fp8"], "precision is one of bf16, fp32"),
        (["compile=yes"], "compile is one of true, false"),
        (["--json"], "--json needs a path"),
    ],
)
def test_bad_options(arguments, why, capsys):
    with pytest.raises(UserError, match=why):
        read_options(arguments)
    assert main(arguments) == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_an_unknown_model_ends_in_one_line(capsys):
    assert main(["model=vit_bse_patch16_224", "rounds=1"]) == 2
    assert "timm has no model" in capsys.readouterr().err
