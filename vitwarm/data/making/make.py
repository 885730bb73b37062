"""From a source to a folder of shards: plan, write, verify, and only then rename to the requested folder."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vitwarm.data import manifest as manifests
from vitwarm.data.decoding import MAX_PIXELS
from vitwarm.data.index_file import index_beside
from vitwarm.data.lists import read_classes
from vitwarm.data.making.encode import MaxSide
from vitwarm.data.making.samples import Source
from vitwarm.data.making.sources import TARS, find, read_source
from vitwarm.data.making.tars import describe_tars
from vitwarm.data.making.write import (
    ShardJob,
    ShardRecord,
    file_after,
    read_record,
    record_path,
    verify_shard,
    write_shard,
)
from vitwarm.data.manifest import ShardManifest, SplitManifest
from vitwarm.errors import Interrupted, UserError
from vitwarm.files import locked, write_text
from vitwarm.keys import keyed_rng
from vitwarm.parallel import progress_bar, run_in_pool

_QUALITY = 90  # of JPEGs that are made smaller
_PLAN, _LOCK = "plan.json", ".lock"


@dataclass(frozen=True)
class Options:
    """How shards are cut.

    Attributes:
        seed: seed of the order of `train`.
        shuffle: put `train` in a random order, so that any few of its shards are a fair sample; other splits keep the
            source's order.
        images_per_shard: most images in a tar; None goes by `shard_mb`.
        shard_mb: megabytes of images that a tar shall hold at most, on average.
        max_damaged: largest share of images that may be left out as damaged.
        max_side: most pixels of an image's shorter side; larger images become smaller JPEGs. None keeps every image.
        quality: of these JPEGs, 1 to 100; None is 90.
    """

    seed: int = 0
    shuffle: bool = True
    images_per_shard: int | None = None
    shard_mb: float = 256.0
    max_damaged: float = 0.001
    max_side: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        if self.images_per_shard is not None and self.images_per_shard < 1:
            raise UserError("images_per_shard must be at least 1")
        if not (self.shard_mb > 0 and math.isfinite(self.shard_mb)):
            raise UserError(f"shard_mb must be above 0, not {self.shard_mb:g}")
        if not 0 <= self.max_damaged < 1:
            raise UserError(f"max_damaged is a share in [0, 1), not {self.max_damaged:g}")
        if self.max_side is not None and self.max_side < 1:
            raise UserError("max_side must be at least 1")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"quality must be between 1 and 100, not {self.quality}")
        if self.quality is not None and self.max_side is None:
            raise UserError("quality= is of images that max_side= makes smaller; give max_side=, or leave it out")
        if self.quality is None and self.max_side is not None:
            object.__setattr__(self, "quality", _QUALITY)

    @property
    def smaller(self) -> MaxSide | None:
        """What makes larger images smaller."""
        return None if self.max_side is None or self.quality is None else MaxSide(self.max_side, self.quality)


def make_shards(
    source: Path,
    out: Path | None = None,
    kind: str | None = None,
    labels: Path | None = None,
    split: str | None = None,
    workers: int = 1,
    options: Options | None = None,
    say: Callable[[str], None] = print,
    classes: Path | None = None,
) -> ShardManifest:
    """Make shards, their indices and manifest.json; of existing tars, the indices and manifest.json only.

    All is made in `OUT.partial`, verified and renamed; the same call resumes where a killed one stopped. The bytes of
    every file are the same for any number of workers.

    Args:
        source: path of the archives, folders or tars (docs/shards.md).
        out: folder to make; may be left out for existing tars, whose own folder it is.
        kind: kind of the source; None detects it.
        labels: file with the labels of validation images that lie unsorted.
        split: name of the one split that a tree of class folders is; None is `train`.
        workers: processes.
        options: how shards are cut.
        say: receives the lines of progress.
        classes: file with the names of the classes in the order of their numbers, perhaps another set's manifest.json;
            None numbers those of the source in its own order.

    Raises:
        UserError: a source that is missing, damaged or unknown; an `out` that is taken; a disk that is too small.
        Interrupted: Ctrl-C; the same call resumes.
    """
    if split is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise UserError(f"split={split}: a name of letters and digits, such as train or val")
    options = options or Options()
    kind, folder = find(Path(source), kind)
    if kind == TARS and (out is None or out.resolve() == folder.resolve()):
        if labels is not None or split is not None or classes is not None or options != Options():
            raise UserError(
                "existing tars are indexed as they are; of the options, only workers= has a use here. Others are for "
                "tars that are made of them in another folder, out=FOLDER"
            )
        return describe_tars(folder, workers, say)
    if out is None:
        raise UserError("give out=FOLDER, the folder to make")
    if kind in ("folders", "tiny-imagenet") and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"out={out} lies within {folder}, whose folders are read as classes; choose another place")
    names = read_classes(classes) if classes is not None else None
    with contextlib.ExitStack() as held:
        try:
            return _make(read_source(kind, folder, labels, split, workers, names), out, workers, options, say, held)
        except KeyboardInterrupt:
            raise Interrupted("stopped; finished shards are kept") from None


def _make(
    source: Source, out: Path, workers: int, options: Options, say: Callable[[str], None], held: contextlib.ExitStack
) -> ShardManifest:
    images = ", ".join(f"{len(split.samples):,} images of {split.name}" for split in source.splits)
    say(f"{source.kind}: {len(source.classes)} classes ({source.classes[0]} ... {source.classes[-1]}), {images}")
    if source.ignored:
        say(f"not used: {', '.join(source.ignored)}")
    out = out.resolve()  # a link to a folder of another disk is made there
    if not out.name:
        raise UserError(f"cannot make {out}; give out=FOLDER")
    partial = out.with_name(f"{out.name}.partial")
    jobs = _jobs(source, partial, options)
    digest = _digest(source, jobs, options)
    cut = asdict(options) | {"max_damaged": None}  # the limit may be raised on the way
    began = hashlib.sha256(json.dumps([source.kind, source.classes, cut]).encode()).hexdigest()
    if (made := _already_made(out, digest)) is not None:
        say(f"{out}: is made already; source={out} checks it against its manifest")
        samples = (sample for job in jobs for sample in job.samples)
        if later := file_after(samples, (out / manifests.NAME).stat().st_mtime_ns):
            say(f"{later} was written or copied after it; if images have changed, remove {out} and run this again")
        return made
    if options.max_side is None:  # else nobody knows how small the images become
        _check_space(out, sum(s.size for job in jobs if not job.tar.exists() for s in job.samples))
    _open(partial, began, held)
    records = _write(jobs, workers, options.max_damaged, say)
    _verify(jobs, records, workers)
    made = _manifest(source, jobs, records, options, digest)
    for split in made.splits.values():
        for key, reason in split.damaged:
            say(f"damaged, left out: {key}: {reason}")
    write_text(partial / manifests.NAME, made.dump())
    strays = set(partial.glob("*.tar")) - {job.tar for job in jobs}  # of the source before it was mended
    indices = [index_beside(tar) for tar in strays]
    for left in [*strays, *indices, *partial.glob("*.tar.json"), partial / _PLAN, partial / _LOCK]:
        left.unlink(missing_ok=True)
    if out.exists():
        out.rmdir()  # an empty folder that the user made
    os.replace(partial, out)
    return made


def _jobs(source: Source, folder: Path, options: Options) -> list[ShardJob]:
    """The shards of all splits: equal parts, to within one image, of each split's order."""
    jobs = []
    for split in source.splits:
        count = len(split.samples)
        order = range(count)
        if options.shuffle and split.name == "train":
            order = keyed_rng(options.seed, "shards", split.name).permutation(count).tolist()
        if options.images_per_shard is not None:
            shards = math.ceil(count / options.images_per_shard)
        else:
            shards = math.ceil(sum(sample.size for sample in split.samples) / (options.shard_mb * 1e6))
        shards = min(max(shards, 1), count)
        for number in range(shards):
            rows = order[number * count // shards : (number + 1) * count // shards]
            tar = folder / f"{split.name}-{number:05d}.tar"
            samples = [split.samples[row] for row in rows]
            jobs.append(ShardJob(split.name, tar, samples, split.pixels, MAX_PIXELS, options.smaller))
    return jobs


def _digest(source: Source, jobs: list[ShardJob], options: Options) -> str:
    """Digest of the samples and options, without the images' own bytes and without paths, so that a source may move."""
    digest = hashlib.sha256(json.dumps([source.kind, source.classes, options.seed, options.shuffle]).encode())
    if options.max_side is not None:
        digest.update(json.dumps([options.max_side, options.quality]).encode())
    for job in jobs:
        rows = [(s.key, s.label, os.path.basename(s.file), s.offset, s.size) for s in job.samples]
        digest.update(json.dumps([job.tar.name, job.max_pixels, rows]).encode())
    return digest.hexdigest()


def _already_made(out: Path, digest: str) -> ShardManifest | None:
    made = manifests.beside(out)
    if made is not None and made.plan == digest:
        return made
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and holds something else; choose another out=")
    return None


def _check_space(out: Path, needed: int) -> None:
    there = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"{out}: the shards take {needed / 1e9:.1f} GB more, but {free / 1e9:.1f} GB are free there")


def _open(partial: Path, began: str, held: contextlib.ExitStack) -> None:
    """Create and lock the folder `OUT.partial`, or take over one from a killed call of the same classes and options.

    Raises:
        UserError: it is of another call, or somebody's own: what is in it would be moved or removed.
    """
    held_there = {path.name for path in partial.iterdir()} if partial.is_dir() else set()
    if partial.is_symlink() or (_PLAN not in held_there and held_there - {_LOCK, f".{_PLAN}.tmp"}):
        raise UserError(f"{partial}: exists and was not begun by this command; move it away, or choose another out=")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        held.enter_context(
            locked(partial / _LOCK, f"{partial}: another process is writing there; wait for it, or stop it")
        )
    except OSError as error:
        raise UserError(f"{partial}: cannot be made ({error.strerror}); choose another out=") from None
    file = partial / _PLAN
    if file.exists() and file.read_text(encoding="utf-8") != began:
        raise UserError(f"{partial}: was begun from another source or with other options; remove it to start over")
    write_text(file, began)
    for left in partial.glob(".*.tmp"):
        left.unlink()


def _write(jobs: list[ShardJob], workers: int, max_damaged: float, say: Callable[[str], None]) -> list[ShardRecord]:
    """Write the shards that are not there yet, or whose images have changed since, or were damaged."""
    records = {i: record for i, job in enumerate(jobs) if (record := read_record(job)) is not None}
    if records:
        say(f"resuming: {len(records)} of {len(jobs)} shards are there")
    todo = [i for i in range(len(jobs)) if i not in records]
    total = sum(len(job.samples) for job in jobs)
    with progress_bar(total, "write", "img", total - sum(len(jobs[i].samples) for i in todo)) as bar:
        _refuse_damaged(records, total, max_damaged)
        for number, record in run_in_pool(write_shard, [jobs[i] for i in todo], workers):
            records[todo[number]] = record
            bar.update(len(jobs[todo[number]].samples))
            _refuse_damaged(records, total, max_damaged)
    return [records[i] for i in range(len(jobs))]


def _refuse_damaged(records: dict[int, ShardRecord], total: int, max_damaged: float) -> None:
    damaged = [pair for i in sorted(records) for pair in records[i].damaged]
    if len(damaged) > max_damaged * total:
        named = "; ".join(f"{key}: {reason}" for key, reason in damaged[:3]) + ("; ..." if len(damaged) > 3 else "")
        raise UserError(
            f"{len(damaged)} of {total} images are damaged, more than max_damaged={max_damaged:g} allows; "
            f"fix the source, or raise max_damaged to leave them out ({named})"
        )


def _verify(jobs: list[ShardJob], records: list[ShardRecord], workers: int) -> None:
    """Read every tar again. The record of a wrong one is removed, so that the next call writes it again."""
    shards = [(job.tar, record) for job, record in zip(jobs, records, strict=True)]
    for tar, record in shards:
        if not record.shard.samples:
            raise UserError(f"{tar.name}: every image that belongs in it is damaged; fix the source")
    with progress_bar(sum(record.shard.samples for record in records), "verify", "img") as bar:
        for number, wrong in run_in_pool(verify_shard, shards, workers):
            tar, record = shards[number]
            if wrong is not None:
                record_path(tar).unlink()
                raise UserError(f"{tar.parent}: {wrong}; check the disk, then run the same command to write it again")
            bar.update(record.shard.samples)


def _manifest(
    source: Source, jobs: list[ShardJob], records: list[ShardRecord], options: Options, digest: str
) -> ShardManifest:
    splits, before = {}, {split.name: split.max_side for split in source.splits}
    for name in dict.fromkeys(job.split for job in jobs):
        parts = [record for job, record in zip(jobs, records, strict=True) if job.split == name]
        labels: Counter[int] = Counter()
        notes: Counter[str] = Counter()
        for part in parts:
            labels.update(part.labels)
            notes.update(part.notes)
        splits[name] = SplitManifest(
            samples=sum(part.shard.samples for part in parts),
            bytes=sum(part.shard.bytes for part in parts),
            class_counts=[labels[number] for number in range(len(source.classes))],
            shuffle_seed=options.seed if options.shuffle and name == "train" else None,
            max_side=min((side for side in (before[name], options.max_side) if side is not None), default=None),
            quality=options.quality,
            shards=[part.shard for part in parts],
            notes=dict(sorted(notes.items())),
            stored_as_png=[pair for part in parts for pair in part.stored_as_png],
            damaged=[pair for part in parts for pair in part.damaged],
        )
    return ShardManifest(source.kind, source.classes, splits, digest)
