"""Text files of any encoding, line ending and maker, into the tokens that a decoder trains on."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from itertools import pairwise

import numpy as np
import pytest
from sweeping import Case

from vitwarm.data.text.corpus import open_corpus
from vitwarm.data.text.readers import TextSource

pytestmark = pytest.mark.long

WORDS = [
    "cat", "été", "日本", "𝕏", "a\u0301", "\u2028", "\u00a0", "tab\there", "0", "{", "}", '"q"', "\\n", "'",
    "<|endoftext|>", "#", "\u200b", "x" * 300, "ﷺ", "=", "= H =", "null", "\x85", "\x0b", "\x0c", "\x1c", "\u2029",
]  # fmt: skip
FOREIGN = [
    ("train.bin", np.arange(3000, dtype=np.uint16).tobytes()), ("x.npy", b"\x93NUMPY\x01\x00v\x00" + b" " * 200),
    ("x.pkl", b"\x80\x04K\x01."), ("x.zip", b"PK\x03\x04" + b"\x00" * 90),
    ("x.7z", b"7z\xbc\xaf\x27\x1c" + b"\x00" * 90), ("x.pdf", b"%PDF-1.4\n%\xe2\xe3\n"),
    ("x.docx", b"PK\x03\x04\x14\x00"), ("x.sqlite", b"SQLite format 3\x00" + b"\x00" * 90),
    ("x.arrow", b"ARROW1\x00\x00" + b"\x00" * 90), ("x.txt", b"\xff\xfeh\x00i\x00"),
    ("x.txt", "été\n".encode("utf-16-be")), ("x.txt", "été".encode("latin-1")), ("x.txt", b"\x00" * 500),
    ("x.txt", b"ok\n\x00\x00\x00bad"), ("x.txt", b"\xed\xa0\x80"), ("x.txt", b"\xc0\x80"),
    ("x.txt", b"\xf5\x80\x80\x80"), ("x.txt", "日本".encode("shift-jis")), ("x.txt", "hi".encode("utf-32")),
    ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n'), ("x.jsonl", b'{"text": "a"'), ("x.jsonl", b'{"text": 1}\n'),
    ("x.jsonl", b'{"body": "a"}\n'), ("x.jsonl", b"[" * 5000), ("x.jsonl", b'{"a":' * 5000),
    ("x.jsonl", b'["a", "b"]\n'), ("x.jsonl", b"null\n"), ("x.jsonl", b'{"text": "a", "text": "b"} x\n'),
    ("x.json", b'{"text": {"a": "b"}}'), ("x.jsonl", b'{"text": "\\ud800"}\n'), ("x.gz", b"\x1f\x8b\x08\x00"),
    ("x.parquet", b"PAR1" + b"\x00" * 30), ("x.parquet", b"text"), ("x.tar", b"text" * 300), ("x.tar", b""),
    ("x.txt", b""), ("x.jsonl", b""), ("x.jsonl", b"\n\n"), ("x.xz", b"\xfd7zXZ\x00"),
    ("x.wav", b"RIFF\x24\x08\x00\x00WAVEfmt "), ("x.txt", b"\x7fELF\x02\x01\x01" + b"\x00" * 9),
    ("x.jpg", b"\xff\xd8\xff\xe0"), ("x.rtf", b"{\\rtf1 hi}"), ("x.jsonl", b'{"text": NaN}\n'),
    ("x.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n"), ("x.jsonl", b'\xef\xbb\xbf{"text": 3}\n'),
    ("x.csv", b"\x00,\x00\n"),
]  # fmt: skip
PRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def document(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
    text = rng.choice([" ", " ", "\n", "  "]).join(words)
    return text.replace("<|endoftext|>", "<|endoftext|>x") if rng.random() < 0.7 else text + "."


def in_lines(rng, documents):
    """JSON lines in any dialect."""
    lines = []
    for text in documents:
        held = {"text": text} if rng.random() < 0.7 else {"id": 3, "text": text, "meta": {"text": "other"}}
        lines.append(json.dumps(held, ensure_ascii=rng.random() < 0.5))
    end = rng.choice(["\n", "\n", "\r\n"])
    blank = end if rng.random() < 0.2 else ""
    return (end + blank).join(lines) + (end if rng.random() < 0.7 else "")


def in_tar(rng, documents, **more):
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    ) as tar:
        for i, text in enumerate(documents):
            members = [(f"{i:04d}.text", text.encode())]
            if rng.random() < 0.2:
                members.append((rng.choice([f"._{i:04d}.text", f"{i:04d}.cls", f"{i:04d}.jpg"]), b"\x00\x05\x16\x07"))
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def plain(rng, documents):
    """One file of several documents between separators, with the line endings of a system."""
    end = rng.choice(["\n", "\n", "\r\n"])
    return f"{end}<|endoftext|>{end}".join(documents) + end


def read(source, **more):
    """The documents of a corpus of bytes, from the tokens that a stage would be given."""
    corpus = open_corpus(TextSource(source, **more), "bytes", 0, 0.0)
    ids = np.asarray(corpus.tokens).astype(np.int64)
    starts = np.flatnonzero(ids == corpus.manifest.separator)
    parts = [ids[a + 1 : b] for a, b in pairwise(starts)]
    assert len(parts) == len(corpus) and all((part < 256).all() for part in parts)
    return [bytes(part.astype(np.uint8)) for part in parts]


def make(rng, folder):
    kind = rng.choice(
        ["lines", "lines", "array", "plain", "plain", "one", "tar", "folder", "foreign", "foreign", "cut"]
    )
    if kind == "foreign":
        name, content = rng.choice(FOREIGN)
        (folder / name).write_bytes(content)
        return Case(lambda: read(name), lambda _: False, f"{name}: {content[:40]!r}")
    documents = [document(rng) for _ in range(rng.randint(1, 6))]
    mark = "\ufeff" if rng.random() < 0.15 else ""
    if kind == "plain":  # lines that are a separator divide a document, and line ends around a part are not its own
        documents = [
            text.strip("\r\n") for text in documents if text.strip("\r\n") and "<|endoftext|>" not in text.split("\n")
        ] or ["x"]
        content, name = (mark + plain(rng, documents)).encode(), rng.choice(["x.txt", "x", "x.text", "x.md", "X.TXT"])
        expected = documents if len(documents) > 1 else [content.decode().removeprefix("\ufeff")]
        expected = [text for text in expected if text]
    elif kind == "one":
        text = document(rng).replace("<|endoftext|>", "") or "x"
        content, name, expected = (mark + text).encode(), rng.choice(["x.txt", "x.py", "README", "x.tsv"]), [text]
    elif kind in ("lines", "cut"):
        content = (mark + in_lines(rng, documents)).encode()
        name, expected = rng.choice(["x.jsonl", "x.json", "x.ndjson", "x.jl", "x.JSONL"]), documents
    elif kind == "array":
        content = (
            mark + json.dumps([{"text": t} for t in documents], ensure_ascii=False, indent=rng.choice([None, 1]))
        ).encode()
        name, expected = "x.json", documents
    elif kind == "tar":
        content, name, expected = in_tar(rng, documents), "x.tar", documents
    else:
        (folder / "many").mkdir()
        for i, text in enumerate(documents):
            (folder / "many" / f"{i:03d}.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
        (folder / "many" / rng.choice([".DS_Store", "._000.jsonl", ".x.swp"])).write_bytes(b"\x00\x05")
        return Case(lambda: read("many"), lambda v: v == [t.encode() for t in documents], f"folder: {documents}"[:200])
    press = rng.choice([None, None, None, *PRESS])
    if press:
        content = PRESS[press](content)
        name += press
    if kind == "cut":
        content = content[: -rng.randint(3, min(12, len(content) - 1))]  # an object, or the stream, is not closed
    (folder / name).write_bytes(content)
    if kind == "cut":
        return Case(lambda: read(name), lambda _: False, f"{name} cut: {content[-40:]!r}")
    raw = [text.encode() for text in expected]
    return Case(lambda: read(name), lambda found: found == raw, f"{name}: {content[:300]!r}")


def test_texts(fuzz):
    fuzz("texts", make)
