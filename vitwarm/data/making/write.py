"""One shard: written by a worker, and read again at the end. Imports no torch, so that workers start at once."""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vitwarm.data.index_file import index_beside
from vitwarm.data.making.encode import MaxSide, checked, encode_pixels
from vitwarm.data.making.samples import Pixels, Reader, Sample
from vitwarm.data.manifest import Shard
from vitwarm.data.source import DamagedSample
from vitwarm.data.tar_index import tar_index
from vitwarm.errors import UserError
from vitwarm.files import sha256_of, whole_file, write_text
from vitwarm.reading import read_json


@dataclass(frozen=True)
class ShardJob:
    """The job of writing one shard, as a worker gets it.

    Attributes:
        split: its name.
        tar: the file to write; its record goes beside it, `NAME.tar.json`.
        samples: the samples, in order.
        pixels: see `SourceSplit`.
        max_pixels: most pixels of an image.
        max_side: makes larger images smaller; None keeps every size.
    """

    split: str
    tar: Path
    samples: list[Sample]
    pixels: Pixels | None
    max_pixels: int
    max_side: MaxSide | None = None

    @property
    def digest(self) -> str:
        """Digest of the samples, without the images' own bytes and without paths, so that a source may move."""
        rows = [(s.key, s.label, os.path.basename(s.file), s.offset, s.size) for s in self.samples]
        sizes = [self.max_pixels] + ([self.max_side.side, self.max_side.quality] if self.max_side else [])
        return hashlib.sha256(json.dumps([self.tar.name, *sizes, rows]).encode()).hexdigest()


@dataclass(frozen=True)
class ShardRecord:
    """The content of a finished shard, kept beside it until all are done: a killed call resumes after the last one.

    Attributes:
        job: digest of the job that it is of.
        shard: its line in the manifest.
        labels: class number -> images.
        notes, stored_as_png, damaged: see `SplitManifest`.
    """

    job: str
    shard: Shard
    labels: dict[int, int]
    notes: dict[str, int]
    stored_as_png: list[tuple[str, str]]
    damaged: list[tuple[str, str]]


def file_after(samples: Iterable[Sample], time: int) -> str | None:
    """A file of the samples that was written, copied or replaced after a time in nanoseconds; None if none was.

    Sizes and names may be as before, as of images without compression.
    """
    for file in dict.fromkeys(sample.file for sample in samples):
        with contextlib.suppress(OSError):  # one that is gone is reported when it is read
            if os.stat(file).st_ctime_ns > time:
                return file
    return None


def record_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.json")


def read_record(job: ShardJob) -> ShardRecord | None:
    """The record of a finished shard; None when it is not finished, not whole, or to be written again.

    One with damaged images is written again: its source may have been mended.
    """
    try:
        tree = read_json(record_path(job.tar))
        record = ShardRecord(
            tree.pop("job"),
            Shard(**tree.pop("shard")),
            {int(label): count for label, count in tree.pop("labels").items()},
            stored_as_png=[tuple(pair) for pair in tree.pop("stored_as_png")],
            damaged=[tuple(pair) for pair in tree.pop("damaged")],
            **tree,
        )
        made = job.tar.stat()
        if made.st_size != record.shard.bytes or record.job != job.digest or record.damaged:
            return None
        return record if file_after(job.samples, made.st_mtime_ns) is None else None
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class _Hashing(io.RawIOBase):
    """Forwards writes to a file, and hashes them; a write that fails names the tar."""

    def __init__(self, file, tar: Path):
        self._file, self._tar, self.digest, self.count = file, tar, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.digest.update(data)
        self.count += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._tar)) from error


def write_shard(job: ShardJob) -> ShardRecord:
    """Write a whole shard, then its record.

    Its bytes depend on the samples alone: headers carry no time, owner or machine.
    """
    labels: Counter[int] = Counter()
    notes: Counter[str] = Counter()
    converted, damaged = [], []
    with whole_file(job.tar, shared=True) as aside, open(aside, "wb") as file, Reader() as reader:
        hashing = _Hashing(file, job.tar)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
            for sample in job.samples:
                try:
                    data = reader.read(sample)
                    if job.pixels is None:
                        data, extension, found = checked(data, job.max_pixels, job.max_side)
                    else:
                        data, extension, found = encode_pixels(data, job.pixels, job.max_side)
                except DamagedSample as error:
                    damaged.append((sample.key, str(error)))
                    continue
                notes.update(found)
                converted += [(sample.key, note) for note in found if note.endswith("stored as PNG")]
                labels[sample.label] += 1
                _add(archive, f"{sample.key}.{extension}", data)
                _add(archive, f"{sample.key}.cls", str(sample.label).encode())
    shard = Shard(job.tar.name, sum(labels.values()), hashing.count, hashing.digest.hexdigest())
    record = ShardRecord(job.digest, shard, dict(labels), dict(notes), converted, damaged)
    write_text(record_path(job.tar), json.dumps(asdict(record)))
    return record


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner and time are 0
    info.size, info.mode = len(data), 0o444
    archive.addfile(info, io.BytesIO(data))


def describe(tar: Path) -> tuple[Shard, dict[int, int]]:
    """Describe a tar on the disk: its manifest entry, and class number -> images. Writes its index beside it.

    Raises:
        UserError: it is damaged or no set of labelled images.
    """
    index = tar_index(tar)
    numbers, counts = np.unique(index.label, return_counts=True)
    labels = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return Shard(tar.name, len(index), tar.stat().st_size, sha256_of(tar)), labels


def verify_shard(job: tuple[Path, ShardRecord]) -> str | None:
    """Index a finished shard again and compare the disk with what was written; returns the difference, or None."""
    tar, record = job
    index_beside(tar).unlink(missing_ok=True)
    try:
        shard, labels = describe(tar)
    except UserError:
        return f"{tar.name}: cannot be read as it was written"
    if shard.sha256 != record.shard.sha256:
        return f"{tar.name}: what is on the disk is not what was written"
    if (shard, labels) != (record.shard, record.labels):
        return f"{tar.name}: its index does not count what was written"
    return None
