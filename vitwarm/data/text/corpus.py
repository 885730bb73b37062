"""Tokens of a data set in a cache, mapped into memory: made once, in parallel, the same for any number of workers.

| file | content |
|---|---|
| `tokens.bin` | ids end to end, little-endian uint16 (vocabularies up to 65,536) or uint32 |
| `offsets.bin` | int64, where each document begins, and where the last one ends |
| `digests.bin` | uint64, a hash of each document's text, white space left out |
| `manifest.json` | counts, sources with size and SHA-256, tokenizer, damage; SHA-256 of these files and itself |
| `seen.json` | times and place of each source, so that an unchanged one is not read again |

Every document stands behind a separator, and one more stands at the end: `s d1 s d2 s ... dn s`.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitwarm.cache import cache_dir
from vitwarm.data.text.encode import Encoded, EncodingJob, TextHash, encode, question_mark, separator
from vitwarm.data.text.readers import TextRecord, TextSource, check_format, list_files, read_records, reading
from vitwarm.data.tokenizers import Tokenizer, read_tokenizer
from vitwarm.errors import UserError
from vitwarm.files import locked, sha256_of, whole_folder, write_text
from vitwarm.parallel import progress_bar, run_in_order, run_in_pool

VERSION = 2
TOKENS, OFFSETS, DIGESTS, MANIFEST, SEEN = "tokens.bin", "offsets.bin", "digests.bin", "manifest.json", "seen.json"
_JOB_BYTES = 1 << 20  # of text that a worker takes at once
_FEW_BYTES = 1 << 26  # are hashed before processes would have started
_NAMED = 1000  # damaged records that a manifest names
_HOPELESS = 1000  # records, all of them damaged, after which reading stops
_log = logging.getLogger(__name__)


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
        content: SHA-256 of the cache's other files, by name.
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
    content: dict[str, str]


class DamagedCache(Exception):
    """A cache that is not as it was made; the message is what differs."""


class Corpus:
    """An open cache.

    Attributes:
        tokens: (T,) ids.
        offsets: (n + 1,) int64: document i is `tokens[offsets[i] : offsets[i + 1]]`, its separator first.
        manifest: the manifest of the cache.
        sha256: hash of the manifest, which names the corpus.

    Raises:
        DamagedCache: a file is not the one that was written.
        OSError: a file is missing or cannot be read.
    """

    def __init__(self, folder: Path):
        for path in folder.iterdir():
            if not path.is_file():  # opening a pipe would wait forever
                raise DamagedCache(f"{path.name} is no file")
        text = (folder / MANIFEST).read_bytes()
        self.manifest = _read_manifest(text)
        self.sha256 = hashlib.sha256(text).hexdigest()
        for name, digest in self.manifest.content.items():
            if sha256_of(folder / name) != digest:
                raise DamagedCache(f"{name} is not the one that was written")
        self.tokens = np.memmap(folder / TOKENS, dtype=self.manifest.dtype, mode="r")
        self.offsets = np.memmap(folder / OFFSETS, dtype=np.int64, mode="r")
        path = folder / DIGESTS  # opened now: another process may put another corpus into the folder's place
        self._digests = np.memmap(path, np.uint64, mode="r") if path.stat().st_size else np.empty(0, np.uint64)

    def digests(self) -> np.ndarray:
        """(n,) uint64, a hash of each document's text, white space left out."""
        return self._digests

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


def _read_manifest(text: bytes) -> CorpusManifest:
    try:
        content = json.loads(text)
        if content.pop("sha256") == _digest_of(content):
            return CorpusManifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DamagedCache(f"{MANIFEST} is not the one that was written")


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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
    folder = cache_dir() / "text" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    # Without the lock first: a cache may belong to someone else, and its folder be closed to us.
    if (corpus := _kept(folder, files, workers)) is None:
        corpus = _made(folder, source, files, tokenizer, workers)
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


def overlap(train: Corpus, val: Corpus, train_key: str, val_key: str) -> int:
    """How many documents of the validation are trained on.

    Args:
        train, val: tokenised alike.
        train_key, val_key: what they are called, for messages.

    Raises:
        UserError: both hold the same file, or most documents of the validation are trained on.
    """
    advice = "validate on text that is not trained on"
    known = {entry["sha256"]: entry["name"] for entry in train.manifest.files}
    published = train.manifest.source["split"] is not None  # then several splits may lie in one file
    for entry in val.manifest.files:
        name = known.get(entry["sha256"])
        if entry["bytes"] and name and not (published and name == entry["name"]):
            raise UserError(f"{val_key}: {entry['name']} holds what {train_key} reads as {name}; {advice}")
    shared = int(np.isin(val.digests(), train.digests()).sum())
    if 2 * shared > len(val) and not published:
        raise UserError(f"{val_key}: {shared} of its {len(val)} documents are in {train_key} too; {advice}")
    return shared


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of the files that a tokenizer saves."""
    digest = hashlib.sha256()
    for name, text in sorted(tokenizer.files().items()):
        content = text.encode()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _stamps(files: list[Path]) -> dict[str, list[int]]:
    """What a file cannot be changed without; its modification time alone can be set."""
    stamps = {}
    for path in files:
        with reading(path):
            at = path.stat()
            stamps[str(path.resolve())] = [at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
    return stamps


def _digests(files: list[Path], workers: int) -> dict[int, str]:
    few = sum(path.stat().st_size for path in files) < _FEW_BYTES
    return dict(run_in_pool(_digest, files, 1 if few else workers))


def _digest(path: Path) -> str:
    with reading(path):
        return sha256_of(path)


def _kept(folder: Path, files: list[Path], workers: int) -> Corpus | None:
    """The cache, if it is there, whole, and made of these files as they are now; names and sizes agree already."""
    try:
        corpus = Corpus(folder)
    except FileNotFoundError:
        return None
    except (DamagedCache, OSError) as error:
        _log.warning("%s: the cache cannot be used and is made anew: %s", folder, error)
        return None
    try:
        seen = json.loads((folder / SEEN).read_bytes())
        seen = seen if isinstance(seen, dict) else {}
    except (OSError, ValueError, RecursionError):
        seen = {}
    stamps = _stamps(files)
    known = {path: entry["sha256"] for path, entry in zip(stamps, corpus.manifest.files, strict=True)}
    changed = [Path(path) for path, stamp in stamps.items() if seen.get(path) != stamp]
    if any(digest != known[str(changed[i])] for i, digest in _digests(changed, workers).items()):
        return None
    if changed:
        with contextlib.suppress(OSError):  # a folder that is closed to us: they are hashed again next time
            _write_json(folder / SEEN, seen | stamps)
    return corpus


def _made(folder: Path, source: TextSource, files: list[Path], tokenizer: str, workers: int) -> Corpus:
    """The cache, made by this process or by another one that was first."""
    for path in files:
        check_format(path, source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(_lock(folder.name, folder.parent)):
            if (corpus := _kept(folder, files, workers)) is None:
                _sweep(folder)
                _make(folder, source, files, tokenizer, workers)
                corpus = Corpus(folder)
            return corpus
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write the cache {folder}: {reason}; free space, or set VITWARM_CACHE") from error


def _lock(key: str, folder: Path) -> Path:
    return folder / f".{key}.lock"


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left of other caches."""
    for left in (*folder.parent.glob(".*.tmp"), *folder.parent.glob(".*.old")):
        key = left.stem[1:]
        if key != folder.name:
            with contextlib.suppress(UserError, OSError), locked(_lock(key, folder.parent), "in use"):
                shutil.rmtree(left, ignore_errors=True)


def _make(folder: Path, source: TextSource, files: list[Path], tokenizer: str, workers: int) -> None:
    """Write the cache, whole or not at all."""
    made = read_tokenizer(tokenizer)
    dtype = np.dtype("<u2" if made.vocab_size <= 1 << 16 else "<u4")
    stamps = _stamps(files)  # before they are read
    digests, sizes = _digests(files, workers), [p.stat().st_size for p in files]
    with whole_folder(folder) as aside:
        with (
            open(aside / TOKENS, "wb") as ids,
            open(aside / OFFSETS, "wb") as offsets,
            open(aside / DIGESTS, "wb") as hashes,
            progress_bar(sum(sizes), "tokenise", "B") as bar,
        ):
            written = _Writer(ids, offsets, hashes, dtype)
            jobs = _jobs(source, files, tokenizer, lambda number: bar.update(sizes[number]))
            for part in run_in_order(encode, jobs, workers):
                written.add(part)
                if written.damaged >= _HOPELESS and not written.documents:
                    raise UserError(f"{source.spec}: nothing can be read; {': '.join(written.named[0])}")
            written.end(separator(made))
        if _stamps(files) != stamps:
            raise UserError(f"{source.spec}: a file has changed while it was read; start again when it is complete")
        manifest = CorpusManifest(
            version=VERSION,
            tokens=written.tokens,
            documents=written.documents,
            empty=written.empty,
            text_bytes=written.text_bytes,
            separator=separator(made),
            dtype=dtype.name,
            tokenizer=fingerprint(made),
            source={k: v for k, v in asdict(source).items() if k != "spec"},
            files=[{"name": p.name, "bytes": sizes[i], "sha256": digests[i]} for i, p in enumerate(files)],
            damaged=written.damaged,
            named=written.named,
            content={name: sha256_of(aside / name) for name in (TOKENS, OFFSETS, DIGESTS)},
        )
        _write_json(aside / SEEN, stamps)
        content = asdict(manifest)
        _write_json(aside / MANIFEST, content | {"sha256": _digest_of(content)})


class _Writer:
    """The files of a cache that is being made; a document that comes in pieces is put together, or left out whole.

    Args:
        ids, offsets, digests: the files.
        dtype: of the ids.
    """

    def __init__(self, ids: IO[bytes], offsets: IO[bytes], digests: IO[bytes], dtype: np.dtype[Any]):
        self.dtype = dtype
        self.tokens = self.documents = self.empty = self.text_bytes = self.damaged = 0
        self.named: list[list[str]] = []
        self._files = {TOKENS: ids, OFFSETS: offsets, DIGESTS: digests}
        self._open: _OpenDocument | None = None
        self._write(OFFSETS, np.zeros(1, np.int64))

    def add(self, part: Encoded) -> None:
        """Append the documents of a job."""
        self.empty += part.empty
        if part.begins and part.ends:
            self._damage(part.damaged)
            self._append(part)
            self._close(part.lengths, part.hashes)
            return
        if part.begins or self._open is None:
            self._open = _OpenDocument(self.tokens, self.text_bytes)
        whole = self._open
        whole.damaged += part.damaged
        whole.hash = sum(part.hashes, whole.hash)
        if not whole.damaged:
            self._append(part)
        if part.ends:
            self._open = None
            if whole.damaged:
                self._damage(whole.damaged[:1])
                self._files[TOKENS].truncate(whole.first * self.dtype.itemsize)
                self._files[TOKENS].seek(whole.first * self.dtype.itemsize)
                self.tokens, self.text_bytes = whole.first, whole.text_bytes
            else:
                self._close([self.tokens - whole.first], [whole.hash])

    def end(self, separator: int) -> None:
        """Write the separator behind the last document."""
        self._write(TOKENS, np.array([separator], self.dtype))
        self.tokens += 1

    def _append(self, part: Encoded) -> None:
        self._write(TOKENS, part.ids.astype(self.dtype))
        self.tokens += len(part.ids)
        self.text_bytes += part.text_bytes

    def _close(self, lengths: list[int], hashes: list[TextHash]) -> None:
        """Note where documents end whose tokens are written."""
        self._write(OFFSETS, self.tokens - sum(lengths) + np.cumsum(lengths, dtype=np.int64))
        self._write(DIGESTS, np.array([found.value for found in hashes], np.uint64))
        self.documents += len(lengths)

    def _damage(self, damaged: list[tuple[str, str, int]]) -> None:
        self.damaged += sum(lost for _, _, lost in damaged)
        self.named += [[where, why] for where, why, _ in damaged[: _NAMED - len(self.named)]]

    def _write(self, name: str, array: np.ndarray) -> None:
        self._files[name].write(array.tobytes())  # tofile would hide why a disk takes no more


class _OpenDocument:
    """A document of which more pieces are to come.

    Args:
        first: place of its first token.
        text_bytes: of the documents before it.
    """

    def __init__(self, first: int, text_bytes: int):
        self.first, self.text_bytes = first, text_bytes
        self.hash = TextHash()
        self.damaged: list[tuple[str, str, int]] = []


def _jobs(
    source: TextSource, files: list[Path], tokenizer: str, progress: Callable[[int], Any]
) -> Iterator[EncodingJob]:
    """Documents of about a mebibyte together, or a piece of a longer one; the same for any number of workers."""
    records: list[TextRecord] = []
    size = 0
    for number, path in enumerate(files):
        for record in read_records(path, source):
            if not (record.begins and record.ends):
                if records:
                    yield EncodingJob(records, tokenizer, source.field)
                    records, size = [], 0
                yield EncodingJob([record], tokenizer, source.field)
                continue
            records.append(record)
            size += len(record.raw)
            if size >= _JOB_BYTES:
                yield EncodingJob(records, tokenizer, source.field)
                records, size = [], 0
        progress(number)
    if records:
        yield EncodingJob(records, tokenizer, source.field)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
