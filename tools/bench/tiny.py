"""A training step of tiny decoders three ways: PyTorch over all places, PyTorch as it runs now, compiled code.

A step is data, loss, gradients, clipping and AdamW, as the loop has them. Times are those of the processor, of all
threads of the process. The ways alternate, and the medians are over the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import vitwarm.trunk.decoder
from bench.machine import processor
from vitwarm.assembly import assemble
from vitwarm.files import write_text
from vitwarm.recipe import load_recipe
from vitwarm.stages.batches import TokenBatch
from vitwarm.stages.tokens import TokenStage
from vitwarm.training.optimizers import make_optimizer
from vitwarm.trunk import Decoder
from vitwarm.trunk.decoder_block import gather
from vitwarm.trunk.tiny import obstacle, tiny_loss
from vitwarm.trunk.token_loss import token_loss

HAYSTACK = ["recipe=haystack_default", "train.clip_grad=1.0"]
DYCK = ["recipe=haystack_dyck", "warmup.clip_grad=1.0"]
CASES = {
    "haystack, 1,000 sequences": HAYSTACK,
    "addition, 1,000 sequences": ["recipe=addition_default", "train.clip_grad=1.0"],
    "k-Dyck, 64 sequences of 128": DYCK,
    "the same, tied, dropout 0.1": [*DYCK, "model.decoder.tied=true", "model.decoder.dropout=0.1"],
    "haystack, width 8": [*HAYSTACK, "model.decoder.size=2_2_8"],
    "haystack, width 32": [*HAYSTACK, "model.decoder.size=2_4_32"],
    "haystack, width 64": [*HAYSTACK, "model.decoder.size=2_4_64"],
    "haystack, 4 layers": [*HAYSTACK, "model.decoder.size=4_4_16"],
}


def main(options: list[str]) -> int:
    """Measure, print a table, and write it where asked; the exit code."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.py tiny", description=__doc__)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="numbers of the cases")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(options)
    torch.set_num_threads(1)
    names = list(CASES)
    rows = []
    print("| step | all places, ms | PyTorch, ms | compiled, ms | speed-up of PyTorch | of compiled |")
    print("|---|---|---|---|---|---|")
    for case in given.cases:
        ms = {way: 1e3 * statistics.median(times) for way, times in measure(CASES[names[case]], given.rounds).items()}
        ratios = {f"{way}_speed_up": ms["all_places"] / ms[way] for way in ("pytorch", "compiled")}
        rows.append({"step": names[case], "options": CASES[names[case]], "ms": ms} | ratios)
        print(
            f"| {names[case]} | {ms['all_places']:.0f} | {ms['pytorch']:.0f} | {ms['compiled']:.1f} | "
            f"{ratios['pytorch_speed_up']:.1f} | {ratios['compiled_speed_up']:.1f} |",
            flush=True,
        )
    if given.json:
        machine = {"processor": processor(), "torch": torch.__version__, "rounds": given.rounds}
        write_text(given.json, json.dumps(machine | {"rows": rows}, indent=2) + "\n")
    return 0


def measure(options: list[str], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of the steps, by way."""
    steps = {way: step_of(options, way) for way in ("all_places", "pytorch", "compiled")}
    times: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(rounds + 2):
        for way, step in steps.items():
            began = time.process_time()
            step()
            if number >= 2:  # the first ones warm up
                times[way].append(time.process_time() - began)
    return times


def step_of(options: list[str], way: str) -> Callable[[], None]:
    """A function that takes the next step of the recipe's warm-up, or of its main stage where it has none."""
    experiment = assemble(load_recipe(options), 1)
    stage: Any = experiment.warmup or experiment.main
    assert isinstance(stage, TokenStage) and isinstance(stage.model, Decoder)
    model, optim = stage.model.train(), stage.optim
    if way == "compiled" and (why := obstacle(model)):
        raise SystemExit(f"tools/benchmark.py: no compiled code: {why}")
    optimizer = make_optimizer(optim, stage.parameter_groups(), model)
    ways: dict[str, Callable[..., Any]] = {"all_places": all_places, "pytorch": lambda *_: None, "compiled": tiny_loss}

    def batches() -> Iterator[TokenBatch]:
        start = 0
        while True:
            yield stage.batch("train", start, start + optim.global_batch)
            start += optim.global_batch

    data = batches()

    def step() -> None:
        batch = next(data)
        vitwarm.trunk.decoder.tiny_loss = ways[way]
        (stage.losses(model, batch, 0).loss / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def all_places(model: Decoder, tokens: Any, targets: Any, weights: Any, positions: Any) -> Any:
    """The loss as it was: nothing is sorted, every block computes all places."""
    x = model.features(model.embed(tokens))
    x = x if positions is None else gather(x, positions)
    return token_loss(x, model.head_weight, targets, weights)
