"""Tasks of GLUE: metrics and their sums, the pooled token, what comes from a language model, the export."""

import json

import numpy as np
import pytest
import torch
import transformers
from gluemaking import write
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from vitwarm.assembly import assemble
from vitwarm.config import Config, DecoderConfig, ModelConfig, OptimConfig, TextConfig, TrainConfig, WarmupConfig
from vitwarm.data.text.glue import TASKS
from vitwarm.data.tokenizers import ByteTokenizer
from vitwarm.errors import Interrupted, UserError
from vitwarm.exports import export_gpt2, read_gpt2
from vitwarm.recipe import load_recipe
from vitwarm.result import summary
from vitwarm.run import run, run_ensemble
from vitwarm.stages.glue import GlueStage, scores
from vitwarm.trunk import Classifier, build_decoder

END = 256
WORDS = ["good", "bad", "so-so", "a rather long sentence", ""]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Writes a task of `count` rows a file, whose first sentence gives the label away; returns its folder."""

    def folder(task="cola", count=23):
        labels = list(TASKS[task].labels)
        for split in ("train", *TASKS[task].dev):
            rng = np.random.default_rng(len(split))
            which = rng.integers(len(labels), size=count)
            rows = [(labels[w], f"{rng.choice(WORDS)} {'abc'[w]}", str(rng.choice(WORDS))) for w in which]
            write(tmp_path / task / f"{split}.tsv", task, rows)
        return tmp_path / task

    return folder


def config(folder, dir=None, task="cola", init_from=None, groups=("trunk", "embedding"), **text):
    c = Config(
        name="tiny",
        init_from=None if init_from is None else str(init_from),
        model=ModelConfig(decoder=DecoderConfig(size="2_2_8")),
        warmup=WarmupConfig(budget="0"),
        text=TextConfig(**({"task": task, "train": str(folder), "length": 32, "budget": "2 epochs"} | text)),
        train=TrainConfig(global_batch=8, lr=1e-2, lr_warmup="1 steps"),
    )
    c.transfer.groups = list(groups)
    c.run.dir = None if dir is None else str(dir)
    c.run.workers = 1
    return c


# Metrics


@pytest.mark.parametrize("labels, task", [(2, "cola"), (2, "mrpc"), (2, "qqp"), (2, "rte"), (3, "mnli")])
def test_scores_are_those_of_scikit_learn(labels, task):
    rng = np.random.default_rng(0)
    for count, share in ((1, 0.5), (7, 0.0), (7, 1.0), (50, 0.3), (500, 0.9)):
        true = rng.integers(labels, size=count)
        taken = np.where(rng.random(count) < share, true, rng.integers(labels, size=count))
        for t, p in ((true, taken), (true, np.zeros_like(true)), (np.ones_like(true), taken), (true, true)):
            counts = np.zeros((labels, labels))
            np.add.at(counts, (t, p), 1)
            expected = {"accuracy": accuracy_score(t, p)}
            if task == "cola":
                expected["matthews"] = matthews_corrcoef(t, p)
            elif task in ("mrpc", "qqp"):
                expected["f1"] = f1_score(t, p, zero_division=0.0)
            assert scores(task, counts) == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("val_rows", [None, 3])
def test_metrics_are_exact_over_any_number_of_processes(folder, task, val_rows):
    stage = assemble(config(folder(task), task=task, val_rows=val_rows), 1).main
    assert isinstance(stage, GlueStage)
    torch.nn.init.normal_(stage.model.score.weight, std=3.0, generator=torch.Generator().manual_seed(1))
    model, expected = stage.model.eval(), {}
    with torch.inference_mode():
        for split, prefix in zip(TASKS[task].dev, ("", "mismatched_"), strict=False):
            true, taken, loss = [], [], 0.0
            lines = [line for line in stage.val if TASKS[task].dev[line[0]] == split]
            assert len(lines) == (val_rows or 23)
            for _, row in lines:
                ids, labels = stage.sentences[split].read(np.array([row]))
                logits = model(torch.from_numpy(ids))[0]
                true, taken = [*true, int(labels[0])], [*taken, int(logits.argmax())]
                loss -= float(logits.log_softmax(0)[true[-1]])
            expected |= {f"{prefix}loss": loss / len(true), f"{prefix}accuracy": accuracy_score(true, taken)}
            if task == "cola":
                expected["matthews"] = matthews_corrcoef(true, taken)
            elif task in ("mrpc", "qqp"):
                expected["f1"] = f1_score(true, taken, zero_division=0.0)
        for world, size in ((1, 64), (3, 4), (50, 8)):
            shares = [stage.evaluate(model, rank, world, size) for rank in range(world)]
            metrics = stage.metrics({name: sum(s[name] for s in shares) for name in shares[0]})
            assert metrics == pytest.approx(expected | {"count": len(stage.val)}, rel=1e-5)
            assert metrics["accuracy"] == expected["accuracy"]


# Rows and the token that is read


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_padding_cannot_change_a_logit(folder, task):
    c = config(folder(task), task=task)
    c.model.decoder.positions = 40
    stage = assemble(c, 1).main
    model = stage.model.eval()
    batch = stage.batch("train", 0, 8)
    with torch.inference_mode():
        together = model(batch.tokens)
        lengths = []
        for ids, logits in zip(batch.tokens, together, strict=True):
            row = ids.tolist()
            while row[-1] == END and len(row) > 1 and row.count(END) > len(TASKS[task].sentences):
                row.pop()
            lengths.append(len(row))
            for padding in (0, 1, 32 - len(row)):
                alone = torch.tensor([row + [END] * padding])
                torch.testing.assert_close(model(alone)[0], logits, rtol=1e-5, atol=1e-6)
            other = torch.tensor([row + [END] * 8])
            place = max(i for i, t in enumerate(row) if t != END)
            features = model.features(model.embed(other))[0, place]
            torch.testing.assert_close(model.score(features), logits, rtol=1e-5, atol=1e-6)
    assert len(set(lengths)) > 1 and max(lengths) == batch.tokens.shape[1]


def test_an_epoch_shows_each_row_once_and_batches_run_across_its_end(folder):
    stage = assemble(config(folder(count=23), budget="3 epochs"), 1).main
    assert stage.steps == round(3 * 23 / 8) == 9
    rows = stage.train_rows(0, 72)
    for epoch in range(3):
        assert sorted(rows[23 * epoch : 23 * (epoch + 1)]) == list(range(23))
    labels = np.concatenate([stage.batch("train", i, i + 8).labels for i in range(0, 72, 8)])
    lines = (folder(count=23) / "train.tsv").read_text().splitlines()
    assert labels.tolist() == [int(lines[row].split("\t")[1]) for row in rows]


def test_a_fresh_classifier_leaves_the_global_generator_alone_and_follows_its_seed(folder):
    torch.manual_seed(5)
    draw = torch.rand(3)
    torch.manual_seed(5)
    first, again = (assemble(config(folder()), 1).model for _ in range(2))
    assert torch.equal(torch.rand(3), draw)
    assert isinstance(first, Classifier) and torch.equal(first.score.weight, again.score.weight)
    decoder = build_decoder("2_2_8", 257, 32, "text", seed=0)
    assert all(torch.equal(t, first.state_dict()[n]) for n, t in decoder.state_dict().items())
    big = Classifier("1_2_512", 4, 4, labels=("a", "b"), pad=0)
    assert big.score.weight.std().item() == pytest.approx(0.02, rel=0.1)


# Runs


def test_a_task_is_learnt(tmp_path, folder):
    result = run(config(folder(count=40), tmp_path / "run", budget="10 epochs"), stop=[])
    assert result["metrics"]["accuracy"] > 0.9 and result["metrics"]["matthews"] > 0.8


def test_a_run_that_was_stopped_ends_with_the_same_bits(tmp_path, folder):
    where, results = folder("mnli"), []
    for name in ("whole", "stopped"):
        c = config(where, tmp_path / name, task="mnli", budget="2 epochs", eval_every=4)
        c.model.decoder.dropout = 0.1
        if name == "stopped":
            with pytest.raises(Interrupted):
                run(c, stop=[15])
        results.append(run(c, stop=[]))
    whole, stopped = ((tmp_path / name / "export/model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped and results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["metrics"]["count"] == 46
    facts = results[0]["data"]
    assert facts["rows"] == 23 and facts["epochs"] == pytest.approx(6 * 8 / 23)
    rows = [line.split("\t")[8:10] for line in (where / "train.tsv").read_text().splitlines()[1:]]
    lengths = [len(a.strip()) + len(b.strip()) + 2 for a, b in rows]
    assert facts["train"]["tokens"] == sum(lengths) + 1  # and a separator closes the corpus
    assert facts["train"]["truncated"] == sum(length > 32 for length in lengths) > 0
    assert "transformers.GPT2ForSequenceClassification.from_pretrained" in summary(results[0], tmp_path / "whole")


def test_the_export_gives_the_same_logits_in_transformers(tmp_path, folder):
    c = config(folder("mrpc"), tmp_path / "run", task="mrpc")
    run(c, stop=[])
    stage = assemble(c, 1).main
    stage.model.load_state_dict(load_file(newest(tmp_path / "run") / "model.safetensors"))
    theirs, said = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run" / "export", output_loading_info=True
    )
    assert type(theirs) is transformers.GPT2ForSequenceClassification
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert theirs.config.id2label == {0: "not_equivalent", 1: "equivalent"} and theirs.config.num_labels == 2
    assert theirs.config.label2id == {"not_equivalent": 0, "equivalent": 1} and theirs.config.pad_token_id == END
    batch = stage.batch("validation", 0, 23)
    with torch.inference_mode():
        ours = stage.model.eval()(batch.tokens)
        torch.testing.assert_close(theirs.eval()(batch.tokens).logits, ours, rtol=1e-5, atol=1e-6)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "export", pad_token="<|endoftext|>")
        lines = (tmp_path / "mrpc" / "dev.tsv").read_text().splitlines()[1:]
        texts = ["".join(f"<|endoftext|>{text.strip()}" for text in line.split("\t")[3:]) for line in lines]
        short = [i for i, text in enumerate(texts) if len(tokenizer(text).input_ids) <= 32]
        assert len(short) > 10
        encoded = tokenizer([texts[i] for i in short], padding=True, return_tensors="pt")
        torch.testing.assert_close(theirs(**encoded).logits, ours[short], rtol=1e-5, atol=1e-6)


def newest(folder):
    return max((folder / "checkpoints").iterdir())


# From a language model


def language_model(path, positions=32, vocab=257):
    decoder = build_decoder("2_2_8", vocab, positions, "source", seed=7)
    for p in decoder.parameters():
        torch.nn.init.normal_(p)
    export_gpt2(decoder, path, tokenizer=ByteTokenizer() if vocab == 257 else None)
    return decoder.state_dict()


@pytest.mark.parametrize("positions", [32, 48])
def test_tokens_and_the_first_positions_come_from_a_language_model(tmp_path, folder, positions):
    theirs = language_model(tmp_path / "lm", positions)
    fresh = assemble(config(folder()), 1).model.state_dict()
    parts = assemble(config(folder(), init_from=tmp_path / "lm"), 1)
    own = parts.model.state_dict()
    assert torch.equal(own["token_embed.weight"], theirs["token_embed.weight"])
    assert torch.equal(own["pos_embed.weight"], theirs["pos_embed.weight"][:32])
    assert all(torch.equal(t, theirs[n]) for n, t in own.items() if n.startswith(("blocks.", "norm.")))
    assert torch.equal(own["score.weight"], fresh["score.weight"]) and parts.given.fresh == ["score.weight"]
    c = config(folder(), init_from=tmp_path / "lm")
    c.model.decoder.positions = positions
    assert torch.equal(assemble(c, 1).model.pos_embed.weight, theirs["pos_embed.weight"])
    tables = assemble(config(folder(), init_from=tmp_path / "lm", groups=["trunk"]), 1).model.state_dict()
    assert torch.equal(tables["token_embed.weight"], fresh["token_embed.weight"])


def test_a_folder_of_transformers_is_a_language_model_too(tmp_path, folder):
    settings = {"vocab_size": 257, "n_positions": 64, "n_embd": 8, "n_layer": 2, "n_head": 2}
    source = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
    source.save_pretrained(tmp_path / "gpt2")
    own = assemble(config(folder(), init_from=tmp_path / "gpt2"), 1).model
    tokens = torch.randint(0, 256, (3, 20))
    with torch.inference_mode():
        theirs = source.eval().transformer(tokens).last_hidden_state
        torch.testing.assert_close(own.eval().features(own.embed(tokens)), theirs, rtol=1e-4, atol=1e-5)


def test_a_classifier_starts_a_classifier_of_another_task(tmp_path, folder):
    run(config(folder("mnli"), tmp_path / "mnli-run", task="mnli"), stop=[])
    source = tmp_path / "mnli-run" / "export"
    theirs = load_file(source / "model.safetensors")
    own = assemble(config(folder("rte"), task="rte", init_from=source), 1)
    assert torch.equal(own.model.token_embed.weight, theirs["transformer.wte.weight"])
    assert own.given.fresh == ["score.weight"]
    with pytest.raises(UserError, match=r"score.weight \(source \(3, 8\), target \(2, 8\)\)"):
        assemble(config(folder("rte"), task="rte", init_from=source, groups=["trunk", "embedding", "head"]), 1)
    with pytest.raises(UserError, match="holds a classifier"):
        read_gpt2(source)


@pytest.mark.parametrize(
    ("positions", "vocab", "says"),
    [
        (31, 257, r"pos_embed.weight \(source \(31, 8\), target \(32, 8\)\); a decoder may have no more positions"),
        (32, 300, r"token_embed.weight \(source \(300, 8\), target \(257, 8\)\); .*vocabulary .* must be the source's"),
    ],
)
def test_another_vocabulary_or_fewer_positions_are_refused(tmp_path, folder, positions, vocab, says):
    language_model(tmp_path / "lm", positions, vocab)
    with pytest.raises(UserError, match=says) as error:
        assemble(config(folder(), init_from=tmp_path / "lm"), 1)
    assert "\n" not in str(error.value)
    assemble(config(folder(), init_from=tmp_path / "lm", groups=["trunk"]), 1)


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model.decoder.size=null"], "text.train needs a decoder"),
        (["text.val=dev.tsv"], "text.task=rte has validation data of its own; leave text.val out"),
        (["text.field=sentence"], "text.task=rte has files of its own; leave text.field out"),
        (["text.heading=x"], "leave text.heading out"),
        (["model.decoder.tied=false"], "text.task=rte predicts no tokens; leave model.decoder.tied out"),
        (["text.budget=0"], "text.budget=0 is not a length"),
        (["text.task=stsb"], "text.task: expected one of language, mathematics, cola"),
    ],
)
def test_impossible_recipes(tmp_path, overrides, says):
    tiny = "model: {decoder: {size: 2_2_8x}}\ntext: {task: rte, train: RTE}\nwarmup: {budget: '0'}\n"
    (tmp_path / "tiny.yaml").write_text(tiny.replace("2_2_8x", '"2_2_8"'))
    recipe = f"recipe={tmp_path / 'tiny.yaml'}"
    assert load_recipe([recipe]).text.task == "rte"
    with pytest.raises(UserError, match=says) as error:
        load_recipe([recipe, *overrides])
    assert "\n" not in str(error.value)


def test_missing_files_and_damage_are_said_before_anything_is_written(tmp_path, folder):
    where = folder("mnli")
    (where / "dev_mismatched.tsv").unlink()
    c = config(where, tmp_path / "run", task="mnli")
    with pytest.raises(UserError, match="no dev_mismatched.tsv, which the folder MNLI of GLUE's download has"):
        run(c, stop=[])
    where = folder("rte")
    (where / "dev.tsv").write_text((where / "dev.tsv").read_text() + "0\ta\tb\tperhaps\n")
    with pytest.raises(UserError, match="1 of 24 documents .* first dev.tsv line 25: label 'perhaps'"):
        run(config(where, tmp_path / "run", task="rte"), stop=[])
    assert not (tmp_path / "run").exists()
    run(config(where, tmp_path / "run", task="rte", max_damaged=0.1), stop=[])
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [e["sample"] for e in log if e["event"] == "damaged"] == ["dev dev.tsv line 25"]


def test_positions_and_ensembles(tmp_path, folder):
    c = config(folder())
    c.model.decoder.positions = 16
    with pytest.raises(UserError, match="positions=16 is too short for sequences of 32 tokens"):
        assemble(c, 1)
    with pytest.raises(UserError, match="run the seeds one by one"):
        run_ensemble(config(folder(), tmp_path / "seeds"), [0, 1])


def test_a_warm_up_comes_before_a_task(tmp_path, folder):
    c = config(folder(), tmp_path / "run", groups=["trunk"])
    optim = OptimConfig(global_batch=8, lr_warmup="1 steps")
    c.warmup = WarmupConfig(**vars(optim) | {"lr_warmup": "1 steps"}, objective="next_token", length=14,
                            rule={"name": "set", "symbols": 9}, budget="3 steps", val_rows=8)  # fmt: skip
    result = run(c, stop=[])
    assert list(result["stages"]) == ["warmup", "text"] and "matthews" in result["metrics"]
    for name in ("warmup", "export"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / name)
