"""Stage text: perplexity and answers against plain computations, the order of rows, budgets of shipped recipes."""

import gzip
import io
import json
import math
import tarfile
import tempfile
from pathlib import Path

import gluemaking
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.assembly import assemble
from vitwarm.config import Config, DecoderConfig, ModelConfig, TextConfig, TrainConfig, WarmupConfig
from vitwarm.data.tokenizers import read_tokenizer
from vitwarm.errors import UserError
from vitwarm.recipe import list_recipes, load_recipe
from vitwarm.run import run
from vitwarm.trunk import generate

BOS, END = 2, 256
TEXTS = ["alpha beta", "gamma", "delta " * 9, "epsilon zeta eta", "theta"]
VAL = ["iota", "kappa " * 7, "lambda mu"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))


def written(path: Path, texts: list[str], field: str = "text") -> str:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def problems(folder: Path, count: int = 6) -> str:
    """Sums of one digit in the layout of DeepMind Mathematics; the splits differ in the digits."""
    for split, first in (("train-easy", 0), ("train-hard", 1), ("interpolate", 2), ("extrapolate", 3)):
        (folder / split).mkdir(parents=True)
        lines = [f"{first} + {i}?\n{first + i}" for i in range(count + first)]
        (folder / split / "sums.txt").write_text("\n".join(lines) + "\n")
    return str(folder)


def config(**text) -> Config:
    c = Config(
        name="tiny",
        model=ModelConfig(decoder=DecoderConfig(size="2_2_8")),
        warmup=WarmupConfig(budget="0"),
        text=TextConfig(**({"length": 16, "budget": "3 epochs"} | text)),
        train=TrainConfig(global_batch=3, lr=1e-2, lr_warmup="1 steps"),
    )
    c.run.workers = 1
    return c


def stage(c: Config):
    return assemble(c, 1).main


# Language


@pytest.mark.parametrize("world", [1, 3])
def test_perplexity_is_that_of_every_token_once(tmp_path, world):
    c = config(train=written(tmp_path / "a.jsonl", TEXTS), val=written(tmp_path / "b.jsonl", VAL))
    main = stage(c)
    decoder = main.model.eval()
    with torch.inference_mode():
        shares = [main.evaluate(decoder, rank, world, 2) for rank in range(world)]
        metrics = main.metrics({n: sum(s[n] for s in shares) for n in shares[0]})
        stream = [END]
        for text in VAL:
            stream += [*text.encode(), END]
        nats = []
        for start in range(0, len(stream) - 1, 16):  # rows of 16 predictions, the last one short
            row = torch.tensor(stream[start : start + 17])
            log_p = decoder(row[None, :-1])[0].log_softmax(-1)
            nats += [-log_p[i, t].item() for i, t in enumerate(row[1:])]
    assert len(nats) == len(stream) - 1 == metrics["count"]
    assert metrics["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)


def test_an_epoch_holds_each_row_once_and_the_result_says_how_many_epochs(tmp_path):
    c = config(train=written(tmp_path / "a.jsonl", TEXTS), val=written(tmp_path / "b.jsonl", VAL))
    main = stage(c)
    rows = len(main.rows)
    assert main.steps == round(3 * rows / 3) and rows == (sum(len(t) + 1 for t in TEXTS)) // 16
    epochs = [main.train_rows(e * rows, (e + 1) * rows) for e in range(3)]
    assert all(sorted(e) == list(range(rows)) for e in epochs) and any((a != epochs[0]).any() for a in epochs[1:])
    c.run.dir = str(tmp_path / "run")
    result = run(c)
    assert result["data"]["epochs"] == pytest.approx(main.steps * 3 / rows) and result["data"]["rows"] == rows
    assert result["data"]["train"]["documents"] == len(TEXTS)
    assert result["metrics"]["perplexity"] < 257


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.text("ab é\n", max_size=40), max_size=6), min_size=1, max_size=4), st.data())
def test_what_a_run_says_it_reads_is_what_plain_python_finds(files, data):
    """Documents, files, bytes and tokens of sources of any kind, and every token of an epoch."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITWARM_CACHE", f"{folder}/cache")
        found = []
        for number, texts in enumerate(files):
            kind = data.draw(st.sampled_from(sorted(WRITERS)))
            WRITERS[kind](Path(folder) / f"t-{number}", texts)
            found += [text.strip("\r\n") if kind == "txt" and len(texts) > 1 else text for text in texts]
        found = [text.encode() for text in found if text] + [b"the last document" * 3]
        written(Path(folder) / "t-9.jsonl", ["the last document" * 3])
        main = stage(config(train=f"{folder}/t-*", val=written(Path(folder) / "v.jsonl", VAL)))
        stream = [END]
        for text in found:
            stream += [*text, END]
        sizes = [path.stat().st_size for path in Path(folder).glob("t-*")]
        read = main.read["train"]
        assert (read["documents"], read["tokens"]) == (len(found), len(stream))
        assert (read["files"], read["bytes"], read["damaged"]) == (len(sizes), sum(sizes), 0)
        rows = main.rows.read(np.sort(main.train_rows(0, len(main.rows))))[0]
        assert rows[:, 1:].ravel().tolist() == stream[1 : len(rows) * 16 + 1] and len(rows) == (len(stream) - 1) // 16
        val = f"val 3 documents, {sum(len(t) + 1 for t in VAL) + 1} tokens in 1 file of 94 bytes"
        held = f"{len(sizes)} file{'s' * (len(sizes) > 1)} of {sum(sizes):,} bytes"
        documents = f"{len(found)} document{'s' * (len(found) > 1)}"
        shown = f"{documents}, {len(stream):,} tokens in {held}, {len(rows):,} sequences, "
        assert main.data_line().startswith(f"text: train {shown}")
        assert main.data_line().endswith(val)


def lines_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def tarred(path, texts):
    with tarfile.open(f"{path}.tgz", "w:gz") as tar:
        for number, text in enumerate(texts):
            content = json.dumps({"text": text}).encode()
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


WRITERS = {
    "jsonl": lambda path, texts: Path(f"{path}.jsonl").write_bytes(lines_of(texts)),
    "gz": lambda path, texts: Path(f"{path}.gz").write_bytes(gzip.compress(b"\n" + lines_of([*texts, ""]))),
    "array": lambda path, texts: Path(f"{path}.json").write_bytes(json.dumps([{"text": t} for t in texts]).encode()),
    "txt": lambda path, texts: Path(f"{path}.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8"),
    "tgz": tarred,
}


def test_the_line_names_damage_and_what_both_hold(tmp_path):
    train = written(tmp_path / "a.jsonl", TEXTS)
    with open(train, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    main = stage(config(train=train, val=written(tmp_path / "b.jsonl", [*VAL, TEXTS[0]]), max_damaged=0.2))
    line = main.data_line()
    assert "text: train 5 documents, 1 damaged, 96 tokens in 1 file of 163 bytes, 5 sequences, " in line
    assert line.endswith("; val 4 documents, 1 also in train, 70 tokens in 1 file of 117 bytes")
    for val in (train, written(tmp_path / "c.jsonl", TEXTS)):
        with pytest.raises(UserError, match=r"text\.val=.*c?\.jsonl.* text\.train=.*a\.jsonl.*not trained on"):
            stage(config(train=train, val=val, max_damaged=0.2))


# Mathematics


def test_answers_are_right_when_greedy_generation_writes_them(tmp_path):
    c = config(task="mathematics", train=problems(tmp_path / "m"), tokenizer="chars", budget="60 epochs")
    main = stage(c)
    optimizer = torch.optim.AdamW(main.parameter_groups(), lr=1e-2)
    for batch in main.batches(0, 0, 1, 3):  # not to learn sums: so that some answers are right
        optimizer.zero_grad()
        (main.losses(main.model, batch, 0).loss / batch.weight).backward()
        optimizer.step()
    decoder, tokenizer = main.model.eval(), read_tokenizer("chars")
    with torch.inference_mode():
        shares = [main.evaluate(decoder, rank, 2, 4) for rank in range(2)]
    metrics = main.metrics({n: sum(s[n] for s in shares) for n in shares[0]})
    mark = main.question_mark
    for split, prefix, first in (("interpolate", "", 2), ("extrapolate", "extrapolate_", 3)):
        nats, tokens, exact = [], [], []
        for i in range(6 + first):
            question = [BOS, *tokenizer.encode(f"{first} + {i}?"), mark]
            answer = [*tokenizer.encode(str(first + i)), BOS]
            with torch.inference_mode():
                log_p = decoder(torch.tensor([question + answer[:-1]]))[0, len(question) - 1 :].log_softmax(-1)
                generated = generate(decoder, torch.tensor([question]), len(answer), temperature=0.0)
            nats += [-log_p[j, t].item() for j, t in enumerate(answer)]
            tokens += (log_p.argmax(-1) == torch.tensor(answer)).tolist()
            exact.append(generated[0, -len(answer) :].tolist() == answer)
        assert metrics[f"{prefix}loss"] == pytest.approx(np.mean(nats), rel=1e-4), split
        assert metrics[f"{prefix}accuracy"] == pytest.approx(np.mean(tokens))
        assert metrics[f"{prefix}exact"] == pytest.approx(np.mean(exact))
    assert metrics["count"] == 8 + 9 and 0 < metrics["exact"] < 1


def test_training_asks_for_answers_and_their_ends_alone(tmp_path):
    main = stage(config(task="mathematics", train=problems(tmp_path / "m"), tokenizer="chars", length=24))
    tokenizer, seen = read_tokenizer("chars"), []
    for row in range(len(main.rows)):
        ids = main.rows.read(np.array([row]))
        asked = main.answers(ids)[0]
        text = "".join("|" if t == BOS else tokenizer.decode([t]) for t in ids[0][asked])
        seen += text.removesuffix("|").split("|")
        assert text.endswith("|") and ids.shape == (1, 25)
    assert sorted(seen) == sorted([str(i) for i in range(6)] + [str(1 + i) for i in range(7)])


def test_a_problem_longer_than_a_row_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"text\.length=4 does not hold the longest problem"):
        stage(config(task="mathematics", train=problems(tmp_path / "m"), tokenizer="chars", length=4))


# Shipped recipes of decoders, at a tiny size

PUBLISHED = {  # tokens of text, and of the warm-up where the paper states them (arXiv 2601.21725)
    "c4_12_12_768": (655.36e6, 20.5e6),
    "codeparrot_12_12_768": (983.04e6, 10.4e6),
    "mathematics_12_12_768": (1638.4e6, 10.4e6),
    "c4_24_16_1024": (10.5e9, 20.5e6),
    "c4_24_16_2048": (10.5e9, 20.5e6),
}
SHIPPED = [name for name, path, _ in list_recipes() if {"lm", "text"} & set(path.parts)]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_build_and_have_the_published_budgets(tmp_path, name):
    plain = load_recipe([f"recipe={name}"])
    overrides = ["model.decoder.size=2_2_8", "warmup.val_rows=8", "run.workers=1", "init_from=null"]
    if plain.text.train:
        if plain.text.task == "mathematics":
            overrides += [f"text.train={problems(tmp_path / 'm')}"]
        elif plain.text.task != "language":
            for split in ("train", "dev"):
                gluemaking.write(tmp_path / f"{split}.tsv", plain.text.task, [("0", split, "b"), ("1", "c", "d")] * 40)
            overrides += [f"text.train={tmp_path}", "text.tokenizer=bytes"]
        else:
            for split in ("train", "val"):
                long = written(tmp_path / f"{split}.jsonl", [f"{split} " * 1000], plain.text.field)
                overrides += [f"text.{split}={long}", "text.tokenizer=bytes"]
    config = load_recipe([f"recipe={name}", *overrides])
    config.transfer.sources = {}  # runs that come before
    parts = assemble(config, 1)
    stages = [s for s in (parts.warmup, parts.main) if s is not None]
    assert stages
    for s in stages:
        batch = s.batch("train", 0, 2)
        assert torch.isfinite(s.losses(s.model, batch, 0).loss) and batch.weight > 0
    if name in PUBLISHED:
        text, warmup = PUBLISHED[name]
        assert parts.main.samples * parts.main.tokens_per_sample == pytest.approx(text, rel=0.002)
        assert parts.warmup.samples * parts.warmup.tokens_per_sample == pytest.approx(warmup, rel=0.01)


def test_the_small_recipes_warm_up_for_three_per_cent_of_the_tokens(tmp_path):
    for name in ("books_small", "java_small", "math_small"):
        c = load_recipe([f"recipe={name}"])
        rows = {"warmup": c.warmup.budget, "text": c.text.budget}
        amounts = {stage: float(text.removesuffix("k tokens").removesuffix("M tokens")) for stage, text in rows.items()}
        assert amounts["warmup"] / 1000 == pytest.approx(0.03 * amounts["text"])
