"""GLUE's files, each task in its own layout: rows, damage, and pairs that do not fit."""

import numpy as np
import pytest
from gluemaking import LAYOUT, write

from vitwarm.data.text import TextSource, open_corpus
from vitwarm.data.text.glue import TASKS
from vitwarm.data.text.packing import Sentences, shares
from vitwarm.errors import UserError

END = 256


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "cache"))


def opened(folder, task, split="train", workers=1, max_damaged=0.0):
    return open_corpus(TextSource(str(folder), split=split, glue=task), "bytes", workers, max_damaged)


def rows_of(corpus, length=1000):
    """(label, ids without padding) of each row."""
    sentences = Sentences(corpus, length)
    read = [sentences.read(np.array([i])) for i in range(len(sentences))]
    return [(int(labels[0]), ids[0].tolist()) for ids, labels in read]


SENTENCES = [
    ('He said "no.', "She\u2028 said 'no\" é"),
    ("a \\t b", ""),
    ("", "alone"),
    ("one", "two"),
    (" spaces around ", " spaces too "),
]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("task", TASKS)
def test_rows_of_each_task_in_its_own_layout(tmp_path, task, newline):
    labels = list(TASKS[task].labels)
    rows = [(labels[i % len(labels)], a, b) for i, (a, b) in enumerate(SENTENCES)]
    expected = []
    for label, a, b in rows:
        pair = len(TASKS[task].sentences) == 2
        ids = [END, *a.strip().encode()] + ([END, *b.strip().encode()] if pair else [])
        expected.append((labels.index(label), ids))
    for split in ("train", *TASKS[task].dev):
        write(tmp_path / f"{split}.tsv", task, rows, newline)
        assert rows_of(opened(tmp_path, task, split)) == expected


def test_any_number_of_workers_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("vitwarm.data.text.corpus._JOB_BYTES", 40)
    write(tmp_path / "train.tsv", "rte", [("entailment", f"a{i}" * i, f"b{i}") for i in range(30)])
    first = opened(tmp_path, "rte")
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "other"))
    assert opened(tmp_path, "rte", workers=2).tokens.tolist() == first.tokens.tolist()


def test_damaged_rows_are_counted_and_named_and_past_the_threshold_refused(tmp_path):
    write(tmp_path / "train.tsv", "qqp", [("1", "a", "b"), ("2", "a", "b"), ("0", "c", "d")])
    with open(tmp_path / "train.tsv", "ab") as file:
        file.write(b"8\t1\t2\tcut\n\n9\t3\t4\tx\ty\t1\textra\n10\t3\t4\t\xff\ty\t1\n")
    corpus = opened(tmp_path, "qqp", max_damaged=0.7)
    assert [label for label, _ in rows_of(corpus)] == [1, 0]
    assert corpus.manifest.damaged == 4 and corpus.manifest.named[:3] == [
        ["train.tsv line 3", "label '2' is none of 0, 1"],
        ["train.tsv line 5", "4 columns, not 6"],
        ["train.tsv line 7", "7 columns, not 6"],
    ]
    assert "not UTF-8" in corpus.manifest.named[3][1]
    with pytest.raises(UserError, match="4 of 6 .*text.max_damaged=0.6 allows; first train.tsv line 3: label '2'"):
        opened(tmp_path, "qqp", max_damaged=0.6)


def test_mrpc_as_its_authors_publish_it_is_split_by_glues_numbers(tmp_path):
    header, _ = LAYOUT["mrpc"]
    lines = [f"{i % 2}\t{i}\t{i + 100}\ta{i}\tb{i}" for i in range(6)]
    (tmp_path / "msr_paraphrase_train.txt").write_text("\r\n".join([header, *lines, ""]), newline="")
    with pytest.raises(UserError, match="needs dev_ids.tsv"):
        opened(tmp_path, "mrpc")
    (tmp_path / "dev_ids.tsv").write_text("1\t101\n4\t104\n5\t999\n")
    for split, numbers in (("train", [0, 2, 3, 5]), ("dev", [1, 4])):
        expected = [(i % 2, [END, *f"a{i}".encode(), END, *f"b{i}".encode()]) for i in numbers]
        assert rows_of(opened(tmp_path, "mrpc", split)) == expected


def test_the_longer_sentence_of_a_pair_is_cut_token_by_token():
    for first in range(9):
        for second in range(9):
            for room in range(17):
                a, b = first, second
                while a + b > room:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                assert shares(first, second, room) == (a, b)


@pytest.mark.parametrize("length", [2, 3, 4, 7, 8, 12])
def test_no_row_is_longer_than_it_may_be(tmp_path, length):
    rows = [("entailment", "a" * i, "b" * j) for i in range(6) for j in range(6)]
    write(tmp_path / "train.tsv", "rte", rows)
    write(tmp_path / "dev.tsv", "sst2", [("1", a, "") for _, a, _ in rows])
    pairs = Sentences(opened(tmp_path, "rte"), length)
    ids, _ = pairs.read(np.arange(len(pairs)))
    assert ids.shape[1] == pairs.lengths.max() <= length
    for (_, a, b), row, kept in zip(rows, ids, pairs.lengths, strict=True):
        i, j = shares(len(a), len(b), length - 2)
        assert row[:kept].tolist() == [END, *a[:i].encode(), END, *b[:j].encode()] and (row[kept:] == END).all()
    assert pairs.truncated == sum(len(a) + len(b) + 2 > length for _, a, b in rows)
    single = rows_of(opened(tmp_path, "sst2", "dev"), length)
    assert [ids for _, ids in single] == [[END, *a.encode()][:length] for _, a, _ in rows]


@pytest.mark.parametrize(
    ("spec", "task", "says"),
    [
        ("nowhere", "cola", "nowhere: no such folder; text.task=cola reads the folder CoLA"),
        (".", "sst2", r"no train.tsv, which the folder SST-2 .* has; did you mean .*/SST-2\?"),
        ("SST-2", "rte", "train.tsv: its first line has no column sentence1; it is not a file of RTE"),
        ("SST-2", "cola", "train.tsv line 1: 2 columns, not 4"),
        ("https://a", "cola", "local files"),
    ],
)
def test_what_is_no_folder_of_the_task_is_said_in_one_line(tmp_path, spec, task, says):
    write(tmp_path / "SST-2" / "train.tsv", "sst2", [("1", "a", "")])
    with pytest.raises(UserError, match=says) as error:
        opened(spec if "://" in spec else tmp_path / spec, task)
    assert "\n" not in str(error.value)
