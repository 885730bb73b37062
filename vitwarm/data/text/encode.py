"""Records to ids, in worker processes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from vitwarm.data.text.readers import TextRecord
from vitwarm.data.tokenizers import CharTokenizer, Tokenizer, read_tokenizer
from vitwarm.errors import UserError

# Control characters that no text has: all but line ends, tabs, form feeds, backspaces and escapes.
_CONTROLS = bytes({*range(32), 127} - set(b"\b\t\n\v\f\r\x1b"))
_STRETCH = 1 << 18  # characters that a tokenizer takes at once
_CUT = re.compile(r"(?<!\s)(?=[\t-\r ])")
_PRIME = 2**64 - 59


@dataclass(frozen=True)
class EncodingJob:
    """Records that one worker takes at once.

    Attributes:
        records: the records, in order: whole documents, or one piece of a document.
        tokenizer: what `read_tokenizer` takes.
        field: key of JSON objects that holds the text.
    """

    records: list[TextRecord]
    tokenizer: str
    field: str


@dataclass(frozen=True)
class Encoded:
    """The encoded documents of a job.

    Attributes:
        ids: (T,) uint32, their tokens end to end, each document behind a separator.
        lengths: tokens of each document, its separator included.
        text_bytes: bytes of UTF-8 of all documents together.
        damaged: (where, why, documents lost) of each record that is not a document.
        empty: documents without text, which are left out.
        hashes: `TextHash` of each document.
        begins, ends: False where a document goes on from the job before, or into the next one.
    """

    ids: np.ndarray
    lengths: list[int]
    text_bytes: int
    damaged: list[tuple[str, str, int]]
    empty: int
    hashes: list["TextHash"]
    begins: bool
    ends: bool


class TextHash(NamedTuple):
    """A number of 64 bits that two texts share if they differ in white space alone, and else by chance.

    It is the text's bytes as one number, modulo a prime; so that of a text follows from those of its parts.

    Attributes:
        value: the number.
        length: bytes of UTF-8 without white space.
    """

    value: int = 0
    length: int = 0

    @classmethod
    def of(cls, text: str) -> "TextHash":
        dense = "".join(text.split()).encode(errors="replace")
        return cls(int.from_bytes(dense, "big") % _PRIME, len(dense))

    def __add__(self, behind: "TextHash") -> "TextHash":  # type: ignore[override]  # a tuple's would be longer
        value = self.value * pow(256, behind.length, _PRIME) + behind.value
        return TextHash(value % _PRIME, self.length + behind.length)


class Damaged(Exception):
    """A record that is not a document; the message is the reason."""


def separator(tokenizer: Tokenizer) -> int:
    """The id that stands before every document: the end of the one before, or the beginning of this one.

    Raises:
        UserError: the tokenizer has none.
    """
    own = tokenizer.specials.get("<bos>") if isinstance(tokenizer, CharTokenizer) else None
    found = tokenizer.end if tokenizer.end is not None else own
    if found is None:
        raise UserError("text.tokenizer has no end-of-text id to separate documents; choose another")
    return found


def question_mark(tokenizer: Tokenizer) -> int:
    """The id between a question and its answer.

    Raises:
        UserError: the tokenizer has none.
    """
    if not isinstance(tokenizer, CharTokenizer) or "<sep>" not in tokenizer.specials:
        raise UserError("text.task=mathematics needs an id between question and answer; set text.tokenizer=chars")
    return tokenizer.specials["<sep>"]


def encode(job: EncodingJob) -> Encoded:
    """Documents to ids, `s text`, `s question ? answer` or `s label sentence s sentence`; damaged ones are named."""
    tokenizer = _tokenizer(job.tokenizer)
    start = separator(tokenizer)
    made: list[np.ndarray] = []
    ids: list[int] = []
    lengths, damaged, hashes, text_bytes, empty = [], [], [], 0, 0
    for record in job.records:
        try:
            texts = _texts(record, job.field)
        except Damaged as error:
            damaged.append((record.where, str(error), record.lost))
            continue
        labelled = record.label is not None  # then a row without text counts as well
        if not texts[0] and not labelled and record.begins and record.ends:
            empty += 1
            continue
        length = -len(ids)
        if record.begins:
            ids.append(start)
        if record.label is not None:
            ids.append(record.label)
        for i, text in enumerate(texts):
            if i:
                ids.append(start if labelled else question_mark(tokenizer))
            for stretch in _stretches(text):
                ids += tokenizer.encode(stretch)
                if len(ids) > _STRETCH:
                    made.append(np.array(ids, np.uint32))
                    length += len(ids)
                    ids = []
            text_bytes += len(text.encode(errors="replace"))
        lengths.append(length + len(ids))
        hashes.append(TextHash.of("\0".join([str(record.label or 0), *texts] if labelled else texts)))
    whole = np.concatenate([*made, np.array(ids, np.uint32)])
    return Encoded(whole, lengths, text_bytes, damaged, empty, hashes, job.records[0].begins, job.records[-1].ends)


_tokenizer = lru_cache(maxsize=1)(read_tokenizer)


def _stretches(text: str) -> Iterator[str]:
    """A text in stretches whose tokens are those of the text; the ids of all of it, as a list, are large."""
    start = 0
    while found := _CUT.search(text, start + _STRETCH):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text


def _texts(record: TextRecord, field: str) -> list[str]:
    """The text of a document; of a problem, question and answer; of a row of GLUE, its sentences."""
    if record.damage:
        raise Damaged(record.damage)
    if record.form == "json":
        return [_field(record.raw, field)]
    if record.form == "string":
        return [record.raw.decode("utf-8")]
    try:
        text = record.raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f" at byte {error.start}" if record.begins else ""
        raise Damaged(f"not UTF-8 ({error.reason}{place})") from None
    if b"\0" in record.raw:
        raise Damaged("not text: it holds zero bytes")
    if record.form == "text":
        controls = len(record.raw) - len(record.raw.translate(None, _CONTROLS))
        if controls > max(16, len(record.raw) / 100):
            raise Damaged(f"not text: {controls} of its bytes are control characters")
    if record.form == "text":
        return [text]
    if record.form == "sentences":
        return text.split("\n")
    lines = text.splitlines()
    if len(lines) != 2 or not all(lines):
        raise Damaged("not a line of question and a line of answer")
    return lines


def _field(raw: bytes, field: str) -> str:
    try:
        whole = json.loads(raw.decode("utf-8-sig", "surrogatepass"))
    except RecursionError:
        raise Damaged("nested too deeply") from None
    except ValueError:
        raise Damaged("not JSON") from None
    text = _at(whole, field)
    if not isinstance(text, str):
        raise Damaged(f"no text in field {field!r}")
    if re.search("[\ud800-\udfff]", text):
        raise Damaged("half of a surrogate pair, which is no character")
    return text


def _at(tree: Any, field: str) -> Any:
    """What stands under a key; of nested objects, under keys with dots between them."""
    if not isinstance(tree, dict) or field in tree:
        return tree.get(field) if isinstance(tree, dict) else None
    key, dot, rest = field.partition(".")
    return _at(tree.get(key), rest) if dot else None
