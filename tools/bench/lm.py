"""Speed of a training step of the decoder, against a bare PyTorch loop over `transformers`' GPT-2 and over nanoGPT's.

    python tools/benchmark.py lm size=12_12_768 length=1024 batch=8 [vocab=50257] [max_logits=N] [steps=10] [rounds=7]
        [precision=bf16] [compile=true] [--nanogpt FOLDER] [--json FILE]

| arm | what a step is |
|---|---|
| ours | that of our loop: loss in chunks, checks, sums, log lines |
| one_piece | the same with all logits at once |
| transformers | `GPT2LMHeadModel`, cross-entropy, fused AdamW; compiled as a whole |
| nanogpt | likewise `GPT` of model.py in FOLDER, a checkout of karpathy/nanoGPT; vocabulary padded to 64s, as there |

All have one size, batch, precision and optimiser. The arms alternate in one process; ratios are medians over the
rounds, with quartiles. Text is not read: ours takes its batch from the host, the others have it on the device.
Utilisation is measured against the device's own rate on one large matrix product, and counts attention in full, as if
it were not causal. `max_logits` is the size of a chunk of the loss (`vitwarm.trunk.token_loss`); a batch that fits one
is computed in one piece.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.train import (
    CHOICES,
    FOREVER,
    Arm,
    Ours,
    alternate,
    benchmark_context,
    command,
    figures,
    matmul_rate,
    measured_on,
    read_options,
)
from vitwarm.amounts import Amount
from vitwarm.budget.speed import decoder_speed
from vitwarm.config import RunConfig, TrainConfig
from vitwarm.errors import UserError
from vitwarm.keys import keyed_rng
from vitwarm.stages.batches import TokenBatch
from vitwarm.stages.tokens import Split, TokenStage, next_token_batch, next_token_losses
from vitwarm.training.batch import Sums
from vitwarm.training.processes import start_accelerator
from vitwarm.trunk import Decoder, DecoderSize, build_decoder
from vitwarm.trunk.token_loss import MAX_LOGITS

DEFAULTS = {"size": "12_12_768", "length": 1024, "batch": 8, "vocab": 50257, "max_logits": MAX_LOGITS}
DEFAULTS |= {"steps": 10, "rounds": 7, "precision": "bf16", "compile": "true"}


class ReadyTokens(TokenStage[TokenBatch]):
    """Next-token prediction with one batch, ready on the host, again and again.

    Args:
        decoder: what is trained.
        options: keys of `DEFAULTS`.
    """

    name = "text"

    model: Decoder

    def __init__(self, decoder: Decoder, options: dict[str, Any]):
        optim = TrainConfig(global_batch=options["batch"], precision=options["precision"], compile=options["compile"])
        optim.lr, optim.lr_warmup = 1e-4, "0"
        super().__init__("train", optim, 1, FOREVER)
        self.model, self.tokens_per_sample = decoder, options["length"]
        self.set_lengths(Amount.parse(f"{FOREVER} steps", "budget"), options["length"])
        self.ids = random_ids(options)

    def batch(self, split: Split, start: int, stop: int) -> TokenBatch:
        ids = self.ids[: stop - start]
        return next_token_batch(ids, np.ones(ids.shape, dtype=bool))

    def losses(self, model: Callable[..., Any], batch: TokenBatch, step: int) -> Sums:
        return next_token_losses(model, batch)

    def blocks(self) -> list[nn.Module]:
        return self.model.compile_parts()

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[TokenBatch, None, None]:
        batch = self.batch("train", 0, device_batch)
        if torch.cuda.is_available():
            batch = batch.map(Tensor.pin_memory)
        while True:
            yield batch


class Rival:
    """What anyone would write: the model compiled with its loss, fused AdamW, the batch on the device.

    Args:
        model: called as `loss(model, tokens, targets)`.
        loss: mean cross-entropy.
        options: keys of `DEFAULTS`.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], options: dict[str, Any], device: torch.device):
        self.model = model.to(device).train()
        decayed, free = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
        optim = TrainConfig()
        groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=tuple(optim.betas), eps=optim.eps, fused=True)
        ids = torch.from_numpy(random_ids(options)).to(device)
        self.tokens, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        self.loss = torch.compile(loss) if options["compile"] else loss
        self.bf16, self.device = options["precision"] == "bf16", device

    def step(self) -> None:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.model, self.tokens, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def random_ids(options: dict[str, Any]) -> np.ndarray:
    """(B, N + 1) ids, the same for every arm."""
    shape = (options["batch"], options["length"] + 1)
    return keyed_rng(0, "benchmark").integers(0, options["vocab"], shape)


def transformers_gpt2(options: dict[str, Any]) -> nn.Module:
    """`GPT2LMHeadModel` of the size, without dropout."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise UserError("the comparison needs transformers: pip install vitwarm[lm]") from error
    size = DecoderSize.parse(options["size"])
    config = GPT2Config(
        vocab_size=options["vocab"],
        n_positions=options["length"],
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    return GPT2LMHeadModel(config)


def transformers_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).logits.flatten(0, 1), targets.flatten())


def nanogpt(folder: Path, options: dict[str, Any]) -> nn.Module:
    """`GPT` of a checkout's model.py, without dropout.

    Raises:
        UserError: no such file, or not nanoGPT's.
    """
    file = folder / "model.py"
    if not file.is_file():
        raise UserError(f"no model.py in {folder}; --nanogpt is a checkout of karpathy/nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = DecoderSize.parse(options["size"])
    try:
        config = module.GPTConfig(
            block_size=options["length"],
            vocab_size=-(-options["vocab"] // 64) * 64,
            n_layer=size.depth,
            n_head=size.heads,
            n_embd=size.width,
            dropout=0.0,
            bias=True,
        )
        return module.GPT(config)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{file} is not the model.py of karpathy/nanoGPT ({error})") from error


def nanogpt_loss(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return model(tokens, targets)[1]


def measure(options: dict[str, Any], nanogpt_folder: Path | None) -> dict[str, Any]:
    """Alternate the arms and report each.

    Args:
        options: keys of `DEFAULTS`.
        nanogpt_folder: a checkout; None leaves the arm out.

    Returns:
        `arms`: name -> step_ms, samples_per_s, tokens_per_s, tflops, mfu_pct, memory_gib (CUDA only); `ratios`: rival
        -> our speed over its own, median and quartiles over the rounds; and what it was measured on.

    Raises:
        UserError: an impossible size, no transformers, no nanoGPT in the folder.
    """
    accelerator = start_accelerator()
    device = accelerator.device
    sizes = options["size"], options["vocab"], options["length"]

    def ours(max_logits: int) -> Ours:
        decoder = build_decoder(*sizes, "text", seed=0)
        decoder.max_logits = max_logits
        run = RunConfig(checkpoint_every=FOREVER)
        return Ours(ReadyTokens(decoder, options), benchmark_context(accelerator, Path(folder), run))

    builders: dict[str, Callable[[], Arm]] = {
        "ours": lambda: ours(options["max_logits"]),
        "one_piece": lambda: ours(options["batch"] * options["length"] * options["vocab"] * 2),
        "transformers": lambda: Rival(transformers_gpt2(options), transformers_loss, options, device),
    }
    if nanogpt_folder is not None:
        theirs = nanogpt(nanogpt_folder, options)  # refused before anything takes its time
        builders["nanogpt"] = lambda: Rival(theirs, nanogpt_loss, options, device)
    with tempfile.TemporaryDirectory() as folder:
        arms, rounds, memory = alternate(builders, options["steps"], options["rounds"], device)
    rate = matmul_rate(device, torch.bfloat16 if options["precision"] == "bf16" else torch.float32)
    result: dict[str, Any] = {"options": options}
    result["arms"] = {
        name: figures([times[name] for times in rounds], options["batch"], arms["ours"], rate, memory[name] or None)
        for name in arms
    }
    result["ratios"] = {
        name: quartiles([times[name] / times["ours"] for times in rounds]) for name in arms if name != "ours"
    }
    return result | measured_on(device, rate)


def quartiles(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return {"median": median, "low": low, "high": high}


def main(arguments: list[str]) -> int:
    """The command."""

    def measured(arguments: list[str]) -> tuple[dict[str, Any], Path | None]:
        options, paths = read_options(arguments, DEFAULTS, CHOICES, ("json", "nanogpt"))
        DecoderSize.parse(options["size"])
        return measure(options, paths.get("nanogpt")), paths.get("json")

    return command(arguments, __doc__, measured, decoder_speed)
