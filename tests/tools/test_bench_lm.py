"""The decoder's benchmark: every arm does the same work, its arithmetic holds, what is missing is said in one line."""

import json

import pytest
import torch
from bench.lm import (
    CHOICES,
    DEFAULTS,
    ReadyTokens,
    Rival,
    main,
    transformers_gpt2,
    transformers_loss,
)
from bench.train import Ours, benchmark_context, read_options

from vitwarm.config import RunConfig
from vitwarm.exports.gpt2 import to_gpt2
from vitwarm.training.processes import start_accelerator
from vitwarm.trunk import build_decoder

pytest.importorskip("transformers")

TINY = ["size=2_2_16", "length=12", "batch=4", "vocab=131", "max_logits=2096", "steps=1", "rounds=2"]
TINY += ["precision=fp32", "compile=false"]
STAND_IN = """
import dataclasses, torch
@dataclasses.dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert (config.vocab_size, config.block_size, config.n_layer, config.n_head) == (192, 12, 2, 2)
        self.table = torch.nn.Embedding(config.vocab_size, config.n_embd)
    def forward(self, tokens, targets):
        logits = self.table(tokens) @ self.table.weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_the_arms_and_their_arithmetic(tmp_path, capsys):
    (tmp_path / "model.py").write_text(STAND_IN)
    file = tmp_path / "lm.json"
    assert main([*TINY, "--nanogpt", str(tmp_path), "--json", str(file)]) == 0
    shown, result = capsys.readouterr().out, json.loads(file.read_text())
    assert list(result["arms"]) == ["ours", "one_piece", "transformers", "nanogpt"] and "left out" not in shown
    for name, arm in result["arms"].items():
        assert f"| {name} |" in shown
        assert arm["samples_per_s"] == pytest.approx(4e3 / arm["step_ms"])
        assert arm["tokens_per_s"] == pytest.approx(12 * arm["samples_per_s"])
        assert arm["mfu_pct"] == pytest.approx(100 * arm["tflops"] / result["matmul_tflops"])
        forward = 2 * 12 * (2 * 12 * 16**2 + 16 * 131) + 2 * 2 * 2 * 12**2 * 16  # blocks and head; attention, in full
        assert 1e12 * arm["tflops"] / arm["samples_per_s"] == pytest.approx(3 * forward)
    assert set(result["ratios"]) == {"one_piece", "transformers", "nanogpt"}
    for ratio in result["ratios"].values():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]


@pytest.mark.parametrize("max_logits", [2096, 10**6])
def test_ours_and_transformers_take_the_same_steps(tmp_path, max_logits):
    """Same weights, three steps of each: the same weights again, so batch, loss, decay and rate are the same."""
    options, _ = read_options(TINY, DEFAULTS, CHOICES)
    decoder = build_decoder("2_2_16", 131, 12, "text", seed=0)
    decoder.max_logits = max_logits
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    context = benchmark_context(start_accelerator(), tmp_path, RunConfig())
    theirs = transformers_gpt2(options)
    names = theirs.load_state_dict(to_gpt2(decoder.state_dict()), strict=False)
    assert names.missing_keys in ([], ["lm_head.weight"]) and not names.unexpected_keys
    before = {n: t.clone() for n, t in to_gpt2(decoder.state_dict()).items()}
    arms = Ours(ReadyTokens(decoder, options), context), Rival(theirs, transformers_loss, options, torch.device("cpu"))
    for arm in arms:
        for _ in range(3):
            arm.step()
    found = theirs.state_dict()
    for name, tensor in to_gpt2(decoder.state_dict()).items():
        sure = torch.ones_like(tensor, dtype=torch.bool)
        if name.endswith("c_attn.bias"):
            sure[16:32] = False  # a bias of all keys changes nothing; Adam makes steps of its rounding errors
        torch.testing.assert_close(tensor[sure], found[name][sure], atol=2e-6, rtol=1e-4)
        assert (tensor - before[name]).abs().max() > 1e-4, name


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["size=2_3_16"], "3 heads do not divide"),
        (["model=x"], "unknown model"),
        (["length=0"], "length is a whole number"),
        (["--nanogpt"], "needs a path"),
        (["--nanogpt", "nowhere"], "no model.py in nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments, why, capsys):
    assert main([*TINY, *arguments]) == 2
    said = capsys.readouterr().err
    assert why in said and len(said.splitlines()) == 1


def test_another_model_is_refused_and_none_is_said(tmp_path, capsys):
    (tmp_path / "model.py").write_text("class GPT: pass")
    assert main([*TINY, "--nanogpt", str(tmp_path)]) == 2
    assert "is not the model.py of karpathy/nanoGPT" in capsys.readouterr().err
    assert main(TINY) == 0
    assert "nanoGPT left out: no --nanogpt FOLDER" in capsys.readouterr().out
