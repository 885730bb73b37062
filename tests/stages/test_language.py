"""Stages of decoders: what is asked of the model and what not, two measures of a task, what passes between them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from vitwarm.assembly import assemble
from vitwarm.config import AlgorithmicConfig, Config, DecoderConfig, ModelConfig, TrainConfig, WarmupConfig
from vitwarm.errors import UserError
from vitwarm.recipe import load_recipe
from vitwarm.run import run
from vitwarm.stages import NextStateWarmup, NextTokenWarmup, make_warmup
from vitwarm.stages.tokens import next_token_batch
from vitwarm.transfer import Part
from vitwarm.trunk import build_decoder

DECODER = DecoderConfig(size="2_2_8", tied=False)
SET = {"name": "set", "symbols": 9, "end": False}


def config(
    task="addition", size=2, objective="next_token", rule=SET, length=13, tied=False, warmup=None, **algorithmic
):
    optim = {"global_batch": 8, "lr_warmup": "1 steps"}
    given = {"objective": objective, "rule": rule, "length": length, "budget": "2 steps", "val_rows": 10}
    task = AlgorithmicConfig(**({"task": task, "size": size, "budget": "3 steps", "val_rows": 37} | algorithmic))
    return Config(
        name="tiny",
        model=ModelConfig(num_classes=1000, decoder=replace(DECODER, tied=tied)),  # as recipes resolve it
        warmup=WarmupConfig(**(optim | given | (warmup or {}))),
        algorithmic=task,
        train=TrainConfig(**optim),
    )


# Rows as input and target


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_the_loss_of_asked_tokens_is_that_of_a_plain_computation(share):
    rng = np.random.default_rng(0)
    tokens, asked = rng.integers(0, 11, (6, 17)), rng.random((6, 17)) < share
    asked[2] = False
    decoder = build_decoder("2_2_8", 11, 16, seed=0)
    batch = next_token_batch(tokens, asked)
    assert (batch.positions is not None) == (share < 0.5)
    loss, correct = decoder(batch.tokens, batch.targets, batch.weights, positions=batch.positions)
    log_p = decoder(torch.from_numpy(tokens[:, :-1])).log_softmax(-1)
    pairs = [(b, n) for b in range(6) for n in range(16) if asked[b, n + 1]]
    assert batch.weight == len(pairs)
    expected = -sum(log_p[b, n, tokens[b, n + 1]] for b, n in pairs)
    torch.testing.assert_close(loss, expected)
    assert correct == sum(int(log_p[b, n].argmax() == tokens[b, n + 1]) for b, n in pairs)


def test_what_the_rule_scores_or_all_but_pad():
    for loss_on in ("outputs", "all"):
        stage = make_warmup(config(warmup={"loss_on": loss_on}), None)
        assert isinstance(stage, NextTokenWarmup)
        rows = stage.streams.train.rows(0, 8)
        wanted = rows.scored if loss_on == "outputs" else rows.tokens != 0
        batch = stage.batch("train", 0, 8)
        assert batch.weight == wanted[:, 1:].sum()
        assert sorted(batch.targets[batch.weights > 0].tolist()) == sorted(rows.tokens[:, 1:][wanted[:, 1:]])
        assert (batch.tokens.numpy() == rows.tokens[:, :-1]).all()
        sums = stage.losses(stage.model, batch, 0)
        vocab = stage.rule.vocab.size
        assert sums.loss.item() / batch.weight == pytest.approx(math.log(vocab), abs=0.1)


@pytest.mark.parametrize("alone", [False, True])
def test_a_warmup_may_have_a_head_and_dropout_of_its_own(alone):
    """The head of the warm-up, the rates of its dropouts, the task's head and rates."""
    given = config(warmup={"tied": True, "dropout": 0.25}, task=None if alone else "addition")
    experiment = assemble(given, 1)
    model = experiment.warmup.model
    assert model.head is None and {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert make_warmup(given, None, model).model.dropout == 0.25
    assert (experiment.model.head is None) == alone  # a warm-up alone exports what it trained
    assert alone or not experiment.model.dropout
    experiment.transfer_warmup(model)
    tokens = model.token_embed.weight
    expected = tokens if alone else tokens.mean(0).expand_as(experiment.model.head_weight)
    torch.testing.assert_close(experiment.model.head_weight, expected)
    states = make_warmup(config(objective="next_state", rule=automaton(), length=6, warmup={"dropout": 0.25}), None)
    assert {m.p for m in states.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe=digits_proc", "warmup.tied=true"], "warmup.tied is for decoders"),
        (["recipe=digits_proc", "warmup.dropout=0.1"], "warmup.dropout is for decoders"),
        (
            ["recipe=addition_eca", "warmup.loss_on=all"],
            "warmup.loss_on=all is for objective next_token, not next_state",
        ),
        (
            ["recipe=lm_set_12_12_768", "warmup.mask_prob=0.3"],
            "warmup.mask_prob=0.3 is for objective masked, not next_",
        ),
        (["recipe=addition_eca", "warmup.tied=true"], "warmup.tied: objective next_state has a head of its own kind"),
    ],
)
def test_a_head_or_dropout_that_the_warmup_does_not_have_is_refused(words, says):
    with pytest.raises(UserError, match=says):
        load_recipe(words)


# Next state


def automaton(**more):
    return {"name": "eca", "number": 110, "width": 10, **more}


def test_bits_of_a_state_follow_from_the_state_before():
    stage = make_warmup(config(objective="next_state", rule=automaton(), length=6), None)
    assert isinstance(stage, NextStateWarmup)
    states = stage.batch("train", 0, 8).states
    assert states.shape == (8, 6, 10) and set(states.unique().tolist()) == {0.0, 1.0}
    for t in range(5):
        now = states[:, t].long()
        number = 4 * now.roll(1, 1) + 2 * now + now.roll(-1, 1)
        assert torch.equal(states[:, t + 1].long(), 110 >> number & 1)
    sums, weight = stage.losses(stage.model, stage.batch("train", 0, 8), 0), 8 * 5 * 10
    assert sums.loss.item() / weight == pytest.approx(math.log(2), abs=0.05)
    states = states.clone()
    before = stage.model(states)
    states[:, 4] = 1 - states[:, 4]
    assert torch.equal(stage.model(states)[:, :4], before[:, :4])  # nothing looks ahead
    assert all(n.startswith(("blocks.", "norm.")) for n in stage.trained_tensors(stage.model))


def test_an_automaton_learns_its_rule():
    given = {"global_batch": 64, "budget": "300 steps"}
    stage = make_warmup(config(objective="next_state", rule=automaton(number=15), length=6, warmup=given), None)
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=1e-2)
    for batch in stage.batches(0, 0, 1, 64):
        optimizer.zero_grad()
        (stage.losses(stage.model, batch, 0).loss / batch.weight).backward()
        optimizer.step()
    with torch.inference_mode():
        metrics = stage.metrics(stage.evaluate(stage.model.eval(), 0, 1, 10))
    assert metrics["accuracy"] > 0.9  # rule 15: the complement of the left neighbour


@pytest.mark.parametrize("rule", [SET, automaton(width=None), automaton(block=2)])
def test_only_automata_have_states(rule):
    with pytest.raises(UserError, match="set warmup.rule.name=eca"):
        make_warmup(config(objective="next_state", rule=rule), None)


# Algorithmic tasks


@pytest.mark.parametrize("task", ["addition", "reversed_addition", "multiplication", "haystack", "sorting"])
@pytest.mark.parametrize("loss_on", ["published", "answers"])
def test_both_measures_are_those_of_a_plain_count(task, loss_on):
    stage = assemble(config(task, 3, loss_on=loss_on), 1).main
    decoder = stage.model.eval()
    with torch.inference_mode():
        shares = [stage.evaluate(decoder, rank, 3, 4) for rank in range(3)]
        metrics = stage.metrics({n: sum(s[n] for s in shares) for n in shares[0]})
        rows = stage.streams["validation"].rows(0, 37)
        log_p = decoder(torch.from_numpy(rows.tokens[:, :-1])).log_softmax(-1)
    targets = rows.tokens[:, 1:]
    right = log_p.argmax(-1).numpy() == targets
    published, answer = rows.published[:, 1:], rows.answer[:, 1:]
    trained = published if loss_on == "published" else published | answer
    nats = -log_p.gather(2, torch.from_numpy(targets)[..., None])[..., 0].numpy()
    assert metrics["accuracy"] == pytest.approx(right[published].mean())
    assert metrics["token_accuracy"] == pytest.approx(right[answer].mean())
    assert metrics["exact"] == pytest.approx((right | ~answer).all(1).mean())
    assert metrics["loss"] == pytest.approx(nats[trained].mean(), rel=1e-5)
    assert metrics["count"] == 37
    batch = stage.batch("train", 0, 8)
    train = stage.streams["train"].rows(0, 8)
    wanted = train.published if loss_on == "published" else train.published | train.answer
    assert batch.weight == wanted.sum() == batch.weights.sum()


def test_more_processes_than_validation_rows():
    stage = assemble(config(val_rows=2), 1).main
    with torch.inference_mode():
        shares = [stage.evaluate(stage.model.eval(), rank, 5, 4) for rank in range(5)]
    assert len({frozenset(s) for s in shares}) == 1
    assert stage.metrics({n: sum(s[n] for s in shares) for n in shares[0]})["count"] == 2


def test_addition_is_learnt():
    c = config("addition", 1, loss_on="answers", budget="300 steps")
    c.train.global_batch = 64
    stage = assemble(c, 1).main
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=1e-2)
    for batch in stage.batches(0, 0, 1, 64):
        optimizer.zero_grad()
        (stage.losses(stage.model, batch, 0).loss / batch.weight).backward()
        optimizer.step()
    with torch.inference_mode():
        metrics = stage.metrics(stage.evaluate(stage.model.eval(), 0, 1, 64))
    assert metrics["accuracy"] > 0.5 and metrics["token_accuracy"] > 0.5


# From the warm-up to the task


@pytest.mark.parametrize("tied", [False, True])
def test_mean_embeddings(tied):
    c = config(tied=tied)
    parts = assemble(c, 1)
    fresh = {n: t.clone() for n, t in parts.model.state_dict().items()}
    tensors = parts.warmup.trained_tensors(parts.warmup.model)
    report = parts.transfer([Part(c.transfer.groups, tensors, "the warm-up")])
    now = parts.model.state_dict()
    mean = tensors["token_embed.weight"].mean(0)
    tables = ["token_embed.weight"] if tied else ["token_embed.weight", "head.weight"]
    for name in tables:
        assert (now[name] == mean).all()
    assert torch.equal(now["pos_embed.weight"], tensors["pos_embed.weight"][: parts.model.n_positions])
    for name in (n for n in now if n.startswith(("blocks.", "norm."))):
        assert torch.equal(now[name], tensors[name])
        assert name.endswith("bias") or "norm" in name or not torch.equal(now[name], fresh[name])
    assert sorted(report.copied) == sorted(now) and not report.fresh


def test_positions_stay_fresh_when_the_source_has_fewer():
    c = config(length=5)
    parts = assemble(c, 1)
    before = parts.model.pos_embed.weight.clone()
    _, report = parts.transfer_warmup(parts.warmup.model)
    assert torch.equal(parts.model.pos_embed.weight, before) and report.fresh == ["pos_embed.weight"]


def test_attention_alone_leaves_all_else_fresh():
    c = config(embeddings="fresh")
    c.transfer.groups = ["attention"]
    parts = assemble(c, 1)
    before = {n: t.clone() for n, t in parts.model.state_dict().items()}
    parts.transfer_warmup(parts.warmup.model)
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".attn." not in name or name.endswith("bias")), name


@pytest.mark.parametrize("objective", ["next_token", "next_state", "masked"])
def test_a_run_ends_in_a_folder_for_transformers(tmp_path, objective):
    rule, length = (automaton(), 6) if objective == "next_state" else (SET, 13)
    c = config(objective=objective, rule=rule, length=length)
    c.run.dir = str(tmp_path / "run")
    result = run(c)
    assert list(result["stages"]) == ["warmup", "algorithmic"]
    for folder in ("export", "warmup"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / folder)
        assert model.config.vocab_size == 31
    again = config(objective=objective, rule=rule, length=length)
    again.run.dir, again.init_from = str(tmp_path / "again"), str(tmp_path / "run")
    assert list(run(again)["stages"]) == ["algorithmic"]


def test_a_warm_up_alone_is_a_language_model_of_its_rule(tmp_path):
    c = config(task=None)
    c.run.dir = str(tmp_path / "run")
    result = run(c)
    assert result["metrics"] == result["stages"]["warmup"]["metrics"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").eval()
    stage = make_warmup(c, None)
    rows = stage.streams.validation.rows(0, 10)
    with torch.inference_mode():
        log_p = model(torch.from_numpy(rows.tokens[:, :-1])).logits.log_softmax(-1)
    nats = -log_p.gather(2, torch.from_numpy(rows.tokens[:, 1:])[..., None])[..., 0].numpy()
    assert result["metrics"]["loss"] == pytest.approx(nats[rows.scored[:, 1:]].mean(), rel=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["algorithmic.task=haystack"], "needs a decoder"),
        (["warmup.objective=next_token"], "needs a decoder"),
        (["model.decoder.size=2_4_16"], "a decoder reads no images"),
        (["model.decoder.size=2416"], "put it in quotes"),
        (["model.decoder.size=2_4_16", "images.train=", "warmup.budget=4 steps"], "warmup.length is missing"),
        (["model.decoder.size=2_4_16", "images.train=", "algorithmic.task=sorting", "warmup.budget=0",
          "algorithmic.budget=3 epochs"], "no epochs"),
    ],
)  # fmt: skip
def test_impossible_mixes(overrides, says):
    with pytest.raises(UserError, match=says) as error:
        load_recipe(["recipe=digits_proc", *overrides])
    assert "\n" not in str(error.value)


def test_impossible_lengths():
    with pytest.raises(UserError, match="positions=3 is too short for sequences of 9 tokens"):
        c = config()
        c.model.decoder.positions = 3
        assemble(c, 1)
    with pytest.raises(UserError, match="algorithmic.size"):
        assemble(config("haystack", 31), 1)
