"""Text to ids and back, offline: GPT-2's byte-level BPE from local files, bytes, characters.

| source (`read_tokenizer`) | tokenizer | needs |
|---|---|---|
| folder with `vocab.json` and `merges.txt`, or a byte-level BPE's `tokenizer.json` | BPE | `pip install vitwarm[lm]` |
| `bytes` | 256 bytes of UTF-8 and an end of text | nothing |
| `chars` | the 95 printable ASCII characters behind PAD, UNK, BOS, SEP | nothing |

BPE runs in tiktoken, which reads the same vocabulary about five times as fast as `tokenizers`. What a tokenizer saves
is read by `transformers` too. Text never gives special ids: "<|endoftext|>" in a document is text like any other.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from vitwarm.errors import UserError

END = "<|endoftext|>"
PRINTABLE = "".join(map(chr, range(32, 127)))
VOCAB, MERGES, WHOLE, SETTINGS = "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"
UNREADABLE = "\ufffd"  # replaces bytes that are not valid text


class Tokenizer(Protocol):
    """Interface of a tokenizer, as stages and exports use it.

    Attributes:
        vocab_size: ids are below it.
        end: id that ends a text and separates documents; None when there is none.
    """

    vocab_size: int

    @property
    def end(self) -> int | None: ...

    def encode(self, text: str) -> list[int]:
        """Encode text to ids, without special ones."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text; bytes that are not valid text become U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that `read_tokenizer` and `transformers.AutoTokenizer` read."""
        ...


def _alphabet() -> list[str]:
    """The character by which GPT-2's files write each byte: itself where it is visible, else one from 256 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(256, 512))
    return [chr(b) if b in visible else chr(next(hidden)) for b in range(256)]


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_bpe(folder: Path, vocab: dict[str, int], merges: list[str]) -> None:
    _write(folder / VOCAB, vocab)
    (folder / MERGES).write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    end = {name: END for name in ("bos_token", "eos_token", "unk_token") if END in vocab}
    _write(folder / SETTINGS, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **end})


class BPETokenizer:
    """Byte-level BPE as GPT-2's: a regular expression splits the text, merges join bytes within the pieces.

    Args:
        vocab: written token -> id, as in `vocab.json`.
        merges: pairs `"a b"` in the order of their rank, as in `merges.txt`.

    Raises:
        UserError: tiktoken is missing, or the vocabulary is not a byte-level BPE in the order of its merges.
    """

    def __init__(self, vocab: dict[str, int], merges: list[str]):
        try:
            import tiktoken
            from tiktoken_ext.openai_public import r50k_pat_str
        except ImportError as error:
            raise UserError("byte-level BPE needs tiktoken: pip install vitwarm[lm]") from error
        self.vocab, self.merges = vocab, merges
        alphabet = _alphabet()
        joined = ["".join(pair.split(" ")) for pair in merges]
        byte_of = {c: b for b, c in enumerate(alphabet)}
        made = [*alphabet, *joined]
        missing = [t for t in made if t not in vocab]
        if missing:
            raise UserError(f"the vocabulary lacks {missing[0]!r}, which its merges need; it is not a byte-level BPE")
        order = [vocab[t] for t in joined]
        if order != sorted(set(order)):  # tiktoken takes the id for the rank of the merge
            raise UserError("the ids do not follow the order of the merges; such a vocabulary cannot be read")
        ranks = {bytes(byte_of[c] for c in token): vocab[token] for token in made}
        special = {token: vocab[token] for token in vocab.keys() - set(made)}
        self.vocab_size = max(vocab.values()) + 1
        self.end = vocab.get(END)
        self._encoding = tiktoken.Encoding("bpe", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
        self._known = set(vocab.values())

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        parts = (self._encoding.decode_single_token_bytes(i) if i in self._known else b"\xff" for i in map(int, ids))
        return b"".join(parts).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        _save_bpe(folder, self.vocab, self.merges)


class ByteTokenizer:
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

    def save(self, folder: Path) -> None:
        _save_bpe(folder, self.vocab(), [])


class CharTokenizer:
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

    def save(self, folder: Path) -> None:
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
        _write(folder / WHOLE, whole)
        roles = {"<pad>": "pad_token", "<unk>": "unk_token", "<bos>": "bos_token", "<sep>": "sep_token",
                 "<end>": "eos_token"}  # fmt: skip
        named = {roles[n]: n for n in self.specials if n in roles}
        _write(folder / SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", **named})


def read_tokenizer(source: str | Path) -> Tokenizer:
    """Read the tokenizer that a recipe names, or that lies in a folder; see the module's table.

    Raises:
        UserError: nothing there, or a kind that is not known.
    """
    if source == "bytes":
        return ByteTokenizer()
    if source == "chars":
        return CharTokenizer()
    folder = Path(source).expanduser()
    try:
        if (folder / MERGES).is_file():
            vocab = json.loads((folder / VOCAB).read_text(encoding="utf-8"))
            lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
            return _bpe(vocab, [line for line in lines if line and not line.startswith("#version")])
        if (folder / WHOLE).is_file():
            return _from_whole(json.loads((folder / WHOLE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the tokenizer in {folder} cannot be read: {type(error).__name__} {error}") from error
    raise UserError(f"no tokenizer at {source}: give bytes, chars, or a folder with {VOCAB} and {MERGES}, or {WHOLE}")


def _bpe(vocab: dict[str, int], merges: list[str]) -> Tokenizer:
    return ByteTokenizer() if not merges and vocab == ByteTokenizer.vocab() else BPETokenizer(vocab, merges)


def _from_whole(whole: dict[str, Any]) -> Tokenizer:
    model = whole["model"]
    kind = model.get("type")
    before = whole.get("pre_tokenizer") or {}
    if kind == "WordLevel" and before.get("type") == "Split":
        specials = [t["content"] for t in whole["added_tokens"]]
        names = sorted(model["vocab"], key=model["vocab"].get)
        characters = names[len(specials) :]
        if names[: len(specials)] == specials and all(len(n) == 1 for n in characters):
            return CharTokenizer("".join(characters), specials)
    plain = before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before.get("add_prefix_space")
    if kind == "BPE" and plain and not whole.get("normalizer"):
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        added = {t["content"]: t["id"] for t in whole.get("added_tokens") or []}
        return _bpe({**model["vocab"], **added}, merges)
    raise UserError(f"{WHOLE} holds a {kind} tokenizer of another kind; only byte-level BPE and characters can be read")
