"""Text to ids and back, offline: GPT-2's byte-level BPE from local files, bytes, characters.

| source (`read_tokenizer`) | tokenizer | needs |
|---|---|---|
| folder with `tokenizer.json` of a byte-level BPE, or `vocab.json` and `merges.txt` | BPE | `pip install vitwarm[lm]` |
| `bytes` | 256 bytes of UTF-8 and an end of text | nothing |
| `chars` | the 95 printable ASCII characters behind PAD, UNK, BOS, SEP | nothing |

BPE runs in tiktoken, which reads the same vocabulary about five times as fast as `tokenizers`. What a tokenizer saves
is read by `transformers` too. Text never gives special ids: "<|endoftext|>" in a document is text like any other.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitwarm.errors import UserError

END = "<|endoftext|>"
PRINTABLE = "".join(map(chr, range(32, 127)))
VOCAB, MERGES, WHOLE, SETTINGS = "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"
ADDED = "added_tokens.json"  # of older versions of transformers
UNREADABLE = "\ufffd"  # replaces bytes that are not valid text
_ROLES = {"bos_token": ("<s>",), "eos_token": ("</s>",), "unk_token": ("<unk>",)}  # what may stand for END
_LARGEST = 1 << 28  # bytes of a file
_PAIR = re.compile("[^ ]+ [^ ]+")
# As many blanks as tiktoken's regular expression has no stack for; white space is that of Unicode.
_BLANKS = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{10000,}")


class Tokenizer(ABC):
    """A tokenizer, as stages and exports use it.

    Attributes:
        vocab_size: ids are below it.
        end: id that ends a text and separates documents; None when there is none.
    """

    vocab_size: int
    end: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encode text to ids, without special ones."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text; bytes that are not valid text become U+FFFD."""

    @abstractmethod
    def files(self, max_length: int | None = None) -> dict[str, str]:
        """Name -> text of the files that `read_tokenizer` and `transformers.AutoTokenizer` read.

        Args:
            max_length: tokens that the model takes at most, for `transformers`.
        """

    def save(self, folder: Path, max_length: int | None = None) -> None:
        """Write the files into a folder."""
        for name, text in self.files(max_length).items():
            (folder / name).write_text(text, encoding="utf-8")


def _alphabet() -> list[str]:
    """The character by which GPT-2's files write each byte: itself where it is visible, else one from 256 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(hidden)) for b in range(256)]


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _settings(kind: str, max_length: int | None, **more: Any) -> dict[str, str]:
    length = {} if max_length is None else {"model_max_length": max_length}
    return {SETTINGS: _json({"tokenizer_class": kind, **more, **length})}


def _bpe_files(
    vocab: dict[str, int], merges: list[str], roles: Mapping[str, str], max_length: int | None
) -> dict[str, str]:
    return {
        VOCAB: _json(vocab),
        MERGES: "\n".join(["#version: 0.2", *merges]) + "\n",
        **_settings("GPT2Tokenizer", max_length, add_prefix_space=False, **roles),
    }


def _roles(vocab: dict[str, int], told: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Role, as `transformers` calls it -> special token: as told, else END, else the usual names."""
    roles = {}
    for role, usual in _ROLES.items():
        name = (told or {}).get(role)
        name = name.get("content") if isinstance(name, dict) else name
        if found := next((n for n in (name, END, *usual) if isinstance(n, str) and n in vocab), None):
            roles[role] = found
    return roles


class BPETokenizer(Tokenizer):
    """Byte-level BPE as GPT-2's: a regular expression splits the text, merges join bytes within the pieces.

    Bytes that the vocabulary lacks are left out, as in `tokenizers`.

    Args:
        vocab: written token -> id, as in `vocab.json`.
        merges: pairs `"a b"` in the order of their rank, as in `merges.txt`.
        roles: `eos_token` and the like -> special token; None: END, or the usual names.

    Raises:
        UserError: tiktoken is missing, or the vocabulary is not a byte-level BPE in the order of its merges.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str], roles: Mapping[str, str] | None = None):
        try:
            import regex  # which tiktoken needs as well
            import tiktoken
            from tiktoken_ext.openai_public import r50k_pat_str
        except ImportError as error:
            raise UserError("byte-level BPE needs tiktoken: pip install vitwarm[lm]") from error
        self.vocab, self.merges = vocab, merges
        self.roles = _roles(vocab) if roles is None else roles
        byte_of = {c: b for b, c in enumerate(_alphabet()) if c in vocab}
        joined = [pair.replace(" ", "") for pair in merges]
        missing = [
            t for pair, whole in zip(merges, joined, strict=True) for t in (*pair.split(" "), whole) if t not in vocab
        ]
        if missing or not byte_of:
            lacks = f"lacks {missing[0]!r}, which its merges need" if missing else "has none of the 256 bytes"
            raise UserError(f"the vocabulary {lacks}; it is not a byte-level BPE")
        order = [vocab[t] for t in joined]
        if order != sorted(set(order)):  # tiktoken takes the id for the rank of the merge
            raise UserError("the ids do not follow the order of the merges; such a vocabulary cannot be read")
        made = [*byte_of, *joined]
        ranks = {bytes(byte_of[c] for c in token): vocab[token] for token in made}
        special = {token: vocab[token] for token in vocab.keys() - set(made)}
        self.vocab_size = max(vocab.values()) + 1
        self.end = vocab.get(self.roles.get("eos_token", ""))
        self._encoding = tiktoken.Encoding("bpe", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
        self._known = set(vocab.values())
        self._bytes = bytes(byte_of.values())
        self._pieces = regex.compile(r50k_pat_str)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for blanks in _BLANKS.finditer(text):
            # The last one belongs to what follows.
            end = blanks.end() - (blanks.end() < len(text))
            ids += self._encode(text[start : blanks.start()])
            ids += self._encode_piece(text[blanks.start() : end])
            start = end
        return ids + self._encode(text[start:]) if start else self._encode(text)

    def _encode(self, text: str) -> list[int]:
        if len(self._bytes) == 256 or not text.encode(errors="replace").translate(None, self._bytes):
            return self._encoding.encode_ordinary(text)
        return [i for piece in self._pieces.findall(text) for i in self._encode_piece(piece)]

    def _encode_piece(self, piece: str) -> list[int]:
        content = piece.encode(errors="replace")
        if unknown := content.translate(None, self._bytes):
            content = content.translate(None, unknown)
        return self._encoding._encode_single_piece(content) if content else []

    def decode(self, ids: Iterable[int]) -> str:
        parts = (self._encoding.decode_single_token_bytes(i) if i in self._known else b"\xff" for i in map(int, ids))
        return b"".join(parts).decode("utf-8", errors="replace")

    def files(self, max_length: int | None = None) -> dict[str, str]:
        return _bpe_files(self.vocab, self.merges, self.roles, max_length)


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as ids, and id 256 to end a text. Its files are those of a byte-level BPE without merges."""

    vocab_size = 257
    end = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[int]) -> str:
        parts = (END.encode() if i == self.end else bytes([i if i < 256 else 255]) for i in map(int, ids))
        return b"".join(parts).decode("utf-8", errors="replace")

    @classmethod
    def vocab(cls) -> dict[str, int]:
        """The vocabulary, as in `vocab.json`."""
        return {**{c: b for b, c in enumerate(_alphabet())}, END: cls.end}

    def files(self, max_length: int | None = None) -> dict[str, str]:
        return _bpe_files(self.vocab(), [], _roles(self.vocab()), max_length)


class CharTokenizer(Tokenizer):
    """One id a character, the special ones in front.

    The default has the size of arXiv 2601.21725's tokenizer for DeepMind Mathematics: 99.

    Args:
        alphabet: the characters, each once.
        specials: names of ids that text never gives; of these `<unk>` stands for unknown characters, `<end>` ends a
            text.

    Raises:
        UserError: a character twice.
    """

    def __init__(self, alphabet: str = PRINTABLE, specials: Iterable[str] = ("<pad>", "<unk>", "<bos>", "<sep>")):
        self.names = [*specials, *alphabet]
        self.ids = {name: i for i, name in enumerate(self.names)}
        if len(self.ids) < len(self.names):
            twice = next(n for n in self.names if self.names.count(n) > 1)
            raise UserError(f"{twice!r} stands twice in the tokenizer's alphabet")
        self.specials = {n: i for n, i in self.ids.items() if i < len(self.names) - len(alphabet)}
        self.vocab_size = len(self.names)
        self.end = self.specials.get("<end>")
        self._unknown = self.specials.get("<unk>")
        self._of_char = {n: i for n, i in self.ids.items() if n not in self.specials}

    def encode(self, text: str) -> list[int]:
        """Raises UserError on a character outside the alphabet when there is no `<unk>`."""
        ids = [self._of_char.get(c, self._unknown) for c in text]
        if None in ids:
            raise UserError(f"{text[ids.index(None)]!r} is not in the tokenizer's alphabet of {len(self._of_char)}")
        return ids  # type: ignore[return-value]  # none of them is None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.names[i] if i < self.vocab_size else UNREADABLE for i in map(int, ids))

    def files(self, max_length: int | None = None) -> dict[str, str]:
        added = [
            {"id": i, "content": n, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for n, i in self.specials.items()
        ]  # fmt: skip
        unknown = "<unk>" if self._unknown is not None else ""
        whole = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated",
                              "invert": False},
            "post_processor": None, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": self.ids, "unk_token": unknown},
        }  # fmt: skip
        roles = {"<pad>": "pad_token", "<unk>": "unk_token", "<bos>": "bos_token", "<sep>": "sep_token",
                 "<end>": "eos_token"}  # fmt: skip
        named = {roles[n]: n for n in self.specials if n in roles}
        return {WHOLE: _json(whole), **_settings("PreTrainedTokenizerFast", max_length, **named)}


def read_tokenizer(source: str | Path) -> Tokenizer:
    """Read the tokenizer that a recipe names, or that lies in a folder; see the module's table.

    Raises:
        UserError: nothing there, or a kind that is not known.
    """
    if source == "bytes":
        return ByteTokenizer()
    if source == "chars":
        return CharTokenizer()
    named = Path(os.path.expanduser(source))
    folder = named.parent if named.is_file() else named
    whole = named if named.is_file() else folder / WHOLE
    pair = named.name in (VOCAB, MERGES) or not named.is_file()
    try:
        told = _read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        made = None
        if whole.is_file() and whole.name not in (VOCAB, MERGES):
            made = _from_whole(_read_json(whole), whole.name, told)
        if (folder / MERGES).is_file() and pair:
            lines = [line.rstrip("\r") for line in _read(folder / MERGES).split("\n")]
            merges = [line for i, line in enumerate(lines) if line and not (i == 0 and line.startswith("#version"))]
            vocab = _read_json(folder / VOCAB)
            if made is None:
                _check_settings(told, vocab, folder)
            if made is None or (isinstance(made, BPETokenizer) and (made.vocab, made.merges) == (vocab, merges)):
                return _bpe(vocab, merges, told)  # in the order of this file, which caches know it by
        if made is not None:  # it may say more than the two files beside it, such as tokens that were added
            return made
    except UserError as error:
        raise UserError(f"the tokenizer in {folder}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read: {type(error).__name__} {error}") from error
    raise UserError(
        f"no tokenizer at {source}: give bytes, chars, a {WHOLE}, or a folder with it or with {VOCAB} and {MERGES}"
    )


def _read(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise UserError(f"{path.name} has more than {_LARGEST >> 20} MiB; it is not the file of a tokenizer")
    return path.read_text(encoding="utf-8-sig")


def _read_json(path: Path) -> dict[str, Any]:
    tree = json.loads(_read(path))
    if not isinstance(tree, dict):
        raise TypeError(f"{path.name} holds no JSON object")
    return tree


def _check_ids(vocab: dict[str, Any]) -> None:
    """Refuse ids that are no rows of a token table: every id makes the model larger."""
    most, seen = 2 * len(vocab) + 1000, set()
    for token, number in vocab.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < most:
            raise UserError(f"the id of {token!r} is {number!r:.40}, not a whole number from 0 to {most - 1}")
        if number in seen:
            raise UserError(f"the id {number} of {token!r} is that of another token too")
        seen.add(number)


def _bpe(vocab: dict[str, int], merges: list[str], told: Mapping[str, Any]) -> Tokenizer:
    _check_ids(vocab)
    if wrong := next((pair for pair in merges if not _PAIR.fullmatch(pair)), None):
        raise UserError(f"the merge {wrong!r:.40} is not a pair of tokens")
    if not merges and vocab == ByteTokenizer.vocab():
        return ByteTokenizer()
    return BPETokenizer(vocab, merges, _roles(vocab, told))


def _check_settings(told: Mapping[str, Any], vocab: dict[str, int], folder: Path) -> None:
    """Refuse what a vocabulary and its merges do not say, and would give other ids."""
    if told.get("add_prefix_space"):
        raise UserError(f"{SETTINGS} has add_prefix_space, which cannot be read")
    more = told.get("added_tokens_decoder") or {}
    plain = {token["content"] for token in more.values() if not token.get("special")}
    if (folder / ADDED).is_file():
        roles = {json.dumps(role) for role in told.values()}
        plain |= {token for token in _read_json(folder / ADDED) if json.dumps(token) not in roles}
    if text := next((token for token in sorted(plain) if token not in vocab), None):
        raise UserError(f"{text!r} is an added token that text may give; only special ones can be read")


def _from_whole(whole: dict[str, Any], name: str, told: Mapping[str, Any]) -> Tokenizer:
    model = whole["model"]
    kind = model.get("type")
    before = whole.get("pre_tokenizer") or {}
    added = whole.get("added_tokens") or []
    if kind == "WordLevel" and before.get("type") == "Split":
        _check_ids(model["vocab"])
        specials = [t["content"] for t in added]
        names = sorted(model["vocab"], key=model["vocab"].get)
        characters = names[len(specials) :]
        numbered = sorted(model["vocab"].values()) == list(range(len(names)))
        if numbered and names[: len(specials)] == specials and all(len(n) == 1 for n in characters):
            return CharTokenizer("".join(characters), specials)
    plain = before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before.get("add_prefix_space")
    usual = not any(model.get(key) for key in ("dropout", "ignore_merges", "continuing_subword_prefix",
                                               "end_of_word_suffix", "byte_fallback"))  # fmt: skip
    if kind == "BPE" and plain and usual and not whole.get("normalizer"):
        if text := next((t["content"] for t in added if not t.get("special")), None):
            raise UserError(f"{name}: {text!r} is an added token that text may give; only special ones can be read")
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        return _bpe(model["vocab"] | {t["content"]: t["id"] for t in added}, merges, told)
    raise UserError(f"{name} holds a {kind} tokenizer of another kind; only byte-level BPE and characters can be read")
