"""Which files a URL names: patterns on the Hugging Face Hub and in object stores, braces on web servers."""

import glob
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitwarm.data.grouping import is_hidden
from vitwarm.data.patterns import expand_braces
from vitwarm.data.splits import split_of
from vitwarm.data.web import file_system, is_web, one_line, shown
from vitwarm.errors import UserError

_IMAGES = (".tar", ".parquet", ".zip")
_CARD = frozenset(("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "dataset_infos.json"))  # of a Hub repository


def is_url(spec: str) -> bool:
    """Whether a specification, or a part of it, lies elsewhere."""
    return "://" in spec


def check_url(url: str) -> None:
    """Refuse what is no plain URL: a chain of fsspec's file systems, a file of this machine.

    Raises:
        UserError: it is one.
    """
    if re.match(r"[a-z0-9]+://", url) is None or url.startswith(("file:", "local:")) or "::" in url:
        raise UserError("is not a URL to read from; use hf://, https://, s3://, ..., or a path for local files")
    if is_web(url) and "*" in url:
        raise UserError("a web server cannot list its files; write braces, train-{00000..00539}.tar")


def is_listed(url: str) -> bool:
    """Whether the files of a URL to stream from must be looked up: a pattern, or any of the Hub, for its commit."""
    return not is_web(url) and (url.startswith("hf://") or glob.has_magic(url))


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere.

    Attributes:
        path: below the root of what it was found by.
        bytes: its size; None where nobody says.
        sha256: its hash, hexadecimal; None likewise.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """What a URL names.

    Attributes:
        root: scheme, server or bucket; of the Hub the repository with its commit, so that later ones change nothing.
        pattern: the rest of the URL, as it was written.
        files: the files.
    """

    root: str
    pattern: str
    files: list[RemoteFile]

    @property
    def urls(self) -> list[str]:
        return [f"{self.root}/{file.path}" for file in self.files]


def find_remote(url: str, split: str | None) -> Found:
    """The files that a URL names, in the order of the braces, and each glob's in that of names.

    Args:
        url: `https://...` with braces; or with braces and globs, or a folder, of any scheme that fsspec knows.
        split: `train` or `val`: what a folder of images with several splits stands for; None takes all data files.

    Raises:
        UserError: it names nothing, or cannot be listed: no such scheme, no access, no connection.
    """
    try:
        check_url(url)
        root, pattern = _split(url)
        if "{" in root:
            raise UserError("braces belong behind the server, bucket or repository")
        names = expand_braces(pattern)
        if is_web(url) and not all(
            posixpath.basename(name) and (split is None or "." in posixpath.basename(name)) for name in names
        ):
            raise UserError("is no file; web servers list no folders: name the files, with braces")
        found = [RemoteFile(name) for name in names] if is_web(url) else _listed(root, names, split)
    except UserError as error:
        raise UserError(f"{shown(url)}: {error}") from None
    except Exception as error:  # file systems raise many kinds
        raise UserError(
            f"{shown(url)}: cannot be listed ({one_line(error)}); see whether address, network and login are right"
        ) from None
    times = Counter(file.path for file in found)
    if odd := next((path for path, count in times.items() if count > 1 or ".." in path.split("/")), None):
        raise UserError(f"{shown(url)}: {odd} is named twice, or is no plain name")
    return Found(re.sub(r"://[^/@]*@", "://", root), pattern, found)  # no password in names of folders


def _split(url: str) -> tuple[str, str]:
    """(root, rest) of a URL; what a web server gets behind a question mark is in neither."""
    scheme, _, path = url.partition("://")
    if is_web(url):
        path = re.split("[?#]", path)[0]
    elif scheme == "hf":
        from huggingface_hub import HfApi, HfFileSystem

        place: Any = HfFileSystem().resolve_path(url)
        if repository := getattr(place, "repo_id", None):  # else a bucket, which has no commits
            kind = "" if place.repo_type == "model" else f"{place.repo_type}s/"
            commit = HfApi().repo_info(repository, repo_type=place.repo_type, revision=place.revision).sha
            return f"hf://{kind}{repository}@{commit}", place.path_in_repo.rstrip("/")
    server, _, rest = path.partition("/")
    return f"{scheme}://{server}", rest.rstrip("/")


def _listed(root: str, names: Sequence[str], split: str | None) -> list[RemoteFile]:
    system, base = file_system(root)
    folders: dict[str, dict[str, Any]] = {}  # each is asked for once, however many names the braces stand for

    def within(folder: str) -> dict[str, Any]:
        if folder not in folders:
            entries = system.ls(f"{base}/{folder}".rstrip("/"), detail=True)
            folders[folder] = {entry["name"].removeprefix(f"{base}/").rstrip("/"): entry for entry in entries}
        return folders[folder]

    found: dict[str, Any] = {}
    for name in names:
        if glob.has_magic(name):
            matches = {
                path.removeprefix(f"{base}/"): e for path, e in system.glob(f"{base}/{name}", detail=True).items()
            }
            chosen = {path: entry for path, entry in sorted(matches.items()) if entry["type"] == "file"}
            if not chosen:
                raise UserError(f"{name}: no such file; give a file, a folder, a glob or a brace pattern")
        else:
            entry = within(posixpath.dirname(name)).get(name) if name else {"type": "directory"}
            if entry is None:
                raise UserError(f"{name}: no such file; give a file, a folder, a glob or a brace pattern")
            chosen = (
                _in_folder(_parquet_below(name, split, within), split)
                if entry["type"] == "directory"
                else {name: entry}
            )
        found.update(chosen)
    return [RemoteFile(path, entry["size"], (entry.get("lfs") or {}).get("sha256")) for path, entry in found.items()]


def _parquet_below(folder: str, split: str | None, within: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """What is in a folder; where that is one other folder with parquet files, as at the Hub, what is in that one."""
    entries = within(folder)
    inner = [
        path
        for path, entry in entries.items()
        if entry["type"] == "directory" and not is_hidden(posixpath.basename(path))
    ]
    if split and len(inner) == 1 and not any(path.endswith(_IMAGES) for path in entries):
        below = {path: entry for path, entry in within(inner[0]).items() if path.endswith(".parquet")}
        return below or entries
    return entries


def _in_folder(entries: dict[str, Any], split: str | None) -> dict[str, Any]:
    names = {path: posixpath.basename(path) for path in sorted(entries)}
    files = [
        path
        for path, name in names.items()
        if entries[path]["type"] == "file"
        and not is_hidden(name)
        and (name.endswith(_IMAGES) if split else name not in _CARD)
    ]
    if not files:
        kinds = f" ({', '.join(_IMAGES)})" if split else ""
        folders = ", ".join(name for path, name in names.items() if entries[path]["type"] == "directory")
        raise UserError(
            f"no data files{kinds} in this folder{f'; name one of its folders: {folders}' if folders else ''}"
        )
    splits: dict[str | None, list[str]] = {}
    for path in files:
        splits.setdefault(split_of(names[path]) if split else None, []).append(path)
    wanted = next((name for name in (split, "test" if split == "val" else None) if name in splits), None)
    if wanted is None and len(splits) > 1:
        raise UserError(f"no {split} in this folder, only {', '.join(map(str, splits))}; name the files by a glob")
    return {path: entries[path] for path in splits.get(wanted, files)}
