"""What ten seeds at once cost beside one: processor seconds of a step, plain and stacked, over batch sizes."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitwarm.config import AlgorithmicConfig, Config, DecoderConfig, ModelConfig, TrainConfig
from vitwarm.files import write_text
from vitwarm.stages.algorithmic import AlgorithmicStage
from vitwarm.stages.ensemble import EnsembleStage
from vitwarm.stages.registry import Setup
from vitwarm.training.protocol import Stage


def main(options: list[str]) -> int:
    """Measure, print a table, and write it where asked; the exit code."""
    parser = argparse.ArgumentParser(prog="tools/benchmark.py ensemble", description=__doc__)
    parser.add_argument("--task", default="addition", help="algorithmic task")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="rows a step and seed")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    given = parser.parse_args(options)
    torch.set_num_threads(1)
    rows = []
    print("| batch | one seed, ms | all seeds, ms | all over one | speed-up |\n|---|---|---|---|---|")
    for batch in given.batches:
        stages = [_stage(given.task, batch, seed) for seed in range(given.seeds)]
        one = _seconds(_step(stages[0]), given.seconds)
        every = _seconds(_step(EnsembleStage(stages, range(given.seeds))), given.seconds)
        row = {"batch": batch, "one_ms": 1e3 * one, "all_ms": 1e3 * every, "ratio": every / one}
        rows.append(row | {"speed_up": given.seeds * one / every})
        print("| {batch} | {one_ms:.2f} | {all_ms:.2f} | {ratio:.2f} | {speed_up:.2f} |".format(**rows[-1]), flush=True)
    if given.json:
        report = {"task": given.task, "seeds": given.seeds, "torch": torch.__version__, "rows": rows}
        write_text(given.json, json.dumps(report, indent=2) + "\n")
    return 0


def _stage(task: str, batch: int, seed: int) -> AlgorithmicStage:
    model = ModelConfig(decoder=DecoderConfig(size="2_4_16", tied=False))
    config = Config(model=model, algorithmic=AlgorithmicConfig(task=task), train=TrainConfig(global_batch=batch))
    stage = AlgorithmicStage(replace(config, seed=seed), Setup())
    stage.bind(stage.fresh_model())
    return stage


def _step(stage: Stage[Any]) -> Callable[[], None]:
    optim, model = stage.optim, stage.start_model()
    optimizer = torch.optim.AdamW(stage.parameter_groups(), lr=optim.lr, betas=tuple(optim.betas), fused=True)
    batches = stage.batches(0, 0, 1, optim.global_batch)
    batch = next(batches)
    batches.close()

    def step() -> None:
        (stage.losses(model, batch, 0).loss / batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], object], seconds: float) -> float:
    """Processor seconds of a step: the median of many, so that other work on the machine counts little."""
    times = []
    for _ in range(3):
        step()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return sorted(times)[len(times) // 2]
