"""A recipe under many seeds at once: a run folder for each, as if each had run alone (`stages.ensemble` says how)."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.files import write_text
from vitwarm.run import build, finish, given_text, hand_over, result_of, start_of, warmed_part, warmup_text
from vitwarm.run_folder import LOG, RESULT, check_folder, open_folder, run_folder
from vitwarm.stages import GlueStage
from vitwarm.stages.ensemble import Ensemble
from vitwarm.stages.tokens import TokenStage
from vitwarm.training.meters import count_flops
from vitwarm.training.processes import Processes
from vitwarm.training.signals import stop_signals
from vitwarm.transfer import TransferReport


def run_ensemble(config: Config, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Carry out a recipe of token stages under several seeds; returns what stands in each result.json.

    Each seed may start from a source of its own: `{seed}` in `init_from` and `transfer.sources` stands for the seed.
    Nothing is written before all is done, so a run that was interrupted starts anew. Seconds are the ensemble's divided
    by the number of seeds. Without checkpoints; the folders hold recipe, log (evaluations), export and result.

    Raises:
        UserError: an impossible recipe, or a finished folder in the way.
        Interrupted: a signal.
    """
    if config.resume_from:
        raise UserError("an ensemble of seeds starts anew and goes on from nothing; leave out resume_from")
    for name in ("push", "tensorboard", "wandb"):
        if getattr(config.run, name):
            raise UserError(f"an ensemble of seeds works without run.{name}; run the seeds alone")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configs = [_of_seed(config, seed) for seed in seeds]
    folders = [run_folder(c) for c in configs]
    for each, folder in zip(configs, folders, strict=True):
        check_folder(folder, each)
        if (folder / RESULT).exists():
            raise UserError(f"{folder} holds a finished run; choose another run.dir, or leave its seed out")
    parts = [build(each, world=1, starts=True) for each in configs]
    if not isinstance(parts[0].main, TokenStage | None):
        raise UserError("an ensemble trains stages of tokens; run the seeds of an image recipe one by one")
    if isinstance(parts[0].main, GlueStage):
        raise UserError("an ensemble stacks rows of one length, GLUE's differ; run its seeds one by one")
    stages: list[dict[str, Any]] = [{} for _ in seeds]
    logs: list[list[dict[str, Any]]] = [[] for _ in seeds]
    reports: list[TransferReport | None] = [p.given for p in parts]
    texts = [given_text(each) for each in configs]
    with contextlib.ExitStack() as held:
        stop = held.enter_context(stop_signals())
        if parts[0].warmup is not None:
            _train([p.warmup for p in parts], stages, logs, device, stop)
            reports = [
                hand_over(each, p.main, p.fresh, [warmed_part(each, p.warmup.hand_on(p.warmup.model))])
                for each, p in zip(configs, parts, strict=True)
            ]
            texts = [warmup_text(config, parts[0].warmup)] * len(seeds)
        if parts[0].main is not None:
            _train([p.main for p in parts], stages, logs, device, stop)
        results = []
        for i, (each, folder, part) in enumerate(zip(configs, folders, parts, strict=True)):
            start = start_of(each, texts[i], reports[i])
            result = result_of(each, stages[i], start, part.main, Processes(0, 1, device))
            results.append(result | {"ensemble": list(seeds)})
            open_folder(folder, each, held, steady_steps=0)
            write_text(folder / LOG, "".join(json.dumps(entry) + "\n" for entry in logs[i]))
            finish(each, folder, part.main, part.main.model if part.main else part.fresh, results[i], start)
    return results


def _of_seed(config: Config, seed: int) -> Config:
    """`run.dir` is the folder that holds the seeds' folders; `{seed}` in the path of a source stands for the seed."""

    def named(source: str) -> str:
        return source.replace("{seed}", str(seed))

    return replace(
        config,
        seed=seed,
        run=replace(config.run, dir=str(Path(config.run.dir or "runs") / f"{config.name}-seed{seed}")),
        init_from=config.init_from and named(config.init_from),
        transfer=replace(config.transfer, sources={k: named(v) for k, v in config.transfer.sources.items()}),
    )


def _train(
    stages: list[TokenStage], results: list[dict], logs: list[list[dict]], device: torch.device, stop: list[int]
) -> None:
    stage, began = stages[0], time.perf_counter()
    flops = [_flops(s) for s in stages]
    newest: list[dict[str, float]] = []

    def report(step: int, metrics: list[dict[str, float]]) -> None:
        newest[:] = metrics
        for log, found in zip(logs, metrics, strict=True):
            log.append({"event": "eval", "stage": stage.name, "step": step, **found})
        shown = {n: [f"{m[n]:.3f}" for m in metrics] for n in metrics[0] if n != "count"}
        print(
            f"{stage.name} {step}/{stage.steps} " + "; ".join(f"{n} {' '.join(v)}" for n, v in shown.items()),
            flush=True,
        )

    Ensemble(stages, device, stop).train(report)
    seconds = (time.perf_counter() - began) / len(stages)
    for result, metrics, each in zip(results, newest, flops, strict=True):
        result[stage.name] = {
            "steps": stage.steps,
            "samples": stage.samples,
            "tokens": stage.samples * stage.tokens_per_sample,
            "seconds": seconds,
            "flops": stage.samples * each,
            "metrics": metrics,
            "best": None,
        }


def _flops(stage: TokenStage) -> float:
    """Of a training step, for each row."""
    example, rows = stage.example()
    return count_flops(lambda: stage.losses(stage.model.eval(), example, 0)) / rows
