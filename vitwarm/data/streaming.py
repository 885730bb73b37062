"""Training images streamed from web servers and object stores, for sets that do not fit on a disk. See docs/shards.md.

A stream guarantees less than shards on a disk. Its batches are a pure function of (seed, step, processes, workers,
device batch, the tars) and not of (seed, step) alone, since each process reads tars of its own from front to end.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from vitwarm.data import manifest as manifests
from vitwarm.data.grouping import parse_label, stream_samples
from vitwarm.data.images import TrainTransform
from vitwarm.data.loading import Loader
from vitwarm.data.order import ImageOrder, rank_slice
from vitwarm.data.patterns import expand_braces
from vitwarm.data.remote import check_url, find_remote, is_listed
from vitwarm.data.source import DamagedSample
from vitwarm.data.tar_reader import DamagedTar, read_tar
from vitwarm.data.web import file_name, one_line, open_url, shown
from vitwarm.errors import UserError, without_secrets
from vitwarm.files import sha256_of
from vitwarm.keys import keyed_rng

Record = tuple[str, bytes, bytes]  # key, encoded image, text of the label
_MOST_MANIFEST = 1 << 30  # bytes
_BUFFER = 512  # encoded images that a worker shuffles among, on top of the order of the tars


@dataclass(frozen=True)
class Stream:
    """Tars to stream.

    Attributes:
        urls: URLs of the tars, in the order of the specification.
        samples: images in all of them.
        shards: what the manifest beside them says of each; None without one.
        classes: the class names of the manifest; None where it has none.
        num_classes: labels must be below it.
        max_side: what the manifest says of images that were made smaller.
    """

    kind: ClassVar[str] = "tar"

    urls: list[str]
    samples: int
    shards: list[manifests.Shard] | None
    classes: manifests.ClassList | None
    num_classes: int
    max_side: int | None = None

    def __len__(self) -> int:
        return self.samples

    @property
    def counts(self) -> list[int] | None:
        """Images in each tar."""
        return None if self.shards is None else [shard.samples for shard in self.shards]

    @property
    def files(self) -> int:
        return len(self.urls)

    @property
    def num_bytes(self) -> int | None:
        """Size of all tars; None without a manifest."""
        return None if self.shards is None else sum(shard.bytes for shard in self.shards)

    def check_disjoint(self, val: Sequence[Path]) -> None:
        """Refuse local tars that are among those of the manifest, by their content.

        Raises:
            UserError: names one.
        """
        for path in val:
            for shard in self.shards or ():
                if path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256:
                    raise UserError(
                        f"images.val: {path} is {shard.name} of images.train; keep it out of one of the two"
                    )

    @property
    def identity(self) -> str:
        """Which images these are: how many, and a digest of their addresses and of what the manifest says of each."""
        told = json.dumps([*map(without_secrets, self.urls), self.counts])
        return f"{len(self):,} images, {hashlib.sha256(told.encode()).hexdigest()[:16]}"


def open_stream(spec: str, samples: int | None, num_classes: int) -> Stream:
    """The tars of a URL, such as `https://host/train-{00000..00539}.tar` or `hf://datasets/OWNER/NAME/train-*.tar`.

    Args:
        spec: `https`, `http`, or any scheme that an installed fsspec file system knows; never a command. Braces, and
            globs where the scheme is not one of web servers. Tars of the Hub are those of its commit of now.
        samples: `images.train_samples`; None takes the number from manifest.json beside the tars.
        num_classes: number of classes of the classifier.

    Raises:
        UserError: a scheme that is not known, no manifest and no `samples`, or the two disagree.
    """
    urls = find_remote(spec, "train").urls if is_listed(spec) else expand_braces(spec)
    for url in urls:
        try:
            check_url(url)
        except UserError as error:
            raise UserError(f"{shown(url)}: {error}") from None
    if odd := next((url for url in urls if file_name(url).endswith((".parquet", ".zip"))), None):
        raise UserError(f"{shown(odd)}: only tars are streamed; set images.cache=DIR, which downloads it")
    if len(set(urls)) < len(urls):
        raise UserError(f"{spec}: names a tar twice")
    shards = classes = max_side = None
    place = f"{re.split('[?#]', urls[0])[0].rpartition('/')[0]}/{manifests.NAME}"
    try:
        with open_url(place) as file:
            manifest = manifests.load(file.read(_MOST_MANIFEST), shown(place))
        listed, names = manifest.shards(), [file_name(url) for url in urls]
        if lost := [name for name in names if name not in listed]:
            raise UserError(f"{shown(place)}: does not list {lost[0]}; make it again, or fix images.train")
        shards, max_side = [listed[name] for name in names], manifest.max_side(names)
        classes = manifests.ClassList(manifest.classes, shown(place)) if manifest.classes else None
    except OSError as error:
        if samples is None:
            message = f"{shown(place)}: cannot be read ({one_line(error)}); put it there or set images.train_samples"
            raise UserError(message) from None
    total = sum(shard.samples for shard in shards) if shards is not None else samples
    if samples not in (None, total):
        raise UserError(f"images.train_samples={samples}, but {shown(place)} counts {total}; leave it out")
    assert total is not None  # without a manifest `samples` is demanded above
    return Stream(urls, total, shards, classes, num_classes, max_side)


def stream_loader(
    stream: Stream,
    transform: TrainTransform,
    order: ImageOrder,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world: int = 1,
    device_batch: int | None = None,
    workers: int = 0,
    pin_memory: bool | None = None,
) -> Loader:
    """Micro-batches of one process for the steps [start_step, stop_step): those of `train_loader`, from a stream.

    Every process and worker reads tars of its own, dealt out for each pass by an order keyed by (seed, pass); one that
    has read its tars begins its next pass, so that no process waits for another. Augmentation is keyed by (seed, pass,
    tar, place in the tar). To start later, the pass in question is read again without decoding.

    Raises:
        UserError: fewer tars than processes; while iterating: a tar cannot be read or is not a set of labelled images.
    """
    share = rank_slice(order.global_batch, rank, world)
    size = device_batch or share.stop - share.start
    if len(stream.urls) < world:
        raise UserError(
            f"{len(stream.urls)} streamed tars are too few for {world} processes; each needs one of its own"
        )
    lanes = max(1, min(workers, len(stream.urls) // world))
    a_step = (share.stop - share.start) // size
    numbers = range(start_step * a_step, stop_step * a_step)
    dataset = _StreamDataset(stream, transform, order.seed, rank, world, size, numbers, lanes)
    return Loader(dataset, None, lanes if workers else 0, pin_memory)


class _StreamDataset(IterableDataset):
    """Micro-batch i comes from lane i % lanes; a worker serves one lane."""

    def __init__(
        self,
        stream: Stream,
        transform: TrainTransform,
        seed: int,
        rank: int,
        world: int,
        size: int,
        numbers: range,
        lanes: int,
    ):
        self.stream, self.transform, self.seed, self.rank, self.world = stream, transform, seed, rank, world
        self.size, self.numbers, self.lanes = size, numbers, lanes

    def __iter__(self) -> Iterator[list[dict[str, Any]] | UserError]:
        worker = get_worker_info()
        first = self.numbers.start + (worker.id if worker else 0)  # the loader asks its workers in turn, from worker 0
        lane = first % self.lanes
        try:
            records = self._records(lane, first // self.lanes * self.size)
            for _ in range(first, self.numbers.stop, self.lanes):
                yield [self._sample(*record) for record in itertools.islice(records, self.size)]
        except UserError as error:  # returned, since torch would put its traceback into the message
            yield error

    def _records(self, lane: int, skip: int) -> Iterator[tuple[int, int, int, Record]]:
        """(pass, tar, place, record) of a lane without end, but for the first `skip`."""
        import webdataset

        stream, counts = self.stream, self.stream.counts
        for number in itertools.count():
            order = keyed_rng(self.seed, "images", "stream", "tars", number).permutation(len(stream.urls))
            tars = order[self.rank :: self.world][lane :: self.lanes].tolist()
            if counts is not None and 0 < (there := sum(counts[tar] for tar in tars)) <= skip:
                skip -= there
                continue
            drawn = keyed_rng(self.seed, "images", "stream", "shuffle", number, self.rank, lane).integers(2**63)
            shuffle = webdataset.shuffle(_BUFFER, initial=_BUFFER, rng=random.Random(int(drawn)))
            seen = 0
            for tar, place, record in shuffle(found for one in tars for found in self._read(one)):
                seen += 1
                if seen > skip:
                    yield number, tar, place, record
            if not seen:
                raise UserError(f"{shown(stream.urls[tars[0]])}: no images (KEY.jpg with KEY.cls) in it")
            skip = max(0, skip - seen)

    def _read(self, tar: int) -> Iterator[tuple[int, int, Record]]:
        url, place = self.stream.urls[tar], -1
        try:
            with open_url(url) as file:
                for place, record in enumerate(stream_samples(read_tar(file), file_name(url))):
                    yield tar, place, record
        except DamagedTar as error:
            raise UserError(f"{shown(url)}: cannot be streamed ({error})") from None
        except UserError:
            raise
        except Exception as error:  # file systems raise many kinds
            raise UserError(f"{shown(url)}: cannot be streamed ({one_line(error)})") from None
        counts = self.stream.counts
        if counts is not None and place + 1 != counts[tar]:
            raise UserError(f"{shown(url)}: has {place + 1} samples, its manifest says {counts[tar]}")

    def _sample(self, number: int, tar: int, place: int, record: Record) -> dict[str, Any]:
        key, encoded, text = record
        name = f"{file_name(self.stream.urls[tar])}:{key}"
        label = parse_label(text)
        if label is None or label >= self.stream.num_classes:
            raise UserError(f"{name}: its label is not a number below model.num_classes={self.stream.num_classes}")
        damage, identity = None, tar << 32 | place
        try:
            rng = keyed_rng(self.seed, "images", "stream", "augment", number, tar, place)
            image = self.transform(self.transform.open(encoded), rng)
        except DamagedSample as error:
            damage = (identity, name, str(error))
            image = torch.zeros(3, self.transform.size, self.transform.size, dtype=torch.uint8)
        return {"image": image, "label": label, "valid": damage is None, "sample": identity, "damage": damage}
