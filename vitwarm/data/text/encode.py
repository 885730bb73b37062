"""Records to ids, in worker processes."""

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vitwarm.data.text.readers import TextRecord
from vitwarm.data.tokenizers import CharTokenizer, Tokenizer, read_tokenizer
from vitwarm.errors import UserError


@dataclass(frozen=True)
class EncodingJob:
    """Records that one worker takes at once.

    Attributes:
        records: the records, in order.
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
        ids: their tokens end to end, each document behind a separator.
        lengths: tokens of each document, its separator included.
        text_bytes: bytes of UTF-8 of all documents together.
        damaged: (where, why) of each record that is not a document.
        empty: documents without text, which are left out.
    """

    ids: np.ndarray
    lengths: list[int]
    text_bytes: int
    damaged: list[tuple[str, str]]
    empty: int


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
    ids: list[int] = []
    lengths, damaged, text_bytes, empty = [], [], 0, 0
    for record in job.records:
        try:
            texts = _texts(record, job.field)
        except Damaged as error:
            damaged.append((record.where, str(error)))
            continue
        labelled = record.label is not None  # then a row without text counts as well
        if not texts[0] and not labelled:
            empty += 1
            continue
        before = len(ids)
        ids.append(start)
        if record.label is not None:
            ids.append(record.label)
        for i, text in enumerate(texts):
            if i:
                ids.append(start if labelled else question_mark(tokenizer))
            ids += tokenizer.encode(text)
            text_bytes += len(text.encode(errors="replace"))
        lengths.append(len(ids) - before)
    return Encoded(np.array(ids, np.uint32), lengths, text_bytes, damaged, empty)


_tokenizer = lru_cache(maxsize=1)(read_tokenizer)


def _texts(record: TextRecord, field: str) -> list[str]:
    """The text of a document; of a problem, question and answer; of a row of GLUE, its sentences."""
    if record.damage:
        raise Damaged(record.damage)
    if record.form == "json":
        return [_field(record.raw, field)]
    try:
        text = record.raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"not UTF-8 ({error.reason} at byte {error.start})") from None
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
        whole = json.loads(raw)
    except ValueError:
        raise Damaged("not JSON") from None
    text = whole.get(field) if isinstance(whole, dict) else None
    if not isinstance(text, str):
        raise Damaged(f"no text in field {field!r}")
    return text
