"""Documents of every kind of file, tokenised into a cache: equal to plain Python, whatever the workers."""

import bz2
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import pwd
import shutil
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.data.text import TextSource, open_corpus, overlap, readers
from vitwarm.data.text import corpus as corpus_module
from vitwarm.data.text import encode as encode_module
from vitwarm.data.text.readers import last_cut
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
    assert set(written[0]) == {"tokens.bin", "offsets.bin", "digests.bin", "manifest.json", "seen.json"}


def test_files_of_the_same_names_and_sizes_are_two_corpora(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "part.jsonl", [f"{name} {i}" for i in range(9)])
    train, val = (opened(tmp_path / name / "part.jsonl") for name in "ab")
    assert overlap(train, val, "text.train", "text.val") == 0
    assert len({*train.digests().tolist(), *val.digests().tolist()}) == 18


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
    (tmp_path / "fr.txt").write_text("\u00c4rger\na\n\u00e9tude\nb\n", encoding="utf-8")
    assert documents(opened(tmp_path / "fr.txt", heading=r"[\u00c4\u00d6]\w+$")) == expected(
        ["\u00c4rger\na\n\u00e9tude\nb\n"]
    )
    assert len(opened(tmp_path / "fr.txt", heading=r"(?i)\u00c9")) == 2
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
    parquet.write_table(pyarrow.table({"meta": [{"text": text} for text in TEXTS]}), tmp_path / "part-00000")
    assert documents(opened(tmp_path / "part-00000", field="meta.text")) == expected(TEXTS)
    with pytest.raises(UserError, match="the column meta holds no text"):
        opened(tmp_path / "part-00000", field="meta")


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
    assert not cache.exists()


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


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "digests.bin", "manifest.json", "seen.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_a_damaged_cache_is_named_and_made_again(tmp_path, cache, caplog, name, harm):
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    opened(path)
    (file,) = cache.glob(f"*/{name}")
    kept = file.read_bytes()
    at = len(kept) // 2
    file.write_bytes({"flip": kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :], "cut": kept[:-5]}.get(harm, b""))
    if harm == "remove":
        file.unlink()
    with caplog.at_level(logging.WARNING):
        corpus = opened(path)
    assert documents(corpus) == expected(TEXTS)
    assert file.read_bytes() == kept or name == "seen.json"
    named = f"the cache cannot be used and is made anew: {name} is not the one that was written"
    assert (named in caplog.text) == (name != "seen.json" and harm != "remove")


def test_a_source_of_the_same_size_and_time_is_noticed(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ["abc"])
    opened(path)
    times = path.stat()
    jsonl(path, ["xyz"])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert documents(opened(path)) == expected(["xyz"])


def test_a_finished_cache_needs_no_lock_and_a_closed_one_is_named(tmp_path, cache, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", TEXTS)
    opened(path)

    def closed(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus_module, "locked", closed)
    monkeypatch.setattr(corpus_module, "write_text", closed)
    os.utime(path, ns=(1, 1))
    assert documents(opened(path)) == expected(TEXTS)
    with pytest.raises(UserError, match=r"cannot write the cache .*: Permission denied; .* set VITWARM_CACHE"):
        opened(jsonl(tmp_path / "b.jsonl", TEXTS))


def test_a_full_disk_names_the_cache_and_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_module._Writer, "_append", full)
    with pytest.raises(UserError, match=r"cannot write the cache .*: No space left on device; .* set VITWARM_CACHE"):
        opened(jsonl(tmp_path / "a.jsonl", TEXTS))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_without_a_home_the_variable_is_named(tmp_path, monkeypatch):
    for name in ("VITWARM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["nobody"])
    with pytest.raises(UserError, match="set VITWARM_CACHE to a writable folder"):
        opened(jsonl(tmp_path / "a.jsonl", TEXTS))


def test_what_kills_have_left_is_swept(tmp_path, cache):
    for name in (".0123456789abcdef.tmp", ".0123456789abcdef.old"):
        (cache / name).mkdir(parents=True)
        (cache / name / "tokens.bin").write_bytes(b"left")
    opened(jsonl(tmp_path / "a.jsonl", TEXTS))
    assert not [path for path in cache.iterdir() if path.suffix in (".tmp", ".old")]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path, cache, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", TEXTS)

    def grows(*arguments):
        with open(path, "ab") as file:
            file.write(b"\n")
        return readers.read_records(*arguments)

    monkeypatch.setattr(corpus_module, "read_records", grows)
    with pytest.raises(UserError, match="has changed while it was read"):
        opened(path)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


# What is read as what

LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table texts (text)")
    return path.read_bytes()


def zipped(*_):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.txt"), "text")
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (np.arange(65, dtype=np.uint16).tobytes(), "zero bytes"),
        ((np.arange(500) % 65).astype(np.uint8).tobytes(), "zero bytes"),
        ((1 + np.arange(500) % 64).astype(np.uint8).tobytes(), "are control characters"),
        (np.arange(10_000, dtype=np.uint16).tobytes(), "not UTF-8"),
        ("grün".encode("latin-1"), "not UTF-8"),
        ("text".encode("utf-16"), "UTF-16"),
        ("text".encode("utf-16-be"), "zero bytes"),
        (b"\x93NUMPY\1\0v\0{'descr': '<u2'}", "a NumPy array"),
        (pickle.dumps(["text"]), "a pickle"),
        (zipped(), "a zip archive"),
        (gzip.compress(zipped(), mtime=0), "a zip archive"),
        (b"%PDF-1.4\n%text", "a PDF"),
        (b"<!DOCTYPE html>\n<p>text", "HTML"),
        (b"ARROW1\0\0text", "an Arrow file"),
        (b"\xff\xff\xff\xff\x80\0\0\0text", "an Arrow stream"),
        (b"\x05\0\0\0\0\0\0\0crc:text", "zero bytes"),  # TFRecord
    ],
)
@pytest.mark.parametrize("name", ["train.bin", "train.txt", "part-00000"])
def test_what_is_no_text_is_refused_and_named(tmp_path, cache, content, named, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=named) as error:
        opened(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="an SQLite database"):
        opened(tmp_path / "a.db") if database(tmp_path / "a.db") else None


def test_tables_are_refused_and_folders_in_a_folder_are_named(tmp_path, cache, caplog):
    (tmp_path / "t.csv").write_text("id,text\n1,a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.csv: is not text but a table"):
        opened(tmp_path / "t.csv")
    (tmp_path / "in/sub").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt"):
        (tmp_path / "in" / name).write_text(name, encoding="utf-8")
    assert len(documents(opened(tmp_path / "in"))) == 1 and "(sub)" in caplog.text
    caplog.clear()
    assert len(documents(opened(tmp_path / "in/**"))) == 2 and not caplog.text


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.jl.gz", "A.JSON", "a.jsonlines.xz", "a.txt", "part-00000", "a.data"]
)
def test_json_lines_are_known_under_any_name_and_compression(tmp_path, pack, name):
    (tmp_path / name).write_bytes(pack(LINES))
    assert documents(opened(tmp_path / name)) == expected(TEXTS)


def test_a_file_of_braces_is_text(tmp_path):
    for number, text in enumerate(["{\n  int x;\n}\n", "{x} is a set\n", "[1, 2]\n", '"text"\n{"text": 1}\n', "{}x\n"]):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
        assert documents(opened(tmp_path / f"{number}.txt")) == expected([text])


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_and_nested_objects_are_read_and_a_broken_array_is_refused(tmp_path, monkeypatch, indent):
    monkeypatch.setattr(readers, "PIECE", 16)
    whole = json.dumps([{"meta": {"text": text}, "id": [1, {}]} for text in TEXTS], indent=indent)
    (tmp_path / "a.json").write_text("\ufeff" + whole, encoding="utf-8")
    assert documents(opened(tmp_path / "a.json", field="meta.text")) == expected(TEXTS)
    for broken in (whole[:-2], whole + "[]", whole.replace("{", "(", 2), "[" * 100_000):
        (tmp_path / "b.json").write_text(broken)
        with pytest.raises(UserError, match=r"b.json: cannot be read to its end \(element \d"):
            opened(tmp_path / "b.json", field="meta.text")


def test_byte_order_marks_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES)
    (tmp_path / "a.txt").write_text("text", encoding="utf-8-sig")
    assert documents(opened(tmp_path / "a.jsonl")) == expected(TEXTS)
    assert documents(opened(tmp_path / "a.txt")) == expected(["text"])


def test_names_are_literal_before_they_are_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", str(tmp_path))
    (tmp_path / "data [v1]").mkdir()
    jsonl(tmp_path / "data [v1]" / "a.jsonl", TEXTS[:2])
    jsonl(tmp_path / "b{1,2}.jsonl", TEXTS[2:])
    for spec in ("data [v1]", "data [v1]/a.jsonl", "data [v1]/*.jsonl", "data [v1]/a.{jsonl,jsonl.gz}"):
        jsonl(tmp_path / "data [v1]" / "a.jsonl.gz", []) if "gz" in spec else None
        assert documents(opened(tmp_path / spec)) == expected(TEXTS[:2])
    assert documents(opened(f"$MINE/data [v1]/a.jsonl::{tmp_path}/b{{1,2}}.jsonl")) == expected(TEXTS)


def test_work_is_bounded(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for spec, named in (
        ("pipe.jsonl", "is not a regular file"),
        ("pipe*", "is not a regular file"),
        ("{0..99999999}.jsonl", "more than 100,000 names"),
        ("{1..999}{1..9999}", "more than 100,000 names"),
    ):
        with pytest.raises(UserError, match=named):
            opened(tmp_path / spec)


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"text":' * 2000 + b"1" + b"}" * 2000, b'{"n":' + b"1" * 5000 + b"}"]
)
def test_json_without_bounds_is_damage(tmp_path, line, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST", 1 << 18)
    (tmp_path / "a.jsonl").write_bytes(LINES + line + b"\n" + b'{"text": "' + b"x" * (1 << 18) + b'"}\n' + LINES)
    corpus = opened(tmp_path / "a.jsonl", max_damaged=0.2)
    assert documents(corpus) == expected([*TEXTS, *TEXTS])
    assert [where for where, _ in corpus.manifest.named] == ["a.jsonl line 6", "a.jsonl line 7"]
    assert corpus.manifest.named[1][1] == "longer than 0 MiB"


# Long texts


BLANKS = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


@settings(max_examples=200, deadline=None)
@given(st.text(f"a1'é数.{BLANKS}", min_size=1, max_size=30))
def test_texts_are_divided_in_front_of_blanks_that_follow_none(text):
    data = text.encode()
    cut = last_cut(data)
    places = [
        len(text[:i].encode())
        for i in range(1, len(text))
        if text[i] in "\t\n\x0b\x0c\r " and text[i - 1] not in BLANKS
    ]
    assert cut == max(places, default=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_text_in_pieces_gives_the_tokens_of_the_whole(tmp_path, monkeypatch, workers):
    """Under a BPE whose merges would notice a cut; documents that begin, end and break in any piece."""
    pytest.importorskip("tiktoken")
    from test_tokenizers import synthetic

    from vitwarm.data.tokenizers import read_tokenizer

    (tmp_path / "bpe").mkdir()
    tokenizer = read_tokenizer(synthetic(tmp_path / "bpe"))
    texts = [
        "the the  thing 12\n\n" * 40 + "end",
        "one",
        " in the" * 60,
        "the\n" * 50 + "\xff" + " the" * 90,
        "ing" * 200,
    ]
    (tmp_path / "a.txt").write_bytes("\n<|endoftext|>\n".join(texts).encode("latin-1"))
    monkeypatch.setattr(readers, "PIECE", 64)
    monkeypatch.setattr(encode_module, "_STRETCH", 32)
    corpus = opened(tmp_path / "a.txt", workers, str(tmp_path / "bpe"), 0.5)
    whole = [text for text in texts if "\xff" not in text]
    assert documents(corpus) == [[tokenizer.end, *tokenizer.encode(text)] for text in whole]
    assert corpus.manifest.text_bytes == sum(map(len, whole))
    assert corpus.manifest.named == [["a.txt part 4", "not UTF-8 (invalid start byte)"]]
    assert corpus.tokens[-1] == tokenizer.end and len(set(corpus.digests().tolist())) == 4


# Archives


def archive(path, count=40, mode="w"):
    with tarfile.open(path, mode, format=tarfile.USTAR_FORMAT) as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:03d}.txt")
            member.size = 9
            tar.addfile(member, io.BytesIO(b"text %04d" % number))
    return path.read_bytes()


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, lzma.compress])
@pytest.mark.parametrize(
    ("harm", "kept", "damaged", "why"),
    [
        (lambda tar: tar[: 10 * 1024] + b"\1" + tar[10 * 1024 + 1 :], 10, 30, "damaged header at byte 10240"),
        (lambda tar: tar[: 40 * 1024], 40, 1, "no end-of-archive mark"),
        (lambda tar: tar[: 30 * 1024], 30, 1, "no end-of-archive mark"),
        (lambda tar: tar + b"rest" * 128, 40, 1, "data after its end-of-archive mark"),
    ],
)
def test_every_byte_of_an_archive_is_accounted_for(tmp_path, pack, harm, kept, damaged, why):
    (tmp_path / "a.tar").write_bytes(pack(harm(archive(tmp_path / "a.tar"))))
    with pytest.raises(UserError, match=why):
        opened(tmp_path / "a.tar", field="txt")
    corpus = opened(tmp_path / "a.tar", field="txt", max_damaged=1.0)
    assert documents(corpus) == expected([f"text {number:04d}" for number in range(kept)])
    assert corpus.manifest.damaged == pytest.approx(damaged, abs=10)  # as many as the rest would hold


def test_a_wrong_checksum_refuses_an_archive(tmp_path):
    content = bytearray(gzip.compress(archive(tmp_path / "a.tar")))
    content[-6] ^= 1
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError, match="CRC check failed"):
        opened(tmp_path / "a.tgz", field="txt", max_damaged=1.0)


def test_links_and_dotted_names_in_an_archive_are_not_lost(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("v.1.txt", "._v.1.txt", "b.txt", "b.csv"):
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
        member = tarfile.TarInfo("folder/c.txt")
        member.type, member.linkname = tarfile.LNKTYPE, "folder/b.txt"
        tar.addfile(member)
    corpus = opened(tmp_path / "a.tar", field="txt", max_damaged=0.5)
    assert documents(corpus) == expected(["text", "text"])
    assert corpus.manifest.named[0][0] == "a.tar folder/c.txt" and "a link" in corpus.manifest.named[0][1]


# Training and validation


def test_text_that_is_trained_on_is_not_validated_on(tmp_path):
    train = opened(jsonl(tmp_path / "train.jsonl", TEXTS))

    def compared(val):
        return overlap(train, opened(val), "text.train=t", "text.val=v")

    shutil.copy(tmp_path / "train.jsonl", tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="text.val=v: other.jsonl holds what text.train=t reads as train.jsonl"):
        compared(tmp_path / "other.jsonl")
    (tmp_path / "packed.gz").write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    with pytest.raises(UserError, match="5 of its 5 documents are in text.train=t too"):
        compared(tmp_path / "packed.gz")
    with pytest.raises(UserError, match="2 of its 3 documents"):
        compared(jsonl(tmp_path / "most.jsonl", [*TEXTS[:2], "new"]))
    assert compared(jsonl(tmp_path / "few.jsonl", [TEXTS[3], "new", "newer"])) == 1
    assert compared(jsonl(tmp_path / "none.jsonl", ["new", "newer"])) == 0
    with pytest.raises(UserError, match="2 of its 3 documents"):
        compared(jsonl(tmp_path / "blank.jsonl", [f"\n{TEXTS[1]} \r\n", TEXTS[2].replace(" ", "\n"), "new"]))


def test_a_text_in_pieces_is_the_text_with_other_line_ends(tmp_path):
    lines = [f"{i} {'word ' * (i % 7)}" for i in range(120_000)]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode())
    (tmp_path / "b.txt").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    (tmp_path / "c.txt").write_bytes("\n".join(lines[::-1]).encode())
    train = opened(tmp_path / "a.txt")
    with pytest.raises(UserError, match="1 of its 1 documents are in text.train=t too"):
        overlap(train, opened(tmp_path / "b.txt"), "text.train=t", "text.val=v")
    assert overlap(train, opened(tmp_path / "c.txt"), "text.train=t", "text.val=v") == 0
    of_all = int.from_bytes("".join("".join(lines).split()).encode(), "big") % (2**64 - 59)
    assert train.digests().tolist() == [of_all]


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
