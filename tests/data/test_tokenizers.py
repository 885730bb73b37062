"""Byte, character and byte-level BPE tokenizers; the reference for BPE is the `tokenizers` library."""

import json
import os
import re
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitwarm.data import tokenizers
from vitwarm.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, read_tokenizer
from vitwarm.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
MERGES = ["t h", "Ġ th", "Ġth e", "i n", "in g", "Ġ Ġ", "Ã ©", "1 2", "Ċ Ċ", "' s", "th e"]


def synthetic(folder, first=0):
    """A small vocabulary in GPT-2's layout; ids of ordinary tokens begin at `first`, the end of text takes the rest."""
    tokens = [*list(ByteTokenizer.vocab())[:256], *("".join(m.split()) for m in MERGES)]
    vocab = {t: first + i for i, t in enumerate(tokens)} | {"<|endoftext|>": 0 if first else len(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf-8")
    return folder


def reference(folder):
    """The same files in the `tokenizers` library."""
    library = pytest.importorskip("tokenizers")
    bpe = library.Tokenizer(library.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    bpe.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = library.decoders.ByteLevel()
    return bpe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tiktoken")
    return synthetic(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def pair(folder):
    return read_tokenizer(folder), reference(folder)


# BPE


@settings(max_examples=150, deadline=None)
@given(st.one_of(TEXT, st.text("the ing\n 12's<|>é", max_size=60)))
def test_bpe_agrees_with_the_reference_and_returns_the_text(pair, text):
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    assert ours.decode(ids) == text and max(ids, default=0) < ours.vocab_size


def test_bpe_merges_in_the_order_of_their_rank(folder):
    tokenizer = read_tokenizer(folder)
    at = {t: i for i, t in enumerate(["".join(m.split()) for m in MERGES], start=256)}
    assert tokenizer.encode("the the") == [at["the"], at["Ġthe"]]  # "th e" has the last rank, but is all there is
    assert tokenizer.encode("thing12") == [at["th"], at["ing"], at["12"]]
    assert tokenizer.vocab_size == 268 and tokenizer.end == 267


def test_ids_may_begin_behind_special_ones(tmp_path):
    """As in vocabularies that put the end of text first."""
    pytest.importorskip("tiktoken")
    tokenizer = read_tokenizer(synthetic(tmp_path, first=1))
    text = "the thing's\n\n12 <|endoftext|>"
    assert tokenizer.end == 0 and tokenizer.encode(text) == reference(tmp_path).encode(text).ids
    assert 0 not in tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text


def test_text_gives_no_special_id(folder):
    for tokenizer in (read_tokenizer(folder), ByteTokenizer()):
        assert tokenizer.end not in tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.decode([tokenizer.end]) == "<|endoftext|>"


def test_ids_that_are_no_text_become_replacement_characters(folder):
    assert read_tokenizer(folder).decode([104, 99999, 105]) == "h\ufffdi"
    assert ByteTokenizer().decode([104, 99999, 105, 0xC3]) == "h\ufffdi\ufffd"
    assert CharTokenizer("hi", ()).decode([0, 9, 1]) == "h\ufffdi"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"the": None}, "lacks 'the'"),
        ({"th": None}, "lacks 'th'"),
        ({"th": 258, "Ġthe": 256}, "do not follow the order"),
        ({"th": 262}, "the id 262 of 'Ã©' is that of another token too"),
        ({"the": 1 << 52}, "the id of 'the' is 4503599627370496, not a whole number from 0 to 1535"),
        ({"the": 2000}, "the id of 'the' is 2000, not"),
        ({"the": -1}, "the id of 'the' is -1, not"),
        ({"the": 300.5}, "the id of 'the' is 300.5, not"),
        ({"the": True}, "the id of 'the' is True, not"),
        ({"the": "7"}, "the id of 'the' is '7', not"),
    ],
)
def test_vocabularies_that_are_no_byte_level_bpe_are_refused(tmp_path, change, reason):
    pytest.importorskip("tiktoken")
    vocab = json.loads((synthetic(tmp_path) / "vocab.json").read_text(encoding="utf-8")) | change
    vocab = {t: i for t, i in vocab.items() if i is not None}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    with pytest.raises(UserError, match=reason) as caught:
        read_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.text("a'1é \t\n\r\x0b\x1c\x85\xa0\u2003\u3000", max_size=40))
def test_many_blanks_give_the_ids_of_the_reference(pair, text):
    """As if two blanks were already too many for a regular expression."""
    ours, theirs = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "_BLANKS", re.compile(tokenizers._BLANKS.pattern.replace("10000", "2")))
        assert ours.encode(text) == theirs.encode(text).ids


def test_a_million_blanks_are_encoded(folder):
    tokenizer = read_tokenizer(folder)
    pairs = [tokenizer.vocab["ĠĠ"]] * 499_999
    blank, a = tokenizer.vocab["Ġ"], tokenizer.vocab["a"]
    assert tokenizer.encode("a" + " " * 1_000_000 + "a") == [a, *pairs, blank, blank, a]
    assert tokenizer.encode(" " * 1_000_000) == [*pairs, tokenizer.vocab["ĠĠ"]]


def course(folder, texts=("the cat sat on the mat",), alphabet=False, specials=("<|endoftext|>",)):
    """A tokenizer as Hugging Face's course trains it: of the bytes, those that it has seen."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    initial = library.pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    made.train_from_iterator(
        texts * 9,
        library.trainers.BpeTrainer(special_tokens=[*specials], initial_alphabet=initial, show_progress=False),
    )
    made.save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    pytest.importorskip("tiktoken")
    folder = tmp_path_factory.mktemp("course")
    return course(folder), read_tokenizer(folder / "tokenizer.json")


@settings(max_examples=150, deadline=None)
@given(st.text("the catsonm é!\n1", max_size=30))
def test_bytes_that_a_vocabulary_lacks_are_left_out_as_in_the_reference(partial, text):
    theirs, ours = partial
    assert ours.encode(text) == theirs.encode(text).ids


def test_an_incomplete_vocabulary_is_exported_and_read_again(partial, tmp_path):
    theirs, ours = partial
    ours.save(tmp_path)
    assert read_tokenizer(tmp_path).encode("the cat") == theirs.encode("the cat").ids
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("the cat").input_ids == ours.encode("the cat")


@pytest.mark.parametrize(
    ("specials", "told", "end"),
    [
        (("<s>", "<pad>", "</s>", "<unk>"), {}, "</s>"),
        (("<s>", "</s>", "<|endoftext|>"), {}, "<|endoftext|>"),
        (("<s>", "</s>", "<eot>"), {"eos_token": "<eot>"}, "<eot>"),
        (("<s>", "</s>", "<eot>"), {"eos_token": {"content": "<eot>", "special": True}}, "<eot>"),
        (("<s>", "</s>"), {"eos_token": "<absent>"}, "</s>"),
        (("<pad>",), {}, None),
    ],
)
def test_the_end_of_text_is_what_the_files_name(tmp_path, specials, told, end):
    pytest.importorskip("tiktoken")
    made = course(tmp_path, alphabet=True, specials=specials)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.end == (None if end is None else made.token_to_id(end))
    (tmp_path / "again").mkdir()
    tokenizer.save(tmp_path / "again")
    assert read_tokenizer(tmp_path / "again").end == tokenizer.end
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path / "again")
    assert end is None or theirs.eos_token_id == tokenizer.end


def test_a_path_may_name_the_file_itself(folder, tmp_path):
    CharTokenizer("hi").save(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "mine.json")
    assert read_tokenizer(tmp_path / "mine.json").encode("hi") == [4, 5]
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "vocab.json").write_bytes(b"\xef\xbb\xbf" + (folder / "vocab.json").read_bytes())
    for name in ("vocab.json", "merges.txt"):
        assert read_tokenizer(tmp_path / name).encode("the thing") == read_tokenizer(folder).encode("the thing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"added_tokens": [{"content": "cat", "id": 300, "special": False}]}, "'cat' is an added token that text may"),
        ({"ignore_merges": True}, "a BPE tokenizer of another kind"),
        ({"end_of_word_suffix": "</w>"}, "a BPE tokenizer of another kind"),
        ({"dropout": 0.1}, "a BPE tokenizer of another kind"),
        ({"merges": ["a b c"]}, "the merge 'a b c' is not a pair"),
        ({"merges": ["ab"]}, "the merge 'ab' is not a pair"),
    ],
)
def test_what_would_give_other_ids_is_refused(tmp_path, change, says):
    pytest.importorskip("tiktoken")
    model = {"type": "BPE", "vocab": ByteTokenizer.vocab(), "merges": [], **change}
    whole = {"model": model, "pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": model.pop("added_tokens", [])}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match=says) as error:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_whole_tokenizer_counts_more_than_its_vocabulary_beside_it(tmp_path):
    """The two files lack what was added since; without it they are read, and refused where they say that it was."""
    pytest.importorskip("tiktoken")
    made = course(tmp_path, alphabet=True)
    made.model.save(str(tmp_path))
    for source in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "vocab.json"):
        assert read_tokenizer(source).encode("the cat") == made.encode("the cat").ids
    made.add_tokens(["  "])
    made.save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(UserError, match="'  ' is an added token that text may give"):
            read_tokenizer(source)
    made = course(tmp_path, alphabet=True, specials=["<|endoftext|>", "<pad>"])
    assert read_tokenizer(tmp_path).encode("the cat") == made.encode("the cat").ids
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 300}))
    with pytest.raises(UserError, match="'<pad>' is an added token that text may give"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    assert read_tokenizer(tmp_path).encode("a")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    with pytest.raises(UserError, match="add_prefix_space, which cannot be read"):
        read_tokenizer(tmp_path)


def test_characters_with_a_gap_in_their_ids_are_refused(tmp_path):
    CharTokenizer().save(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    whole["model"]["vocab"]["~"] = 200
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match="WordLevel tokenizer of another kind"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("make", [ByteTokenizer, CharTokenizer])
def test_an_export_knows_how_long_a_text_may_be(tmp_path, make):
    make().save(tmp_path, 16)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == 16 and len(theirs("long " * 9, truncation=True).input_ids) == 16


def test_gpt2_itself():
    """Known ids of the released vocabulary, and 200 kB of this package against the reference."""
    given = os.environ.get("VITWARM_GPT2_BPE")
    if not given:
        pytest.skip("set VITWARM_GPT2_BPE to a folder with GPT-2's vocab.json and merges.txt")
    pytest.importorskip("tiktoken")
    tokenizer = read_tokenizer(given)
    assert tokenizer.vocab_size == 50257 and tokenizer.end == 50256
    assert tokenizer.encode("Hello world") == [15496, 995]
    text = "".join(p.read_text(encoding="utf-8") for p in sorted(Path(__file__).parents[2].glob("vitwarm/**/*.py")))
    text = text[:200_000] + "\u200b naïve 数学 \r\n\t  \x00 𝔘🙂"
    ids = tokenizer.encode(text)
    assert ids == reference(Path(given)).encode(text).ids and tokenizer.decode(ids) == text


# Bytes and characters


@settings(deadline=None)
@given(TEXT)
def test_bytes_are_utf8(text):
    tokenizer = ByteTokenizer()
    assert bytes(tokenizer.encode(text)) == text.encode() and tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_have_the_published_size_and_return_the_text():
    tokenizer = CharTokenizer()
    assert tokenizer.vocab_size == 99 and tokenizer.end is None
    assert tokenizer.specials == {"<pad>": 0, "<unk>": 1, "<bos>": 2, "<sep>": 3}
    text = string.digits + string.ascii_letters + string.punctuation + " "
    assert len(set(text)) == 95 and sorted(tokenizer.encode(text)) == list(range(4, 99))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("é<pad>")[0] == 1 and tokenizer.decode([1]) == "<unk>"
    assert not {0, 1, 2, 3} & set(tokenizer.encode("<pad><unk>"))
    assert CharTokenizer("01", ["<end>"]).end == 0


def test_an_unknown_character_without_unk_and_a_double_one_are_refused():
    with pytest.raises(UserError, match="'c' is not in the tokenizer's alphabet of 2"):
        CharTokenizer("ab", ()).encode("abc")
    with pytest.raises(UserError, match="'a' stands twice"):
        CharTokenizer("aba")


# Files


@pytest.mark.parametrize("kind", ["bpe", "bytes", "chars", "few"])
def test_saved_tokenizers_are_read_by_us_and_by_transformers(tmp_path, kind, folder):
    """And what transformers saves of them is read by us again."""
    tokenizer = {"bpe": lambda: read_tokenizer(folder), "bytes": ByteTokenizer, "chars": CharTokenizer,
                 "few": lambda: CharTokenizer("the in12", ["<end>", "<unk>"])}[kind]()  # fmt: skip
    tokenizer.save(tmp_path)
    text = "the thing's  12\n\né"
    again = read_tokenizer(tmp_path)
    assert type(again) is type(tokenizer) and again.encode(text) == tokenizer.encode(text)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text).input_ids == tokenizer.encode(text) and len(theirs) == tokenizer.vocab_size
    assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert theirs.eos_token_id == tokenizer.end
    theirs.save_pretrained(tmp_path / "theirs")
    back = read_tokenizer(tmp_path / "theirs")
    assert back.encode(text) == tokenizer.encode(text)
    assert (back.vocab_size, back.end) == (tokenizer.vocab_size, tokenizer.end)


def test_names_and_bytes_need_no_library(monkeypatch, tmp_path):
    for name in ("tiktoken", "tiktoken_ext", "tiktoken_ext.openai_public", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(read_tokenizer("bytes"), ByteTokenizer) and isinstance(read_tokenizer("chars"), CharTokenizer)
    for tokenizer in (ByteTokenizer(), CharTokenizer()):
        (tmp_path / type(tokenizer).__name__).mkdir()
        tokenizer.save(tmp_path / type(tokenizer).__name__)
        assert type(read_tokenizer(tmp_path / type(tokenizer).__name__)) is type(tokenizer)
    with pytest.raises(UserError, match=r"pip install vitwarm\[lm\]"):
        BPETokenizer({}, [])


def test_bad_folders_end_in_one_line(tmp_path):
    def refused(reason):
        with pytest.raises(UserError, match=reason) as caught:
            read_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)

    refused("no tokenizer at")
    (tmp_path / "tokenizer.json").write_text("{")
    refused("cannot be read: JSONDecodeError")
    (tmp_path / "tokenizer.json").write_text("[]")
    refused("cannot be read: TypeError")
    unigram = {"model": {"type": "Unigram", "vocab": []}, "pre_tokenizer": {"type": "Metaspace"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(unigram))
    refused("a Unigram tokenizer of another kind")
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    refused("cannot be read: RecursionError")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("a b\n")
    refused("cannot be read: FileNotFoundError")
