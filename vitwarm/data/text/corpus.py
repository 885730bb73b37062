"""Tokens of a data set in a cache, mapped into memory: made once, in parallel, the same for any number of workers.

| file | content |
|---|---|
| `tokens.bin` | ids end to end, little-endian uint16 (vocabularies up to 65,536) or uint32 |
| `offsets.bin` | int64, where each document begins, and where the last one ends |
| `manifest.json` | counts, sources with size and SHA-256, tokenizer, what was damaged |
| `seen.json` | modification time of each source, so that an unchanged one is not read again |

Every document stands behind a separator, and one more stands at the end: `s d1 s d2 s ... dn s`.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitwarm.cache import cache_dir
from vitwarm.data.text.encode import EncodingJob, encode, question_mark, separator
from vitwarm.data.text.readers import TextSource, list_files, read_records
from vitwarm.data.tokenizers import Tokenizer, read_tokenizer
from vitwarm.errors import UserError
from vitwarm.files import locked, sha256_of, whole_folder, write_text
from vitwarm.parallel import progress_bar, run_in_order, run_in_pool

VERSION = 1
TOKENS, OFFSETS, MANIFEST, SEEN = "tokens.bin", "offsets.bin", "manifest.json", "seen.json"
_JOB_BYTES = 1 << 20  # of text that a worker takes at once
_NAMED = 1000  # damaged records that a manifest names
_HOPELESS = 1000  # records, all of them damaged, after which reading stops


@dataclass(frozen=True)
class CorpusManifest:
    """The manifest of a cache; it does not depend on the machine, the time or the number of workers.

    Attributes:
        version: version of the format.
        tokens: ids in all, separators included.
        documents: kept ones.
        empty: documents without text, which were left out.
        text_bytes: bytes of the documents' text in UTF-8.
        separator: its id.
        dtype: type of the ids, `uint16` or `uint32`.
        tokenizer: SHA-256 of its files.
        source: how the files were read: field, heading, split, task of GLUE.
        files: name, bytes and SHA-256 of each file, in order.
        damaged: how many records were no documents.
        named: the first of them, as [where, why].
    """

    version: int
    tokens: int
    documents: int
    empty: int
    text_bytes: int
    separator: int
    dtype: str
    tokenizer: str
    source: dict[str, Any]
    files: list[dict[str, Any]]
    damaged: int
    named: list[list[str]]


class Corpus:
    """An open cache.

    Attributes:
        tokens: (T,) ids.
        offsets: (n + 1,) int64: document i is `tokens[offsets[i] : offsets[i + 1]]`, its separator first.
        manifest: the manifest of the cache.
        sha256: hash of the manifest, which names the corpus.
    """

    def __init__(self, folder: Path):
        text = (folder / MANIFEST).read_bytes()
        self.manifest = CorpusManifest(**json.loads(text))
        self.sha256 = hashlib.sha256(text).hexdigest()
        self.tokens = np.memmap(folder / TOKENS, dtype=self.manifest.dtype, mode="r")
        self.offsets = np.memmap(folder / OFFSETS, dtype=np.int64, mode="r")
        if len(self.tokens) != self.manifest.tokens or len(self.offsets) != self.manifest.documents + 1:
            raise ValueError(f"{folder}: its files are not as long as its {MANIFEST} says")

    def __len__(self) -> int:
        return self.manifest.documents

    def read(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Slices of the tokens.

        Args:
            starts: (B,) first places.
            length: N.

        Returns:
            (B, N) int64 ids, and (B, N) bool, which of them lie in the corpus; those beyond its end are separators.
        """
        places = np.asarray(starts)[:, None] + np.arange(length)
        there = places < len(self.tokens)
        ids = self.tokens[np.minimum(places, len(self.tokens) - 1)].astype(np.int64)
        ids[~there] = self.manifest.separator
        return ids, there


def open_corpus(source: TextSource, tokenizer: str, workers: int, max_damaged: float) -> Corpus:
    """Open the tokens of a data set, from the cache where it has them; otherwise they are made and kept there.

    Other processes that need the same cache wait until it is made.

    Args:
        source: the data set.
        tokenizer: what `read_tokenizer` takes.
        workers: processes that tokenise.
        max_damaged: largest share of records that may be unreadable.

    Raises:
        UserError: nothing there, a file that cannot be read, too many damaged records, no documents.
        OSError: full disk, no permission.
    """
    files = list_files(source)
    made = read_tokenizer(tokenizer)
    separator(made)
    if source.split and not source.glue:
        question_mark(made)
    how = {"field": source.field, "heading": source.heading, "split": source.split}
    how |= {"glue": source.glue} if source.glue else {}
    identity = [VERSION, fingerprint(made), how, [(p.name, p.stat().st_size) for p in files]]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    folder = cache_dir() / "text" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{key}.lock")):
        if not _is_current(folder, files, workers):
            _make(folder, source, files, tokenizer, workers)
        corpus = Corpus(folder)
    manifest = corpus.manifest
    records = manifest.documents + manifest.empty + manifest.damaged
    if manifest.damaged > max_damaged * records:
        where, why = manifest.named[0]
        raise UserError(
            f"{source.spec}: {manifest.damaged} of {records} documents cannot be read, more than text.max_damaged="
            f"{max_damaged:g} allows; first {where}: {why}"
        )
    if not manifest.documents:
        raise UserError(f"{source.spec}: holds no documents (text.field={source.field}, text.task)")
    return corpus


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the files that a tokenizer saves."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _stamps(files: list[Path]) -> dict[str, int]:
    return {str(path.resolve()): path.stat().st_mtime_ns for path in files}


def _is_current(folder: Path, files: list[Path], workers: int) -> bool:
    """Whether the cache was made of these files as they are now; names and sizes agree already."""
    try:
        kept = json.loads((folder / MANIFEST).read_bytes())
        seen = json.loads((folder / SEEN).read_bytes())
        Corpus(folder)
    except (OSError, ValueError, TypeError):
        return False
    stamps = _stamps(files)
    known = {path: entry["sha256"] for path, entry in zip(stamps, kept["files"], strict=True)}
    changed = [Path(path) for path, stamp in stamps.items() if seen.get(path) != stamp]
    if any(digest != known[str(changed[i])] for i, digest in run_in_pool(sha256_of, changed, workers)):
        return False
    if changed:
        _write_json(folder / SEEN, seen | stamps)
    return True


def _make(folder: Path, source: TextSource, files: list[Path], tokenizer: str, workers: int) -> None:
    """Write the cache, whole or not at all."""
    made = read_tokenizer(tokenizer)
    dtype = "uint16" if made.vocab_size <= 1 << 16 else "uint32"
    stamps = _stamps(files)  # before they are read
    digests = dict(run_in_pool(sha256_of, files, workers))
    tokens = text_bytes = empty = damaged = documents = 0
    named: list[list[str]] = []
    end = np.array([separator(made)], dtype)
    with whole_folder(folder) as aside:
        with (
            open(aside / TOKENS, "wb") as ids,
            open(aside / OFFSETS, "wb") as offsets,
            progress_bar(sum(p.stat().st_size for p in files), "tokenise", "B") as bar,
        ):
            np.zeros(1, np.int64).tofile(offsets)
            jobs = _jobs(source, files, tokenizer, bar.update)
            for part in run_in_order(encode, jobs, workers):
                part.ids.astype(dtype).tofile(ids)
                (tokens + np.cumsum(part.lengths, dtype=np.int64)).tofile(offsets)
                tokens += len(part.ids)
                documents += len(part.lengths)
                text_bytes, empty, damaged = (
                    text_bytes + part.text_bytes,
                    empty + part.empty,
                    damaged + len(part.damaged),
                )
                named += [list(pair) for pair in part.damaged[: _NAMED - len(named)]]
                if damaged >= _HOPELESS and not documents:
                    raise UserError(f"{source.spec}: nothing can be read; {': '.join(named[0])}")
            end.tofile(ids)
        manifest = CorpusManifest(
            version=VERSION,
            tokens=tokens + 1,
            documents=documents,
            empty=empty,
            text_bytes=text_bytes,
            separator=int(end[0]),
            dtype=dtype,
            tokenizer=fingerprint(made),
            source={k: v for k, v in asdict(source).items() if k != "spec"},
            files=[{"name": p.name, "bytes": p.stat().st_size, "sha256": digests[i]} for i, p in enumerate(files)],
            damaged=damaged,
            named=named,
        )
        _write_json(aside / SEEN, stamps)
        _write_json(aside / MANIFEST, asdict(manifest))


def _jobs(source: TextSource, files: list[Path], tokenizer: str, progress) -> Iterator[EncodingJob]:
    """Records of about a mebibyte together; the jobs do not depend on the number of workers."""
    records, size = [], 0
    for path in files:
        for record in read_records(path, source):
            records.append(record)
            size += len(record.raw)
            if size >= _JOB_BYTES:
                yield EncodingJob(records, tokenizer, source.field)
                records, size = [], 0
        progress(path.stat().st_size)
    if records:
        yield EncodingJob(records, tokenizer, source.field)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
