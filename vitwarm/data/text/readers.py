"""Documents in files: JSONL, plain text, parquet, WebDataset tars, and the problems of DeepMind Mathematics.

| file | documents |
|---|---|
| `.jsonl`, `.json`, with or without `.gz` | one JSON object a line, its field |
| `.parquet` | rows, the column (`pip install vitwarm[parquet]`) |
| `.tar`, `.tar.gz`, `.tgz` | members `KEY.FIELD` are text; of members `KEY.json` the field |
| others, with or without `.gz` | plain text: the file, or its parts between lines `<|endoftext|>` or headings |
| with a `split`: a folder or tar in the layout of DeepMind Mathematics | a line of question, a line of answer |
| with `glue`: the folder of a task (`glue.py`) | a label and a sentence, or two |

Records hold unparsed bytes; `encode` makes text of them in a worker.
"""

import contextlib
import glob
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import braceexpand

from vitwarm.data.text.glue import glue_files, glue_rows
from vitwarm.data.tokenizers import END
from vitwarm.errors import UserError

Form = Literal["json", "text", "problem", "sentences"]
TextSplit = Literal["train", "interpolate", "extrapolate", "dev", "dev_matched", "dev_mismatched"]
_TARS = (".tar", ".tar.gz", ".tgz")
_JSON = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class TextSource:
    """A data set, as a recipe describes it.

    Attributes:
        spec: a file, a folder, a glob (`**` for all folders below), or a brace pattern.
        field: key of JSON objects, column of parquet files or extension of tar members that holds the text.
        heading: regular expression of the lines of plain text that begin a document; None for none.
        split: part of DeepMind Mathematics or of a task of GLUE; None for documents.
        glue: the task, where `spec` is its folder.
    """

    spec: str
    field: str = "text"
    heading: str | None = None
    split: TextSplit | None = None
    glue: str | None = None


@dataclass(frozen=True)
class TextRecord:
    """A document, or what should be one, as bytes of a file.

    Attributes:
        where: `NAME line 12`, for messages.
        raw: the bytes.
        form: kind of the bytes: a JSON object, text, question and answer or sentences, each a line.
        label: number of the label of sentences.
        damage: why this is not a document, where the reader has noticed already.
    """

    where: str
    raw: bytes
    form: Form
    label: int | None = None
    damage: str | None = None


def list_files(source: TextSource) -> list[Path]:
    """The files that a source names, in a fixed order.

    Raises:
        UserError: nothing there, or a file named twice.
    """
    spec = source.spec
    if "://" in spec:
        raise UserError(f"{spec}: text must be in local files; copy it to a disk first")
    if source.glue:
        assert source.split is not None  # GLUE brings its own
        return glue_files(source.glue, Path(spec).expanduser(), source.split)
    try:
        patterns = [os.path.expanduser(p) for p in braceexpand.braceexpand(spec)]
    except braceexpand.UnbalancedBracesError:
        raise UserError(f"{spec}: the braces of this pattern do not balance") from None
    files = [path for pattern in patterns for path in _match(pattern, source.split)]
    resolved = [path.resolve() for path in files]
    if twice := [path for path in resolved if resolved.count(path) > 1]:
        raise UserError(f"{twice[0]}: is named twice by {spec}; each file must count once")
    return files


def _match(pattern: str, split: TextSplit | None) -> list[Path]:
    if os.path.isdir(pattern):
        below = _in_layout(split) if split else "*"
        found = sorted(p for p in Path(pattern).glob(below) if p.is_file() and not p.name.startswith("."))
        if not found:
            raise UserError(f"{pattern}: no {below} in this folder")
        return found
    if os.path.exists(pattern):
        return [Path(pattern)]
    found = [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(p)]
    if not found:
        raise UserError(f"{pattern}: no such file; give a file, a folder, a glob or a brace pattern")
    return found


def _in_layout(split: TextSplit) -> str:
    return "**/train-*/*.txt" if split == "train" else f"**/{split}/*.txt"


def read_records(path: Path, source: TextSource) -> Iterator[TextRecord]:
    """The documents of one file, in its order.

    Raises:
        UserError: the file cannot be read to its end.
    """
    name = path.name.lower()
    try:
        if source.glue:
            yield from _sentences(path, source)
        elif name.endswith(_TARS):
            yield from _problems_of_tar(path, source.split) if source.split else _tar(path, source.field)
        elif source.split:
            with _open(path) as file:
                yield from _problems(file, f"{path.parent.name}/{path.name}")
        elif name.endswith(_JSON):
            with _open(path) as file:
                lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
                yield from (TextRecord(f"{path.name} line {number}", line, "json") for number, line in lines)
        elif name.endswith(".parquet"):
            yield from _parquet(path, source.field)
        else:
            with _open(path) as file:
                yield from _plain(file, path.name, source.heading)
    except _UNREADABLE as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); copy it again") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        yield file  # type: ignore[misc]  # GzipFile reads as IO does, but is not declared as one


def _plain(file: IO[bytes], name: str, heading: str | None) -> Iterator[TextRecord]:
    """Split plain text: a line `<|endoftext|>` separates documents and belongs to none; a heading begins one."""
    begins = re.compile(heading.encode()) if heading else None
    part: list[bytes] = []
    number = 0
    for line in file:
        ends = line.strip() == END.encode()
        if (ends or (begins and begins.match(line))) and part:
            number += 1
            yield TextRecord(f"{name} part {number}", b"".join(part).strip(b"\r\n"), "text")
            part = []
        if not ends:
            part.append(line)
    if number:
        yield TextRecord(f"{name} part {number + 1}", b"".join(part).strip(b"\r\n"), "text")
    else:
        yield TextRecord(name, b"".join(part), "text")


def _tar(path: Path, field: str) -> Iterator[TextRecord]:
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            key, _, extension = os.path.basename(member.name).partition(".")
            if member.isfile() and key and extension in (field, "json"):
                form: Form = "text" if extension == field else "json"
                yield TextRecord(f"{path.name} {member.name}", _content(tar, member).read(), form)


def _problems_of_tar(path: Path, split: TextSplit) -> Iterator[TextRecord]:
    wanted = re.compile(
        r"(?:.*/)?((?:train-[^/]+)/[^/]+\.txt)" if split == "train" else rf"(?:.*/)?({split}/[^/]+\.txt)"
    )
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            if member.isfile() and (found := wanted.fullmatch(member.name)):
                yield from _problems(_content(tar, member), found[1])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # the member is a file
    return file


def _problems(file: IO[bytes], name: str) -> Iterator[TextRecord]:
    lines = iter(file)
    for number, question in enumerate(lines, 1):
        yield TextRecord(f"{name} problem {number}", question + next(lines, b""), "problem")


def _sentences(path: Path, source: TextSource) -> Iterator[TextRecord]:
    assert source.glue is not None and source.split is not None
    for row in glue_rows(source.glue, path, source.split):
        where = f"{path.name} line {row.number}"
        yield TextRecord(where, b"\n".join(row.sentences), "sentences", row.label, row.damage)


def _parquet(path: Path, field: str) -> Iterator[TextRecord]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{path.name}: parquet needs pyarrow: pip install vitwarm[parquet]") from error
    try:
        file = ParquetFile(path)
        if field not in file.schema_arrow.names:
            raise UserError(f"{path.name} has no column {field}; it has {', '.join(file.schema_arrow.names)}")
        number = 0
        for batch in file.iter_batches(1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                number += 1
                where = f"{path.name} row {number}"
                is_text = isinstance(text, str)
                yield TextRecord(
                    where, text.encode(errors="replace") if is_text else b"null", "text" if is_text else "json"
                )
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: cannot be read to its end ({error}); copy it again") from error
