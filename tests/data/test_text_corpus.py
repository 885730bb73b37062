"""Documents of every kind of file, tokenised into a cache: equal to plain Python, whatever the workers."""

import gzip
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from vitwarm.data.text import TextSource, open_corpus
from vitwarm.data.text import corpus as corpus_module
from vitwarm.data.tokenizers import CharTokenizer
from vitwarm.errors import UserError

END = 256
TEXTS = ["one", "zwei\nzwei", "trois é", "four" * 400, "five"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def jsonl(path, texts, field="text"):
    lines = "".join(json.dumps({field: text, "other": 1}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)
    return path


def opened(spec, workers=1, tokenizer="bytes", max_damaged=0.0, **how):
    return open_corpus(TextSource(str(spec), **how), tokenizer, workers, max_damaged)


def documents(corpus):
    ends = corpus.offsets
    return [corpus.tokens[a:b].tolist() for a, b in zip(ends[:-1], ends[1:], strict=True)]


def expected(texts):
    return [[END, *text.encode()] for text in texts]


def test_documents_stand_between_separators_and_nothing_else_does(tmp_path):
    corpus = opened(jsonl(tmp_path / "a.jsonl", TEXTS))
    stream = [END]
    for text in TEXTS:
        stream += [*text.encode(), END]
    assert corpus.tokens.tolist() == stream
    assert documents(corpus) == expected(TEXTS)
    manifest = corpus.manifest
    assert (manifest.tokens, manifest.documents, manifest.dtype) == (len(stream), len(TEXTS), "uint16")
    assert manifest.text_bytes == sum(len(t.encode()) for t in TEXTS)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(corpus_module, "_JOB_BYTES", 50)
    for i in range(3):
        jsonl(tmp_path / f"part-{i}.jsonl.gz", [f"{i} {j} " * j for j in range(12)])
    written = []
    for workers in (1, 2, 3):
        opened(tmp_path / "part-*.jsonl.gz", workers)
        (folder,) = (p for p in cache.iterdir() if p.is_dir())
        written.append({p.name: p.read_bytes() for p in folder.iterdir()})
        shutil.rmtree(cache)
    assert written[0] == written[1] == written[2]
    assert set(written[0]) == {"tokens.bin", "offsets.bin", "manifest.json", "seen.json"}


def test_every_kind_of_file_gives_its_documents(tmp_path):
    (tmp_path / "story.txt").write_text("<|endoftext|>\n".join(f"\n{t}\n" for t in TEXTS))
    (tmp_path / "wiki.raw.gz").write_bytes(gzip.compress(b" = A = \n\n b \n = = c = = \n = B = \n d \n"))
    (tmp_path / "whole.txt").write_text("\na\n\nb\n")
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for name, data in (("d/0.py", b"x = 1\n"), ("1.json", b'{"py": "y"}'), ("1.cls", b"3")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert documents(opened(tmp_path / "story.txt")) == expected(TEXTS)
    pieces = [" = A = \n\n b \n = = c = = ", " = B = \n d "]
    assert documents(opened(tmp_path / "wiki.raw.gz", heading=r" = [^=].* = $")) == expected(pieces)
    assert documents(opened(tmp_path / "whole.txt")) == expected(["\na\n\nb\n"])
    assert documents(opened(tmp_path / "web.tar", field="py")) == expected(["x = 1\n", "y"])
    both = documents(opened(f"{tmp_path}/{{whole,story}}.txt"))
    assert both == expected(["\na\n\nb\n", *TEXTS])


def test_parquet_gives_its_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"content": [*TEXTS, None], "n": range(6)}), tmp_path / "a.parquet")
    corpus = opened(tmp_path / "a.parquet", field="content", max_damaged=0.2)
    assert documents(corpus) == expected(TEXTS) and corpus.manifest.damaged == 1
    with pytest.raises(UserError, match="no column text"):
        opened(tmp_path / "a.parquet")


def test_damage_is_counted_and_named_and_past_the_threshold_refused(tmp_path):
    lines = [b'{"text": "a"}', b"{broken", b'{"text": 3}', b'{"other": "x"}', b'{"text": "\xff"}', b'{"text": ""}', b""]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    corpus = opened(tmp_path / "a.jsonl", max_damaged=0.7)
    assert documents(corpus) == expected(["a"])
    assert [where for where, _ in corpus.manifest.named] == [f"a.jsonl line {n}" for n in (2, 3, 4, 5)]
    assert (corpus.manifest.damaged, corpus.manifest.empty) == (4, 1)
    with pytest.raises(UserError, match="4 of 6 documents cannot be read.*a.jsonl line 2: not JSON"):
        opened(tmp_path / "a.jsonl", max_damaged=0.6)


def test_a_file_that_is_cut_short_leaves_nothing_behind(tmp_path, cache):
    whole = jsonl(tmp_path / "a.jsonl.gz", TEXTS * 50).read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="a.jsonl.gz: cannot be read to its end"):
        opened(tmp_path / "a.jsonl.gz")
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_a_cache_follows_its_sources_and_nothing_else(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", ["abc"])
    opened(path)
    makes = []
    monkeypatch.setattr(corpus_module, "_make", lambda *a, real=corpus_module._make: (makes.append(1), real(*a)))
    opened(path)
    os.utime(path, ns=(1, 1))  # touched, not changed
    opened(path)
    assert not makes
    jsonl(path, ["xyz"])  # as long as before
    assert documents(opened(path)) == expected(["xyz"]) and makes == [1]


def test_stretches_end_in_separators(tmp_path):
    corpus = opened(jsonl(tmp_path / "a.jsonl", ["abcd"]))
    ids, there = corpus.read(np.array([0, 3]), 4)
    assert ids.tolist() == [[END, *b"abc"], [*b"cd", END, END]]
    assert there.tolist() == [[True] * 4, [True, True, True, False]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [("nothing.jsonl", "no such file"), ("{a", "braces"), ("s3://a", "local files"), ("{a,a}.jsonl", "named twice")],
)
def test_what_cannot_be_found_is_said_in_one_line(tmp_path, spec, message):
    jsonl(tmp_path / "a.jsonl", ["a"])
    with pytest.raises(UserError, match=message):
        opened(spec if "://" in spec else f"{tmp_path}/{spec}")


# DeepMind Mathematics

PROBLEMS = {
    "train-easy/a": [("Solve 2*x = 4 for x.", "2"), ("What is 1 + 1?", "2")],
    "train-hard/b": [("Let f = 3. What is f?", "3")],
    "interpolate/a": [("What is 1 + 2?", "3")],
    "extrapolate/a_big": [("What is 100 + 200?", "300")],
}


def mathematics(folder):
    for name, problems in PROBLEMS.items():
        path = folder / "mathematics_dataset" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{q}\n{a}\n" for q, a in problems))
    return folder / "mathematics_dataset"


@pytest.mark.parametrize("split", ["train", "interpolate", "extrapolate"])
def test_problems_are_read_as_plain_python_reads_them(tmp_path, split):
    folder = mathematics(tmp_path)
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        for path in sorted(folder.rglob("*.txt")):
            tar.add(path, str(path.relative_to(tmp_path)))
    chars = CharTokenizer()
    bos, sep = chars.ids["<bos>"], chars.ids["<sep>"]
    want = []
    for path in sorted(folder.glob(f"{split}*/*.txt")):
        lines = path.read_text().splitlines()
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            want.append([bos, *(chars.ids[c] for c in question), sep, *(chars.ids[c] for c in answer)])
    for source in (folder, tmp_path / "m.tar.gz"):
        assert documents(opened(source, tokenizer="chars", split=split)) == want


def test_a_problem_without_answer_is_damaged(tmp_path):
    folder = mathematics(tmp_path)
    with open(folder / "train-easy/a.txt", "a", encoding="utf-8") as file:
        file.write("What is lost?\n")
    corpus = opened(folder, tokenizer="chars", split="train", max_damaged=0.5)
    assert len(corpus) == 3
    assert corpus.manifest.named == [["train-easy/a.txt problem 3", "not a line of question and a line of answer"]]


def test_problems_need_a_tokenizer_with_their_marks(tmp_path):
    with pytest.raises(UserError, match="text.tokenizer=chars"):
        opened(mathematics(tmp_path), tokenizer="bytes", split="train")
