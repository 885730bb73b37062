"""GPT-2 as Hugging Face keeps it: weights into our decoder, and a decoder into a folder that `transformers` loads.

`transformers` keeps GPT-2's matrices as (in, out), timm as (out, in); the fused query, key and value are in the same
order. Only safetensors and JSON are read and written.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitwarm.data.tokenizers import Tokenizer
from vitwarm.errors import UserError
from vitwarm.exports.arguments import difference
from vitwarm.exports.card import model_card
from vitwarm.exports.layout import CARD, CONFIG, GENERATION, PROVENANCE, WEIGHTS, require_replaceable
from vitwarm.exports.weights import find_weights, middle_runs_of, read_weights
from vitwarm.files import expanded, whole_folder
from vitwarm.reading import read_json
from vitwarm.trunk import Classifier, Decoder, DecoderSize, build_decoder, require_data, trunk_facts
from vitwarm.trunk.decoder import LAYER_NORM_EPS

_IN_BLOCK = {  # GPT-2's name -> ours
    "ln_1": "norm1",
    "attn.c_attn": "attn.qkv",
    "attn.c_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {"wte": "token_embed", "wpe": "pos_embed", "ln_f": "norm", "lm_head": "head", "score": "score"}
_BACK = {ours: theirs for theirs, ours in (_IN_BLOCK | _OUTSIDE).items()}
_TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # matrices that lie the other way
_MASKS = (".attn.bias", ".attn.masked_bias")  # older files hold the causal mask as well
_NAME = re.compile(r"(?:transformer\.)?(?:h\.(?P<block>\d+)\.)?(?P<module>.+)\.(?P<kind>weight|bias)")

_TEXT_IDS = ("bos_token_id", "eos_token_id")
_RATES = ("attn_pdrop", "embd_pdrop", "resid_pdrop")  # of dropout; our decoder has one for all
_FIXED = {  # what a GPT-2 configuration may say; the first value is what we write
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (LAYER_NORM_EPS,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def is_gpt2(names: Iterable[str]) -> bool:
    """Whether tensors bear GPT-2's names."""
    return any(n.endswith("attn.c_attn.weight") for n in names)


def is_gpt2_model(model: nn.Module) -> bool:
    """Whether a model is a language model of transformers with GPT-2's blocks."""
    return type(model).__name__ == "GPT2LMHeadModel"


def from_gpt2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's tensors under the decoder's names and in its layout; masks are left out.

    Raises:
        UserError: a tensor that GPT-2 does not have.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(_MASKS)}
    return {decoder_name(n): t.T.contiguous() if n.endswith(_TURNED) else t for n, t in kept.items()}


def to_gpt2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors as `GPT2LMHeadModel` names and lays them out, a classifier's as its sibling does."""
    theirs = {gpt2_name(name): tensor.detach().cpu() for name, tensor in tensors.items()}
    return {n: (t.T if n.endswith(_TURNED) else t).contiguous() for n, t in theirs.items()}


def decoder_name(name: str) -> str:
    """What the decoder calls a tensor of GPT-2.

    Raises:
        UserError: a tensor that GPT-2 does not have.
    """
    if parts := _NAME.fullmatch(name):
        block, module, kind = parts["block"], parts["module"], parts["kind"]
        if block is None and module in _OUTSIDE:
            return f"{_OUTSIDE[module]}.{kind}"
        if block is not None and module in _IN_BLOCK:
            return f"blocks.{block}.{_IN_BLOCK[module]}.{kind}"
    raise UserError(f"GPT-2 has no tensor {name}; this is another model's file")


def gpt2_name(name: str) -> str:
    """What `GPT2LMHeadModel`, or its sibling with classes, calls a tensor of the decoder."""
    module, _, kind = name.rpartition(".")
    if parts := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        return f"transformer.h.{parts[1]}.{_BACK[parts[2]]}.{kind}"
    return f"{'' if module in ('head', 'score') else 'transformer.'}{_BACK[module]}.{kind}"


@contextmanager
def as_trunk(model: nn.Module) -> Iterator[nn.Module]:
    """The model itself, or a `GPT2LMHeadModel` as our decoder on the same device; what is done to that is then its own.

    After an error it keeps its weights.

    Args:
        model: without wrappers.

    Raises:
        UserError: a GPT-2 without values, or of another make than our decoder.
    """
    if not is_gpt2_model(model):
        yield model
        return
    decoder = decoder_of(model)
    yield decoder
    values = model.state_dict()
    with torch.no_grad():
        for name, tensor in to_gpt2(decoder.state_dict()).items():
            values[name].copy_(tensor)


def decoder_of(model: nn.Module) -> Decoder:
    """Our decoder on the same device, with copies of the weights of a `GPT2LMHeadModel`.

    Raises:
        UserError: a GPT-2 without values, or of another make than our decoder.
    """
    own: Any = require_data(model)
    require_as_configured(own)
    config = check_gpt2(own.config.to_dict(), "the model's configuration")
    size = "{depth}_{heads}_{width}".format(**gpt2_facts(config))
    tied = bool(config.get("tie_word_embeddings", True))
    sizes = config["vocab_size"], config["n_positions"]
    decoder = build_decoder(size, *sizes, "gpt2", seed=0, dropout=config["resid_pdrop"], tied=tied)
    tensors = from_gpt2(own.state_dict())
    # Each tensor in its own type: what that cannot hold is refused, and what is not changed is not rounded.
    decoder.load_state_dict({name: tensors[name].clone() for name in decoder.state_dict()}, assign=True)
    return decoder.to(next(own.parameters()).device)


def require_as_configured(model: Any) -> None:
    """Refuse a model of transformers that was changed after its configuration, which a folder describes it by.

    Raises:
        UserError: other blocks, layers, sizes or tensors.
    """
    with torch.device("meta"):
        twin = type(model)(model.config)
    if differs := difference(model, twin):
        raise UserError(
            f"the {type(model).__name__} is not what its configuration makes: {differs}; undo that, or change both"
        )


def require_one_rate(model: Any) -> None:
    """Refuse to take the dropout of a `GPT2LMHeadModel` for that of our decoder, which has one rate.

    Raises:
        UserError: its configuration has several.
    """
    rates = {name: getattr(model.config, name) for name in _RATES}
    if len(set(rates.values())) > 1:
        said = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        raise UserError(f"the GPT-2 has several rates of dropout ({said}), the decoder one; give dropout=RATE")


def gpt2_facts(config: dict[str, Any]) -> dict[str, str | int]:
    """`trunk_facts` of the model that a GPT-2 configuration describes."""
    names = {"width": "n_embd", "depth": "n_layer", "heads": "n_head"}
    return {"block": "Block", **{fact: config[name] for fact, name in names.items()}}


def read_gpt2(folder: str | Path, *, dropout: float = 0.0, grad_checkpointing: bool = False) -> Decoder:
    """A decoder with the weights of a GPT-2 folder of `transformers`, in fp32; a core runs its middle block as trained.

    Args:
        folder: holds `config.json` and `model.safetensors`, or an index of several such files.
        dropout, grad_checkpointing: see `Decoder`; settings of training, so not read from the folder.

    Raises:
        UserError: no such folder, another kind of model, or files that do not belong together.
    """
    folder = expanded(folder)
    config = check_gpt2(_read_config(folder / CONFIG), str(folder / CONFIG))
    if (file := find_weights(folder)) is None:
        raise UserError(f"no {WEIGHTS} in {folder}; nothing else is read (save it in transformers with its defaults)")
    tensors = from_gpt2(read_weights(file))
    if "score.weight" in tensors:
        raise UserError(f"{folder} holds a classifier, which writes no text; give the folder of a language model")
    facts = gpt2_facts(config)
    size = DecoderSize.parse(f"{facts['depth']}_{facts['heads']}_{facts['width']}")
    tied = config.get("tie_word_embeddings", True)
    with torch.device("meta"):
        decoder = Decoder(
            size,
            config["vocab_size"],
            config["n_positions"],
            dropout=dropout,
            tied=tied,
            grad_checkpointing=grad_checkpointing,
            middle_runs=middle_runs_of(folder),
        )
    if tied:
        tensors.pop("head.weight", None)  # the token table again
    expected = {n: t.shape for n, t in decoder.state_dict().items()}
    wrong = [n for n in sorted({*expected, *tensors}) if n not in tensors or expected.get(n) != tensors[n].shape]
    if wrong:
        raise UserError(f"{file} does not fit its {CONFIG}: {len(wrong)} tensors differ, first {wrong[0]}")
    decoder.load_state_dict({n: t.float() for n, t in tensors.items()}, assign=True)
    decoder.text_ids = {name: config.get(name) for name in _TEXT_IDS}
    return decoder


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}; give a folder of transformers' GPT-2")
    return read_json(path)


def check_gpt2(config: dict[str, Any], path: str) -> dict[str, Any]:
    """A configuration of transformers, if our decoder computes what it describes.

    Args:
        config: the content of config.json.
        path: what to call it in messages.

    Raises:
        UserError: another kind of model, or a GPT-2 of another make.
    """
    if (kind := config.get("model_type")) != "gpt2":
        raise UserError(f"{path} describes a model of type {kind!r}; only gpt2 can be read")
    sizes = [k for k in ("n_embd", "n_layer", "n_head", "vocab_size", "n_positions") if not _whole(config.get(k))]
    if sizes:
        raise UserError(f"{path}: {sizes[0]} is {config.get(sizes[0])!r}, not a whole number above 0")
    if (inner := config.get("n_inner")) not in (None, 4 * config["n_embd"]):
        raise UserError(f"{path}: n_inner is {inner!r}; the decoder's MLP has 4 widths, {4 * config['n_embd']}")
    for name, known in _FIXED.items():
        if config.get(name, known[0]) not in known:
            raise UserError(f"{path}: {name} is {config[name]!r}; the decoder has {known[0]!r}")
    return config


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def export_gpt2(
    decoder: Decoder,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a folder for `transformers`; it appears whole or not at all.

    A language model is read by its `AutoModelForCausalLM`, a classifier by its `AutoModelForSequenceClassification`.

    Args:
        decoder: the model; its logits and those of the folder in `transformers` agree, unless its middle block runs
            several times, which `transformers` cannot do: then the folder is a core to expand, and says so.
        folder: target; an older export there is replaced.
        tokenizer: its files go along, and its end-of-text id into the configuration.
        provenance: JSON-able facts for `vitwarm.json` and the model card.

    Raises:
        UserError: a tokenizer with more ids than the decoder; a folder that holds anything else than an older export.
        OSError: full disk, no permission.
    """
    # GPT-2 begins a text with the token that ends one
    ends: dict[str, Any] = dict.fromkeys(_TEXT_IDS, tokenizer.end if tokenizer else None)
    ends |= {} if tokenizer else decoder.text_ids
    if tokenizer and tokenizer.vocab_size > decoder.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, the decoder {decoder.vocab_size}")
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.n_positions,
        "n_embd": decoder.size.width,
        "n_layer": decoder.size.depth,
        "n_head": decoder.size.heads,
        "n_inner": None,
        **{name: known[0] for name, known in _FIXED.items()},
        **dict.fromkeys(_RATES, decoder.dropout),
        "initializer_range": 0.02,
        "tie_word_embeddings": decoder.tied,
        **ends,
        "dtype": "float32",
    }
    require_replaceable(folder := expanded(folder))
    record = {**(provenance or {}), "trunk": trunk_facts(decoder)}
    if decoder.middle_runs > 1:
        record["middle_runs"] = decoder.middle_runs
    files: dict[str, dict[str, Any]] = {CONFIG: config, PROVENANCE: record}
    if isinstance(decoder, Classifier):
        config |= {
            "architectures": ["GPT2ForSequenceClassification"],
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(decoder.labels)),
            "label2id": {label: i for i, label in enumerate(decoder.labels)},
            "pad_token_id": decoder.pad,
        }
    else:
        files[GENERATION] = dict(ends)
    with whole_folder(folder) as aside:
        save_file(to_gpt2(decoder.state_dict()), aside / WEIGHTS, metadata={"format": "pt"})
        for name, content in files.items():
            (aside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        card = model_card(f"GPT-2 {decoder.size}", record, config["architectures"][0])
        (aside / CARD).write_text(card, encoding="utf-8")
        if tokenizer:
            tokenizer.save(aside, decoder.n_positions)
