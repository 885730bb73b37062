"""Documents in files: JSON, plain text, parquet, WebDataset tars, and the problems of DeepMind Mathematics.

| file | documents |
|---|---|
| `.jsonl`, `.json`, `.ndjson`, `.jl`, ..., or its first line is a JSON object | one JSON object a line, its field |
| `.json` that begins with `[` | one JSON object an element, its field |
| `.parquet` | rows, the column (`pip install vitwarm[parquet]`) |
| `.tar`, `.tgz` | members `KEY.FIELD` are text; of members `KEY.json` the field |
| others | plain text: the file, or its parts between lines `<|endoftext|>` or headings |
| with a `split`: a folder or tar in the layout of DeepMind Mathematics | a line of question, a line of answer |
| with `glue`: the folder of a task (`glue.py`) | a label and a sentence, or two |

Files may be compressed with gzip, bzip2, xz or Zstandard, whatever their name. Records hold unparsed bytes; `encode`
makes text of them in a worker. Long texts come in pieces.
"""

import codecs
import contextlib
import io
import itertools
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal

from vitwarm.data.compression import BROKEN, decompressed
from vitwarm.data.patterns import find_paths
from vitwarm.data.tar_reader import DamagedTar, Member, read_tar
from vitwarm.data.text.glue import glue_files, glue_rows
from vitwarm.data.tokenizers import END
from vitwarm.errors import UserError

Form = Literal["json", "text", "string", "problem", "sentences"]
TextSplit = Literal["train", "interpolate", "extrapolate", "dev", "dev_matched", "dev_mismatched"]
PIECE = 1 << 20  # bytes, about, of the pieces in which a long text is read
LONGEST = 1 << 26  # bytes of a line of JSON, or of a text without a place to divide it
_LARGEST = 1 << 30  # bytes of a member of a tar
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd")
_TARS = (".tar", ".tgz", ".tbz2", ".txz", ".tzst")
_JSON = (".jsonl", ".json", ".ndjson", ".jl", ".jsonlines", ".json_lines")
_BOM = b"\xef\xbb\xbf"
_FORMATS = {  # known by their first bytes, and not read as text
    b"PK\x03\x04": "a zip archive (so are .npz, .docx and PyTorch's .pt); unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!\x1a\x07": "a RAR archive; unpack it",
    b"\x04\x22\x4d\x18": "compressed with LZ4; unpack it",
    b"\x1f\x9d": "compressed with compress; unpack it",
    b"\x93NUMPY": "a NumPy array; give the text that it was made of",
    b"ARROW1\0\0": "an Arrow file; write it as parquet or JSON lines",
    b"\xff\xff\xff\xff": "an Arrow stream, as datasets saves it; write it as parquet or JSON lines",
    b"Obj\x01": "an Avro file; write it as parquet or JSON lines",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; write it as parquet or JSON lines",
    b"SQLite format 3\0": "an SQLite database; write it as parquet or JSON lines",
    b"%PDF-": "a PDF; convert it to text",
    b"{\\rtf": "RTF; convert it to text",
    b"<!DOCTYPE html": "HTML; convert it to text",
    b"<!doctype html": "HTML; convert it to text",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document; convert it to text",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
} | {bytes((0x80, protocol)): "a pickle; write its texts as JSON lines" for protocol in range(2, 6)}
_log = logging.getLogger(__name__)
_ARRAY = re.compile(rb"\s*\[\s*\{\s*[\"}]")  # of objects
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array
# Before a blank that follows none, every tokenizer here begins anew. White space is that of Unicode.
_CUT = re.compile(
    rb"(?<![\t-\r ])(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])(?<!\xe2\x81\x9f)"
    rb"(?<!\xe3\x80\x80)(?=[\t-\r ])"
)


@dataclass(frozen=True)
class TextSource:
    """A data set, as a recipe describes it.

    Attributes:
        spec: files and folders, as `find_paths` takes them.
        field: key of JSON objects, column of parquet files or extension of tar members that holds the text; of nested
            objects the keys, with dots between them.
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
    """A document or a piece of one, or what should be one, as bytes of a file.

    Attributes:
        where: `NAME line 12`, for messages.
        raw: the bytes.
        form: kind of the bytes: a JSON object; text; text that was told apart from bytes by who wrote it; question and
            answer, or sentences, each a line.
        label: number of the label of sentences.
        damage: why this is not a document, where the reader has noticed already.
        lost: how many documents the damage stands for.
        begins, ends: whether the document begins and ends with this record.
    """

    where: str
    raw: bytes
    form: Form
    label: int | None = None
    damage: str | None = None
    lost: int = 1
    begins: bool = True
    ends: bool = True


def list_files(source: TextSource) -> list[Path]:
    """The files that a source names, in a fixed order.

    Raises:
        UserError: nothing there, what is no regular file, or a file named twice.
    """
    spec = source.spec
    if "://" in spec:
        raise UserError(f"{spec}: text must be in local files; copy it to a disk first")
    if source.glue:
        assert source.split is not None  # GLUE brings its own
        files = glue_files(source.glue, Path(os.path.expanduser(spec)), source.split)
    else:
        files = [file for path in find_paths(spec) for file in _below(path, source.split)]
    seen: set[Path] = set()
    for path in files:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
            raise UserError(f"{path}: is not a regular file; text must be in files on a disk")
        if (resolved := path.resolve()) in seen:
            raise UserError(f"{resolved}: is named twice by {spec}; each file must count once")
        try:
            str(resolved).encode()
        except UnicodeEncodeError:
            raise UserError(f"{ascii(str(resolved))}: this name is not UTF-8; rename it") from None
        seen.add(resolved)
    return files


def _below(path: str, split: TextSplit | None) -> list[Path]:
    """The files of a folder; a file itself."""
    if not os.path.isdir(path):
        return [Path(path)]
    below = _in_layout(split) if split else "*"
    found = sorted(p for p in Path(path).glob(below) if p.is_file() and not p.name.startswith("."))
    if not found:
        raise UserError(f"{path}: no {below} in this folder")
    if deeper := [] if split else [p.name for p in sorted(Path(path).iterdir()) if p.is_dir() and p.name[0] != "."]:
        _log.warning(
            "%s: folders within it are not read (%s); %s/** reads all below", path, ", ".join(deeper[:5]), path
        )
    return found


def _in_layout(split: TextSplit) -> str:
    return "**/train-*/*.txt" if split == "train" else f"**/{split}/*.txt"


def check_format(path: Path, source: TextSource) -> None:
    """Refuse a file that is not read as text.

    Raises:
        UserError: its first bytes are those of another format; it cannot be read.
    """
    if path.suffix.lower() in (".csv", ".tsv") and not source.glue:
        raise UserError(f"{path}: is not text but a table; write its texts as JSON lines or parquet")
    with reading(path), open_content(path) as file:
        head = file.peek(16)
        if named := next((text for magic, text in _FORMATS.items() if head.startswith(magic)), None):
            raise UserError(f"{path}: is not text but {named}")


def read_records(path: Path, source: TextSource) -> Iterator[TextRecord]:
    """The documents of one file, in its order.

    Raises:
        UserError: the file cannot be read to its end.
    """
    with reading(path):
        if source.glue:
            yield from _sentences(path, source)
            return
        with open_content(path) as file:
            kind = _kind(path.name.lower(), file.peek(1 << 16))
            if kind == "tar":
                yield from _tar(path, file, source)
            elif kind == "parquet":
                yield from _parquet(path, source.field)
            elif source.split:
                yield from _problems(file, f"{path.parent.name}/{path.name}")
            elif kind == "array":
                yield from _array(path, file)
            elif kind == "lines":
                yield from _lines(file, path.name)
            else:
                yield from _plain(path, source.heading)


def _kind(name: str, head: bytes) -> Literal["tar", "parquet", "array", "lines", "plain"]:
    """The format of a file: what its content says, and where that may be several things, its name."""
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    if name.endswith(_TARS) or head[257:262] == b"ustar":
        return "tar"
    if name.endswith(".parquet") or head.startswith(b"PAR1"):
        return "parquet"
    first, whole, _ = head.lstrip().partition(b"\n")
    if _ARRAY.match(head) or (name.endswith(_JSON) and first.startswith(b"[")):
        return "array"
    if name.endswith(_JSON):
        return "lines"
    if first.startswith(b"{"):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(first), dict) or not whole:
                return "lines"
    return "plain"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a file raises while it is read becomes one line.

    Raises:
        UserError: the file cannot be read to its end.
    """
    try:
        yield
    except (OSError, *BROKEN) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read to its end ({reason}); copy it again") from error


@contextlib.contextmanager
def open_content(path: Path) -> Iterator[Any]:
    """The content of a file as a buffered reader, decompressed and without a byte order mark."""
    with open(path, "rb") as raw, decompressed(raw, path) as file:
        if file.peek(3).startswith(_BOM):
            file.read(3)
        yield file


def _lines(file: IO[bytes], name: str) -> Iterator[TextRecord]:
    for number in itertools.count(1):
        if not (line := file.readline(LONGEST + 1)):
            return
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(PIECE)
            yield TextRecord(f"{name} line {number}", b"", "json", damage=f"longer than {LONGEST >> 20} MiB")
        elif line.strip():
            yield TextRecord(f"{name} line {number}", line, "json")


def _array(path: Path, file: IO[bytes]) -> Iterator[TextRecord]:
    """The elements of one JSON array; the worker parses each again."""
    decoder, characters = json.JSONDecoder(), codecs.getreader("utf-8")(file)
    number = 0
    try:
        held, at = characters.read(PIECE).lstrip(), 1
        while True:
            at = _BETWEEN.match(held, at).end()  # type: ignore[union-attr]  # it matches nothing as well
            if held.startswith("]", at):
                break
            try:
                end = decoder.raw_decode(held, at)[1]
            except ValueError:
                if len(held) - at > LONGEST or not (more := characters.read(max(PIECE, len(held) - at))):
                    raise
                held, at = held[at:] + more, 0
                continue
            number += 1
            yield TextRecord(f"{path.name} element {number}", held[at:end].encode("utf-8", "surrogatepass"), "json")
            at = end
        while rest := held[at + 1 :]:
            if rest.strip():
                raise ValueError("more than one value")
            held, at = characters.read(PIECE), -1
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read to its end (element {number + 1}: {error}); mend it") from error


def _plain(path: Path, heading: str | None) -> Iterator[TextRecord]:
    """Split plain text: a line `<|endoftext|>` separates documents and belongs to none; a heading begins one."""
    begins = re.compile(heading) if heading else None
    with open_content(path) as file:
        several = any(number for number, _ in _parts(file, begins))
    with open_content(path) as file:
        for number, part in itertools.groupby(_parts(file, begins), key=itemgetter(0)):
            where = f"{path.name} part {number + 1}" if several else path.name
            yield from _pieces(where, (line for _, line in part), several)


def _parts(file: IO[bytes], begins: re.Pattern[str] | None) -> Iterator[tuple[int, bytes]]:
    """(number of the part, a line of it); long lines come in pieces, separators as empty lines of what follows."""
    number, line_begins, empty = 0, True, True
    while line := file.readline(PIECE):
        ends = line_begins and line.strip() == END.encode()
        if not empty and (ends or (line_begins and begins is not None and begins.match(line.decode(errors="replace")))):
            number, empty = number + 1, True
        yield number, b"" if ends else line
        empty &= ends
        line_begins = line.endswith(b"\n")


def _pieces(where: str, lines: Iterable[bytes], trimmed: bool = False, form: Form = "text") -> Iterator[TextRecord]:
    """A text, in pieces that give the tokens of the whole; `trimmed` of the line ends around it."""
    held, begins, tried = bytearray(), True, 0
    for line in lines:
        held += line
        if trimmed and begins and held[:1] in (b"\r", b"\n"):
            held = held.lstrip(b"\r\n")
        if len(held) < tried + PIECE:
            continue
        tried = len(held)
        if cut := last_cut(held):
            yield TextRecord(where, bytes(held[:cut]), form, begins=begins, ends=False)
            del held[:cut]
            begins, tried = False, 0
        if len(held) > LONGEST:
            damage = f"no blank in {LONGEST >> 20} MiB of it"
            yield TextRecord(where, b"", form, damage=damage, begins=begins)
            for _ in lines:
                pass
            return
    yield TextRecord(where, bytes(held.rstrip(b"\r\n") if trimmed else held), form, begins=begins)


def _chunks(text: bytes) -> Iterator[bytes]:
    return (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def last_cut(text: bytes | bytearray) -> int:
    """The last place where a text can be divided: its tokens are those of both parts. 0 if there is none."""
    size = 1 << 12
    while True:
        start = max(len(text) - size, 1)
        if cuts := [found.start() for found in _CUT.finditer(text, start)]:
            return cuts[-1]
        if start == 1:
            return 0
        size *= 16


def _tar(path: Path, file: IO[bytes], source: TextSource) -> Iterator[TextRecord]:
    documents = 0
    try:
        for member in read_tar(file):
            found = _problems_of(member, source.split) if source.split else _document(member, path, source.field)
            for record in found:
                documents += record.begins
                yield record
    except DamagedTar as error:
        at = rest = file.tell()
        while more := file.read(PIECE):
            rest += len(more)
        lost = max(round(documents * (rest - at) / max(at, 1)), 1)  # as many as the rest would hold
        also = f" (about {lost} documents are lost)" if lost > 1 else ""
        yield TextRecord(path.name, b"", "text", damage=f"{error}{also}", lost=lost)


def _document(member: Member, path: Path, field: str) -> Iterator[TextRecord]:
    name = os.path.basename(member.name)
    key, _, extension = name.partition(".")
    is_json, where = extension == "json", f"{path.name} {member.name}"
    if not key or not (is_json or name.endswith(f".{field}")):
        return
    if member.link is not None:
        yield TextRecord(where, b"", "text", damage="a link; write the tar with --dereference --hard-dereference")
    elif member.size > (LONGEST if is_json else _LARGEST):
        yield TextRecord(where, b"", "text", damage=f"{member.size >> 20} MiB, too large for a document")
    elif is_json:
        yield TextRecord(where, member.read(), "json")
    else:
        yield from _pieces(where, _chunks(member.read()))


def _problems_of(member: Member, split: TextSplit) -> Iterator[TextRecord]:
    wanted = r"(?:.*/)?(train-[^/]+/[^/.][^/]*\.txt)" if split == "train" else rf"(?:.*/)?({split}/[^/.][^/]*\.txt)"
    if found := re.fullmatch(wanted, member.name):
        if member.link is not None or member.size > _LARGEST:
            reason = "a link" if member.link is not None else f"more than {_LARGEST >> 20} MiB"
            yield TextRecord(found[1], b"", "problem", damage=reason)
        else:
            yield from _problems(io.BytesIO(member.read()), found[1])


def _problems(file: IO[bytes], name: str) -> Iterator[TextRecord]:
    lines = iter(lambda: file.readline(LONGEST), b"")
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
        from pyarrow.parquet import ParquetFile, read_schema
    except ImportError as error:
        raise UserError(f"{path.name}: parquet needs pyarrow: pip install vitwarm[parquet]") from error
    try:
        names = read_schema(path).names
        column, *keys = [field] if field in names else field.split(".")
        if column not in names:
            raise UserError(f"{path.name} has no column {field}; it has {', '.join(names)}")
        # A dictionary stays one: short files may stand for texts of any length.
        file = ParquetFile(path, read_dictionary=[field])
        number = 0
        for batch in file.iter_batches(1024, columns=[field]):
            values = batch.column(0)
            for key in keys:
                values = values.field(key)
            for value in values:
                number += 1
                where, text = f"{path.name} row {number}", value.as_py()
                if isinstance(text, str):
                    yield from _pieces(where, _chunks(text.encode(errors="replace")), form="string")
                else:
                    yield TextRecord(where, b"", "text", damage=f"no text in column {field}")
    except KeyError:
        raise UserError(f"{path}: the column {field} holds no text") from None
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read to its end ({reason}); copy it again") from error
