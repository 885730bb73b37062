"""The loop against a bare PyTorch loop over the same rows; the guard; signals; resuming."""

import json
import math
import signal

import pytest
import timm
import torch
from torch import nn
from toy_stage import NEAR, ToyStage, optim_config, reference, toy_context

from vitwarm.errors import Interrupted, UserError
from vitwarm.training.checkpoint import optimizer_tensors, read_state, read_tensors
from vitwarm.training.loop import check_compile, device_batch_size, train_stage
from vitwarm.training.meters import count_flops, forward_flops


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}))


def log(folder, event="train"):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == event]


@pytest.mark.parametrize("device_batch", [8, 4, 2, 1])
@pytest.mark.parametrize("short", [0, 3])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_any_split_of_the_batch_gives_the_bare_loops_weights(tmp_path, device_batch, short, clip):
    optim = optim_config(clip_grad=clip)
    stage = ToyStage(optim, short=short)
    trained = train_stage(stage, toy_context(tmp_path, device_batch=device_batch))
    expected, _ = reference(ToyStage(optim, short=short))
    same(trained.state_dict(), expected, rtol=1e-4, atol=1e-6)


def test_clipping_is_not_idle():
    """So that the test above cannot pass with a clip that never bites."""
    free, _ = reference(ToyStage(optim_config()))
    clipped, _ = reference(ToyStage(optim_config(clip_grad=0.05)))
    assert any((free[n] - clipped[n]).abs().max() > 1e-5 for n in free)


def test_how_often_the_run_logs_does_not_touch_the_weights(tmp_path):
    runs = [
        train_stage(ToyStage(optim_config()), toy_context(tmp_path / str(n), log_every=n, checkpoint_every=n))
        for n in (1, 4)
    ]
    same(runs[0].state_dict(), runs[1].state_dict())


def test_a_stage_says_how_long_it_takes_once_its_pace_is_known(tmp_path, capsys):
    pace = "toy: about 1 s for the other 10 steps at the pace of the first 20; evaluations come on top"
    for steps, said in ((20, []), (30, [pace])):
        stage = ToyStage(optim_config(), steps=steps, eval_every=7)
        train_stage(stage, toy_context(tmp_path / str(steps), log_every=3, checkpoint_every=99))
        assert [line for line in capsys.readouterr().out.splitlines() if "pace" in line] == said


def test_the_moving_average_is_fp32_and_follows_its_formula(tmp_path):
    optim = optim_config(ema=0.7, precision="bf16")
    stage = ToyStage(optim)
    averaged = train_stage(stage, toy_context(tmp_path))
    assert averaged is not stage.model
    assert all(t.dtype == torch.float32 for t in averaged.state_dict().values())
    stage = ToyStage(optim_config(ema=0.7))
    averaged = train_stage(stage, toy_context(tmp_path / "fp32"))
    weights, mean = reference(ToyStage(optim_config()), decay=0.7)
    same(averaged.state_dict(), mean, rtol=1e-4, atol=1e-6)
    same(stage.model.state_dict(), weights, rtol=1e-4, atol=1e-6)


def test_bf16_is_autocast_over_fp32_weights(tmp_path):
    stage, seen = ToyStage(optim_config(precision="bf16"), steps=2), []
    stage.model[0].register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    train_stage(stage, toy_context(tmp_path))
    assert seen[1:] == [torch.bfloat16] * 2  # the first is the count of FLOPs
    assert {p.dtype for p in stage.model.parameters()} == {torch.float32}


def test_the_log_states_means_over_the_window_by_predictions(tmp_path):
    stage = ToyStage(optim_config(lr=1e-30, start_lr=0.0, min_lr=0.0, weight_decay=0.0), short=3)
    before = {n: t.clone() for n, t in stage.model.state_dict().items()}
    train_stage(stage, toy_context(tmp_path, log_every=3, device_batch=2))
    same(stage.model.state_dict(), before)
    for end, entry in zip((3, 6), log(tmp_path), strict=True):
        errors = []
        for step in range(end - 3, end):
            x, y, w = stage.rows(step)
            errors += ((stage.model(x).squeeze(1) - y) ** 2)[w > 0].tolist()
        assert entry["step"] == end
        assert entry["samples"] == 8 * end
        assert entry["loss"] == pytest.approx(sum(errors) / len(errors), rel=1e-5)
        assert entry["accuracy"] == pytest.approx(sum(e < NEAR for e in errors) / len(errors))
        assert not {"correct", "weight", "count"} & entry.keys()


@pytest.mark.parametrize("factor", [math.nan, math.inf, "gradient"])
@pytest.mark.parametrize("log_every", [1, 5, 50])
def test_the_guard_names_the_first_bad_step_and_saves_nothing_after_it(tmp_path, factor, log_every):
    stage = ToyStage(optim_config(), steps=20, eval_every=100)
    stage.poison = {6: factor}  # 0-based: the seventh step
    context = toy_context(tmp_path, log_every=log_every, checkpoint_every=2, keep_last=10)
    # Gradients are measured at steps that log or save; in between, the loss of the next step tells.
    first = 8 if factor == "gradient" and log_every > 1 else 7
    with pytest.raises(UserError, match=rf"not finite from step {first} on.*step-00000006"):
        train_stage(stage, context)
    saved = context.checkpoints.all()
    assert [p.name for p in saved] == ["step-00000002", "step-00000004", "step-00000006"]
    for path in saved:
        assert all(t.isfinite().all() for t in read_tensors(path, "model").values())


def test_a_gradient_that_is_not_finite_is_caught_at_the_very_step_that_saves(tmp_path):
    stage = ToyStage(optim_config(), steps=20, eval_every=100)
    stage.poison = {5: "gradient"}
    context = toy_context(tmp_path, log_every=50, checkpoint_every=6)
    with pytest.raises(UserError, match="not finite from step 6 on.*none"):
        train_stage(stage, context)
    assert context.checkpoints.all() == []


def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path):
    """Dropout is on: its draws come back too, though no random state is saved."""
    optim = optim_config(ema=0.9)
    whole = ToyStage(optim, steps=9, dropout=0.3)
    averaged = train_stage(whole, toy_context(tmp_path / "whole"))
    context = toy_context(tmp_path / "cut", checkpoint_every=4)
    first = ToyStage(optim, steps=9, dropout=0.3)
    first.poison = {6: math.nan}
    with pytest.raises(UserError):
        train_stage(first, context)
    state, path = context.checkpoints.newest(pytest.fail)
    assert state.step == 4
    second = ToyStage(optim, steps=9, dropout=0.3)
    again = toy_context(tmp_path / "cut", checkpoint_every=4, log_bytes=state.log_bytes)
    same(train_stage(second, again, (state, path)).state_dict(), averaged.state_dict())
    same(second.model.state_dict(), whole.model.state_dict())
    assert second.served == [4, 5, 6, 7, 8]
    assert [e["step"] for e in log(tmp_path / "cut")] == list(range(1, 10))
    assert [e["loss"] for e in log(tmp_path / "cut")] == [e["loss"] for e in log(tmp_path / "whole")]
    assert again.results["toy"]["samples"] == 72


def test_dropout_draws_depend_on_the_step(tmp_path):
    """So that the test above cannot pass with a generator that is reset to one value at each step."""
    stage, masks = ToyStage(optim_config(), steps=2, dropout=0.5), []
    stage.model[2].register_forward_hook(lambda _module, _inputs, out: masks.append(out == 0))
    train_stage(stage, toy_context(tmp_path))
    assert not torch.equal(masks[1], masks[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves_it(tmp_path, number):
    stop: list[int] = []
    stage, context = ToyStage(optim_config(), steps=50), toy_context(tmp_path, stop, checkpoint_every=1000)
    losses = stage.losses

    def signalled(model, batch, step):
        if step == 7:
            stop.append(number)
        return losses(model, batch, step)

    stage.losses = signalled
    with pytest.raises(Interrupted, match="step 9 of 50"):
        train_stage(stage, context)
    assert context.checkpoints.newest(pytest.fail)[0].step == 9  # seen at the step after the one it fell into


def test_the_best_is_kept_beside_the_last(tmp_path):
    stage, context = ToyStage(optim_config(), steps=12, eval_every=2), toy_context(tmp_path, checkpoint_every=2)
    stage.scores = {0: 0.1, 1: 0.9, 2: 0.3, 3: 0.9, 4: 0.2, 5: 0.8}
    train_stage(stage, context)
    assert [p.name for p in context.checkpoints.all()] == [f"step-{s:08d}" for s in (4, 10, 12)]
    assert context.results["toy"]["best"]["step"] == 4
    assert context.results["toy"]["metrics"] == {"score": 0.8, "count": 4.0}


def test_damaged_samples_are_logged_once_each_and_survive_a_resume(tmp_path):
    stage, context = ToyStage(optim_config(), steps=4, eval_every=9), toy_context(tmp_path)
    losses = stage.losses

    def damaging(model, batch, step):
        stage.found += [{"event": "damaged", "sample": f"train a.tar:{step % 2}", "reason": "cut"}]
        return losses(model, batch, step)

    stage.losses = damaging
    train_stage(stage, context)
    # The count of FLOPs passes through `losses` too, at step 0.
    assert [e["sample"] for e in log(tmp_path, "damaged")] == ["train a.tar:0", "train a.tar:1"]
    assert context.checkpoints.newest(pytest.fail)[0].damaged == ["train a.tar:0", "train a.tar:1"]
    assert context.results["toy"]["damaged_samples"] == 2
    stage.limit = 1
    with pytest.raises(UserError, match="2 damaged"):
        train_stage(stage, toy_context(tmp_path / "again"))


@pytest.mark.parametrize(
    ("global_batch", "world", "largest", "expected"),
    [(8, 1, None, 8), (8, 2, None, 4), (8, 2, 2, 2), (8, 1, 100, 8), (1024, 4, 64, 64), (6, 3, 1, 1)],
)
def test_device_batches_make_up_the_global_batch(global_batch, world, largest, expected):
    size = device_batch_size(global_batch, world, largest)
    assert size == expected
    assert global_batch % (world * size) == 0


def test_batches_that_cannot_be_split_are_refused():
    with pytest.raises(UserError, match="does not divide over 3 processes"):
        device_batch_size(8, 3, None)
    with pytest.raises(UserError, match="use 4"):
        device_batch_size(16, 2, 6)


def test_flops_are_three_forward_passes_of_the_matrix_products():
    b, n, d, heads = 2, 9, 8, 2
    layer = nn.MultiheadAttention(d, heads, batch_first=True)
    linear = nn.Linear(d, 4 * d)
    x = torch.randn(b, n, d)

    def forward():
        qkv = torch.nn.functional.linear(x, layer.in_proj_weight).view(b, n, 3, heads, d // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        linear(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    by_hand = 2 * b * n * d * 3 * d + 2 * (2 * b * n * n * d) + 2 * b * n * d * 4 * d
    assert forward_flops(forward) == by_hand
    assert count_flops(forward) == 3 * by_hand


def test_flops_of_a_model_that_looks_at_parts_of_its_parameters():
    """Pooling by attention expands a parameter, whose view has no gradient function under `no_grad`."""
    model = timm.create_model("vit_base_patch16_siglip_256", img_size=32, depth=1, num_classes=10)
    plain = timm.create_model("vit_base_patch16_siglip_gap_256", img_size=32, depth=1, num_classes=10)
    x = torch.zeros(1, 3, 32, 32)
    assert forward_flops(lambda: model(x)) > forward_flops(lambda: plain(x)) > 0


def test_flops_in_the_result_are_those_of_the_samples(tmp_path):
    context = toy_context(tmp_path)
    train_stage(ToyStage(optim_config()), context)
    assert context.results["toy"]["flops"] == 6 * 8 * 3 * 2 * (5 * 16 + 16)


def test_optimizer_state_is_named_by_parameter(tmp_path):
    stage = ToyStage(optim_config())
    context = toy_context(tmp_path)
    train_stage(stage, context)
    names = {n for n, _ in stage.model.named_parameters()}
    saved = read_tensors(context.checkpoints.all()[-1], "optimizer")
    assert {n.rsplit("/", 1)[0] for n in saved} == names
    assert {n.rsplit("/", 1)[1] for n in saved} == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer_tensors(stage.model, torch.optim.SGD(stage.model.parameters())) == {}


def test_a_stage_is_told_what_was_measured_again_when_it_goes_on(tmp_path):
    """After evaluations at steps 3 and 6; the checkpoint of step 4 lies behind the first, that of step 2 before it."""
    stage = ToyStage(optim_config(), steps=6, eval_every=3)
    stage.scores = {0: 0.25, 1: 0.75}
    context = toy_context(tmp_path, keep_last=9)
    train_stage(stage, context)
    told = [m["score"] for m in stage.followed]
    assert told == [0.25, 0.75]
    for step, expected in ((2, [0.25, 0.75]), (4, [0.25, 0.75]), (6, [0.75])):
        path = context.checkpoints.path(step)
        again = ToyStage(optim_config(), steps=6, eval_every=3)
        again.scores = {0: 0.25, 1: 0.75} if step == 2 else {0: 0.75}
        train_stage(again, toy_context(tmp_path / str(step)), (read_state(path), path))
        assert [m["score"] for m in again.followed] == expected


@pytest.mark.parametrize("ema", [None, 0.5])
@pytest.mark.parametrize("last", [False, True])
def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path, ema, last):
    """The loss of the step that spoils them is still finite."""
    stage = ToyStage(optim_config(lr=1e38, start_lr=1e38, min_lr=1e38, ema=ema), steps=3, eval_every=9)
    stage.schedule_lengths = (0, 0)
    context = toy_context(tmp_path, log_every=99, checkpoint_every=9 if last else 1)
    stage.parameter_groups = lambda: [{"params": list(stage.model.parameters()), "weight_decay": 1e30}]
    with pytest.raises(UserError, match=r"toy: (the weights are|the loss or its gradient is) not finite") as error:
        train_stage(stage, context)
    assert "\n" not in str(error.value) and str(error.value).endswith("last good checkpoint: none")
    assert context.checkpoints.all() == []
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_metrics_that_are_not_finite_reach_no_checkpoint(tmp_path):
    stage = ToyStage(optim_config(), steps=6, eval_every=3)
    stage.metrics = lambda totals: {"score": math.nan if stage.evaluations > 1 else 1.0}
    context = toy_context(tmp_path)
    with pytest.raises(UserError, match="toy: score of the evaluation at step 6 is not finite") as error:
        train_stage(stage, context)
    assert read_state(context.checkpoints.all()[-1]).metrics == {"score": 1.0}
    assert str(error.value).endswith(f"last good checkpoint: {context.checkpoints.all()[-1]}")
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


def test_a_compiler_that_is_missing_is_said_before_anything_is_built(monkeypatch):
    def fails(*_):
        raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler .*: No working C\+\+ compiler found; install it"):
        check_compile(optim_config(compile=True), torch.device("cpu"))
    check_compile(optim_config(), torch.device("cpu"))
