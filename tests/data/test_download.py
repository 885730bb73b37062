"""Files of the Hub and of web servers in a cache: its own client against a stand-in of the Hub on this machine."""

import errno
import multiprocessing
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from hubmaking import Hub, serving
from huggingface_hub import HfFileSystem
from tarmaking import random_image, write_tar

from vitwarm.data.download import DownloadCache
from vitwarm.data.images import TrainTransform
from vitwarm.data.opening import count_images, open_source
from vitwarm.data.order import ImageOrder
from vitwarm.data.shards import ShardSet
from vitwarm.data.streaming import open_stream, stream_loader
from vitwarm.errors import Interrupted, UserError
from vitwarm.recipe import load_recipe, recipe_hash
from vitwarm.stages.corpus import open_split
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import Setup

NAME = "timm/imagenet-1k-wds"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, and a client that knows no other Hub and no token."""
    hub = Hub()
    with serving(hub) as address:
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        HfFileSystem.clear_instance_cache()
        yield hub


def tar_bytes(folder: Path, count: int, first: int = 0) -> bytes:
    """As in timm's: KEY.cls, KEY.jpg and KEY.json."""
    members = []
    for row in range(first, first + count):
        image = random_image(row, format="JPEG")
        members += [
            (f"n0{row}_1.cls", b"%d" % (row % 4)),
            (f"n0{row}_1.jpg", image),
            (f"n0{row}_1.json", b'{"label": 9}'),
        ]
    return write_tar(folder / "made.tar", members).read_bytes()


@pytest.fixture
def tars(hub, tmp_path) -> dict[str, bytes]:
    """Three tars for training and one for validation, in the layout of timm's ImageNet; 4, 3, 2 and 2 images."""
    names = [*(f"imagenet1k-train-{i:04d}.tar" for i in range(3)), "imagenet1k-validation-00.tar"]
    files = {name: tar_bytes(tmp_path, n, 10 * i) for i, (name, n) in enumerate(zip(names, (4, 3, 2, 2), strict=True))}
    hub.commit(NAME, files | {"README.md": b"# card", ".gitattributes": b"*.tar lfs"})
    return files


def refused(message: str, call) -> str:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(spec: str) -> dict[str, bytes]:
    folder, _, pattern = spec.rpartition("/")
    found = Path(spec).iterdir() if Path(spec).is_dir() else Path(folder).glob(pattern)
    return {path.name: path.read_bytes() for path in sorted(found)}


def once(names) -> dict[str, int]:
    return dict.fromkeys(names, 1)


def test_a_cache_holds_what_a_url_names_and_needs_no_hub_then(hub, tars, tmp_path):
    cache, url = DownloadCache(str(tmp_path / "c")), f"hf://datasets/{NAME}/imagenet1k-train-*.tar"
    assert not cache.holds(url, "train")
    local = cache.local(url, "train")
    assert local == f"{tmp_path}/c/hf/datasets/{NAME}@{hub.heads[NAME]}/imagenet1k-train-*.tar"
    train = {name: data for name, data in tars.items() if "train" in name}
    assert contents(local) == train and hub.asked == once(train)
    # A repository that goes on changes no cache; a new cache, or another revision, takes what is there.
    before, requests = hub.heads[NAME], hub.requests
    hub.commit(NAME, {"imagenet1k-train-0000.tar": tars["imagenet1k-train-0002.tar"]})
    hub.down = True
    assert cache.local(url, "train") == local and cache.holds(url, "train") and hub.requests == requests
    hub.down = False
    assert contents(DownloadCache(str(tmp_path / "d")).local(url, "train")) == {
        "imagenet1k-train-0000.tar": tars["imagenet1k-train-0002.tar"]
    }
    old = f"hf://datasets/{NAME}@{before}/imagenet1k-train-{{0000..0002}}.tar"
    assert contents(DownloadCache(str(tmp_path / "d")).local(old, "train").replace("{0000..0002}", "*")) == train


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_stands_for_the_split_that_is_asked_for(hub, tars, tmp_path, split):
    hub.commit(NAME, {f"data/{name}": data for name, data in tars.items()} | {"README.md": b"#", "data/x.txt": b"x"})
    cache = DownloadCache(str(tmp_path / "c"))
    refused(r"no data files .*name one of its folders: data", lambda: cache.local(f"hf://datasets/{NAME}", split))
    found = contents(cache.local(f"hf://datasets/{NAME}/data/", split))
    word = {"train": "train", "val": "validation"}[split]
    assert found == {name: data for name, data in tars.items() if word in name}


def test_a_run_on_a_cache_is_a_run_on_local_files(hub, tars, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    for name, data in tars.items():
        (local / name).write_bytes(data)

    def stage(place: str, *more: str, **setup) -> ImagesStage:
        keys = ["recipe=digits_default", "train.global_batch=4", "images.subset=50%", *more]
        keys += [f"images.train={place}/imagenet1k-train-*.tar", f"images.val={place}/imagenet1k-validation-*.tar"]
        config = load_recipe(keys)
        return config, (lambda: ImagesStage(config, Setup(**setup)))

    cache = f"images.cache={tmp_path / 'c'}"
    config, make = stage(f"hf://datasets/{NAME}", cache)
    assert recipe_hash(config) == recipe_hash(stage(f"hf://datasets/{NAME}")[0])
    refused("train_images=N", lambda: count_images(config, None))  # an estimate downloads nothing
    assert not hub.requests
    remote, here = make(), stage(str(local))[1]()
    assert remote.data_read() == here.data_read() and remote.data_line() == here.data_line()
    assert remote.subset.text == here.subset.text and len(remote.shards) == 9
    assert sorted(remote.shards.labels.tolist()) == sorted(row % 4 for row in (0, 1, 2, 3, 10, 11, 12, 20, 21))
    assert count_images(config, None).full == 9
    refused("images.subset needs random access.*images.cache=DIR", stage(f"hf://datasets/{NAME}")[1])
    refused(
        "images.val: hf://.* is not on a disk; a run with images.cache=DIR downloads it",
        lambda: open_source(f"hf://datasets/{NAME}/imagenet1k-validation-*.tar", "val", "images.val"),
    )


def test_what_is_half_there_is_downloaded_again_and_nothing_else(hub, tars, tmp_path):
    cache, url = DownloadCache(str(tmp_path / "c")), f"hf://datasets/{NAME}/*train*.tar"
    folder = Path(cache.local(url, "train")).parent
    one, two, three = (folder / f"imagenet1k-train-{i:04d}.tar" for i in range(3))
    one.write_bytes(one.read_bytes()[:600])
    two.unlink()
    (folder / f".{two.name}.tmp").write_bytes(b"of a process that was killed")
    stamp = three.stat().st_mtime_ns
    assert not cache.holds(url, "train")
    cache.local(url, "train")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: tars[path.name] for path in (one, two, three)
    }
    assert three.stat().st_mtime_ns == stamp and hub.asked[three.name] == 1 and hub.asked[one.name] == 2
    (ledger,) = (tmp_path / "c").glob("*.json")
    ledger.write_bytes(ledger.read_bytes()[:50])  # it is looked up again, and no file is fetched
    asked = dict(hub.asked)
    cache.local(url, "train")
    assert dict(hub.asked) == asked


@pytest.mark.parametrize("garble", [lambda data: data[:-512], lambda data: data[:600] + b"x" + data[601:]])
def test_what_comes_damaged_is_not_kept(hub, tars, tmp_path, garble):
    cache, url = DownloadCache(str(tmp_path / "c")), f"hf://datasets/{NAME}/imagenet1k-train-0001.tar"
    hub.garble = garble
    refused("imagenet1k-train-0001.tar: (came with|cannot be downloaded)", lambda: cache.local(url, "train"))
    assert not list((tmp_path / "c").rglob("*.tar*"))
    hub.garble = bytes
    assert ShardSet([Path(cache.local(url, "train"))]).identity


def test_gated_and_private_repositories_say_what_to_do(hub, tars, tmp_path, monkeypatch):
    url, cache = f"hf://datasets/{NAME}/*train*.tar", DownloadCache(str(tmp_path / "c"))
    hub.gated.add(NAME)
    told = refused("is gated; accept its terms on its page, then log in", lambda: cache.local(url, "train"))
    assert told.startswith(f"hf://datasets/{NAME}@") and "HF_TOKEN" in told
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused("no access; log in anew", lambda: cache.local(url, "train"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert len(contents(cache.local(url, "train"))) == 3
    for call in (cache.local, lambda spec, split: open_stream(spec, 9, 4)):
        refused("no such repository, or a private one", lambda call=call: call("hf://datasets/no/such/*.tar", "train"))
        refused("revision not found", lambda call=call: call(f"hf://datasets/{NAME}@v9/*.tar", "train"))
        refused(r"nothing-\*.tar: no such file", lambda call=call: call(f"hf://datasets/{NAME}/nothing-*.tar", "train"))
        refused(
            "train-0009.tar: no such file", lambda c=call: c(f"hf://datasets/{NAME}/train-{{0009..0010}}.tar", "train")
        )
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    HfFileSystem.clear_instance_cache()
    refused("cannot be listed", lambda: cache.local(f"hf://datasets/{NAME}/*.tar", "val"))
    assert len(contents(cache.local(url, "train"))) == 3


def test_a_full_disk_is_one_line_and_whole_files_stay(hub, tars, tmp_path, monkeypatch):
    cache, url = DownloadCache(str(tmp_path / "c")), f"hf://datasets/{NAME}/*train*.tar"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused("still to be downloaded, and only 0.0 GB are free", lambda: cache.local(url, "train"))
    assert not hub.asked

    from vitwarm.data import download

    fetch = download.fetch

    def full(address: str, place: Path) -> None:
        if "0001" in address:
            place.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")
        fetch(address, place)

    with monkeypatch.context() as patch:
        patch.setattr(download, "fetch", full)
        refused("imagenet1k-train-0001.tar: the disk is full; free space", lambda: cache.local(url, "train"))
    assert [path.name for path in (tmp_path / "c").rglob("*.tar*")] == ["imagenet1k-train-0000.tar"]
    with monkeypatch.context() as patch:
        patch.setattr("vitwarm.signals._seen", [15])
        with pytest.raises(Interrupted):
            cache.local(url, "train")
    cache.local(url, "train")
    assert hub.asked == once(name for name in tars if "train" in name)


@pytest.mark.parametrize("folder", ["imagenet/", "imagenet"])
def test_a_folder_of_a_web_server_is_refused_and_nothing_is_kept(tmp_path, folder):
    with pytest.raises(UserError, match=f"https://host/{folder}: is no file; web servers list no folders"):
        DownloadCache(str(tmp_path / "cache")).local(f"https://host/{folder}", "train")
    assert not list((tmp_path / "cache").glob("*.json")) and not (tmp_path / "cache/https").exists()


def test_a_cache_that_cannot_be_made(hub, tars, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/c"):
        cache = DownloadCache(str(tmp_path / place))
        assert not cache.holds(f"hf://datasets/{NAME}/*.tar", "train")
        refused(f"{place}: cannot be made", lambda cache=cache: cache.local(f"hf://datasets/{NAME}/*.tar", "train"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c/hf").write_text("x")
    cache = DownloadCache(str(tmp_path / "c"))
    refused("a file stands where the cache needs a folder", lambda: cache.local(f"hf://datasets/{NAME}/*.tar", "train"))


def test_processes_download_once_together(hub, tars, tmp_path):
    url = f"hf://datasets/{NAME}/*train*.tar"
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        found = pool.starmap(_local, [(str(tmp_path / "c"), url)] * 3)
    assert len(set(found)) == 1 and len(contents(found[0])) == 3
    assert hub.asked == once(name for name in tars if "train" in name)


def _local(cache: str, url: str) -> str:
    return DownloadCache(cache).local(url, "train")


def test_the_hub_streams_as_other_places_do(hub, tars, tmp_path):
    memory = fsspec.filesystem("memory")
    for name, data in tars.items():
        memory.pipe(f"/of-the-hub/{name}", data)
    found = []
    for place in (f"hf://datasets/{NAME}", "memory://of-the-hub"):
        stream = open_stream(f"{place}/imagenet1k-train-*.tar", 9, 4)
        order = ImageOrder(9, 3, 0)
        found.append(list(stream_loader(stream, TrainTransform(8), order, 0, 6, pin_memory=False)))
        assert stream.files == 3 and all(url.startswith(place) for url in stream.urls)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*found, strict=True) for key in ("image", "label", "sample"))
    assert f"@{hub.heads[NAME]}/" in open_stream(f"hf://datasets/{NAME}/*train*.tar", 9, 4).urls[0]
    hub.gated.add(NAME)
    with pytest.raises(UserError, match="train-000..tar: cannot be streamed .is gated; accept its terms"):
        next(
            iter(stream_loader(open_stream(f"hf://datasets/{NAME}/*train-*.tar", 9, 4), TrainTransform(8), order, 0, 1))
        )
    hub.commit("ILSVRC/imagenet-1k", {"data/train-00000-of-00294.parquet": b"PAR1"})
    refused(
        "train-00000-of-00294.parquet: only tars are streamed; set images.cache=DIR",
        lambda: open_stream("hf://datasets/ILSVRC/imagenet-1k/data", 9, 4),
    )


def test_text_of_the_hub_is_downloaded(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("VITWARM_CACHE", str(tmp_path / "tokens"))
    lines = [b'{"text": "one"}\n{"text": "two"}\n', b'{"text": "three"}\n', b'{"text": "four"}\n']
    names = ("train-0.jsonl", "train-1.jsonl", "validation-0.jsonl")
    hub.commit("me/stories", dict(zip(names, lines, strict=True)) | {"README.md": b"# no document"})

    def corpus(spec: str, *more: str):
        config = load_recipe(
            ["recipe=lm_dyck_12_12_768", f"text.train={spec}", f"text.val={spec}", "text.tokenizer=bytes", *more]
        )
        return open_split(config, Setup(), "train")

    cache = f"text.cache={tmp_path / 'c'}"
    train = corpus("hf://datasets/me/stories/train-*.jsonl", cache)
    assert [entry["name"] for entry in train.manifest.files] == ["train-0.jsonl", "train-1.jsonl"]
    assert len(train) == 3 and len(corpus("hf://datasets/me/stories", cache)) == 4
    refused("set text.cache=DIR to download it", lambda: corpus("hf://datasets/me/stories/train-*.jsonl"))


def test_parquet_of_the_hub_is_parquet_on_a_disk(hub, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = {"README.md": b"#", "classes.py": b"#"}
    for number, (split, rows) in enumerate([("train", range(5)), ("train", range(5, 8)), ("validation", range(8, 10))]):
        images = [{"bytes": random_image(row), "path": f"{row}.png"} for row in rows]
        table = pyarrow.table({"image": images, "label": [row % 4 for row in rows]})
        parquet.write_table(table, tmp_path / "made.parquet")
        files[f"data/{split}-{number:05d}-of-00003.parquet"] = (tmp_path / "made.parquet").read_bytes()
    hub.commit("ILSVRC/imagenet-1k", files)
    place, cache = "hf://datasets/ILSVRC/imagenet-1k", str(tmp_path / "c")
    train = open_source(f"{place}/data/train-*.parquet", "train", "images.train", cache)
    assert [train.read(row) for row in range(len(train))] == [random_image(row) for row in range(8)]
    assert train.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    val = open_source(place, "val", "images.val", cache)  # the one folder in it that has parquet files
    assert len(val) == 2 and hub.asked == once(name for name in files if name.endswith(".parquet"))
    assert open_source(place, "train", "images.train", cache).identity == train.identity
