"""What a recipe is made of: its main stage, the model, the warm-up, the weights that were given. Decided here alone."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitwarm.checks import MAIN_STAGES, main_stage, rule_of, starts_from_given, warms_up
from vitwarm.config import Config
from vitwarm.errors import UserError
from vitwarm.exports.opening import lineage, preprocessing, preprocessing_beside
from vitwarm.exports.weights import sha256_of_weights
from vitwarm.parallel import default_workers
from vitwarm.selection import Selection
from vitwarm.stages import RuleStage, make_warmup, warmup_decoder
from vitwarm.stages.images import ImagesStage
from vitwarm.stages.registry import MainStage, Setup, make_main
from vitwarm.training.loop import device_batch_size
from vitwarm.training.optimizers import check_optimizer
from vitwarm.training.param_groups import freeze
from vitwarm.transfer import Part, TransferReport, canonical, merge, read_source
from vitwarm.transfer.perturb import describe
from vitwarm.transfer.warm_start import fitted
from vitwarm.trunk import (
    Decoder,
    build_model,
    configured_decoder,
    initialise,
    rehearse_images,
    require_memory,
    weight_bytes,
)
from vitwarm.trunk.families import copy_of
from vitwarm.trunk.initialisations import find_initialisation

SMOKE_STEPS, SMOKE_SAMPLES = 20, 64  # of a stage, and of an evaluation, that only tries a recipe out


@dataclass
class Experiment:
    """An assembled recipe: everything that can be refused was refused, and nothing is written yet.

    Attributes:
        config: the recipe.
        main: the stage that the run is for, bound to `model`; None when the run is a warm-up alone.
        model: timm model or decoder that the main stage starts from; holds the weights that were given already.
        warmup: None when the budget is nothing, or given weights take its place.
        given: what `init_from` or `transfer.sources` brought in; None without them.
        warnings: what may be wrong with data and given weights, a line each.
        sources: as the recipe names them -> file that was read, or `timm:NAME`.
    """

    config: Config
    main: MainStage[Any] | None
    model: nn.Module
    warmup: RuleStage[Any] | None
    given: TransferReport | None
    warnings: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def stages(self) -> list[RuleStage[Any] | MainStage[Any]]:
        """The stages that train, in order."""
        return [stage for stage in (self.warmup, self.main) if stage is not None]

    def transfer(self, parts: list[Part]) -> TransferReport:
        """Copy the sources' groups, and the embeddings that the main stage adopts, into the model.

        Raises:
            UserError: they do not fit.
        """
        config = self.config
        report = self._merge(self.model, parts)
        if self.main is not None and len(parts) == 1 and not config.transfer.sources:  # which give their groups alone
            self.main.adopt(self.model, parts[0].tensors, report)
        return report

    def _merge(self, model: nn.Module, parts: list[Part]) -> TransferReport:
        config = self.config
        if self.main is None and isinstance(model, Decoder):  # a warm-up alone makes a language model of its rule
            everything = ["trunk", "embedding", "head"]
            parts = [replace(p, groups=everything) if "token_embed.weight" in p.tensors else p for p in parts]
        return merge(model, parts, config.transfer.controls, seed=config.seed)

    def rehearse_warmup(self) -> None:
        """Bring the warm-up's fresh weights into a copy of the model: what cannot be transferred must not be trained.

        Raises:
            UserError: as `transfer_warmup` would.
        """
        assert self.warmup is not None
        tensors = self.warmup.trained_tensors(self.warmup.model)
        self._merge(copy_of(self.model), [Part(self.config.transfer.groups, tensors, "the warm-up")])

    def transfer_warmup(self, trained: nn.Module) -> tuple[dict[str, Any], TransferReport]:
        """Bring the trained warm-up into the model; returns `start_record` of it, and what was copied."""
        assert self.warmup is not None
        tensors = self.warmup.trained_tensors(trained)
        report = self.transfer([Part(self.config.transfer.groups, tensors, "the warm-up")])
        text = f"warm-up of {self.warmup.steps} steps on {self.config.warmup.rule['name']}"
        return start_record(self.config, text, report), report

    def given_record(self) -> dict[str, Any]:
        """`start_record` of a main stage without a warm-up."""
        sources = self.config.transfer.sources
        several = ", ".join(f"{groups} of {source}" for groups, source in sources.items())
        text = f"weights of {self.config.init_from}" if self.config.init_from else several or "fresh weights"
        record = start_record(self.config, text, self.given, self.sources.values())
        # A path alone would not tell two versions of a file apart.
        digests = {n: sha256_of_weights(Path(f)) for n, f in self.sources.items() if not f.startswith("timm:")}
        return record | ({"source_sha256": digests} if digests else {})


def start_record(
    config: Config, text: str, report: TransferReport | None, sources: Iterable[str] = ()
) -> dict[str, Any]:
    """How the weights of the main stage came about: `start`, `warmed_keys`, `fresh_keys` of result and provenance, and
    whose weights they were."""
    notes = [f"attention: {config.model.init}"] if config.model.init != "default" else []
    if report and config.transfer.controls:
        notes.append(f"controls: {describe(config.transfer.controls)}")
    return {
        "start": f"{text} ({'; '.join(notes)})" if notes else text,
        "warmed_keys": report.copied if report else [],
        "fresh_keys": report.fresh if report else [],
        **lineage(sources),
    }


def assemble(
    config: Config, world: int, *, resumes: bool = False, estimate: bool = False, train_images: int | None = None
) -> Experiment:
    """Make an experiment of a recipe.

    Args:
        config: the recipe.
        world: processes that train it.
        resumes: a checkpoint will bring the weights, so that `init_from` need not be there any more.
        estimate: nothing will be trained: models are on the meta device, nothing given is read, and images that are
            not here may be assumed.
        train_images: for an estimate, the size of the training set; None counts it, or assumes ImageNet-1k's.

    Raises:
        UserError: anything of recipe, data and sources that cannot be right.
    """
    workers = default_workers(world) if config.run.workers is None else config.run.workers
    name, warms = main_stage(config), warms_up(config) and not starts_from_given(config)
    if name is None and not warms:
        keys = ", ".join(f"{name}.{section.asks}" for name, section in MAIN_STAGES.items())
        raise UserError(f"the recipe has nothing to do; set the key of a main stage ({keys}) or warmup.budget")
    _check_init(config)
    check_optimizer("warmup", config.warmup)
    check_optimizer("train", config.train)
    if config.model.decoder.size and not estimate:
        with torch.device("meta"):  # of the vocabulary nothing is known before the data are
            decoder = configured_decoder(config.model, 1, config.model.decoder.positions or 1, seed=config.seed)
        require_memory(weight_bytes(decoder))
    main = make_main(name, config, Setup(workers, estimate, train_images)) if name else None
    told = replace(config, model=main.model_config) if main else config  # with what the data tell
    with torch.device("meta") if estimate else contextlib.nullcontext():
        model = main.fresh_model() if main else _model_alone(config)
        if not estimate:
            initialise(model, config.model.init, seed=config.seed)
        if main is not None:
            main.bind(model)
            freeze(model, config.train)
        warmup = make_warmup(told, main.samples if main else None) if warms else None
    experiment = Experiment(config, main, model, warmup, None, list(main.warnings) if main else [])
    for stage in experiment.stages:
        if config.run.smoke:
            stage.shorten(SMOKE_STEPS, SMOKE_SAMPLES)
        stage.check_device_batch(device_batch_size(stage.optim.global_batch, world, config.run.device_batch))
    if warmup is not None and not resumes and not estimate:
        experiment.rehearse_warmup()
    if starts_from_given(config) and not resumes and not estimate:
        parts = _given_parts(told, model)
        experiment.given = experiment.transfer(parts)
        named = config.transfer.sources.values() or [config.init_from]
        experiment.sources = {name: part.source for name, part in zip(named, parts, strict=True)}
        if isinstance(main, ImagesStage):
            experiment.warnings += [text for part in parts if (text := _other_images(config, main.size, part.source))]
    return experiment


def _check_init(config: Config) -> None:
    """Refuse an initialisation that something else would overwrite or that the warm-up could not use."""
    init, sources = config.model.init, config.transfer.sources
    if (found := find_initialisation(init)) is None:
        return
    if found.on_grid and config.model.decoder.size:
        raise UserError(f"model.init={init} ties attention to image positions, which a decoder does not have")
    if starts_from_given(config):
        own = ("trunk", "attention", *(["embedding"] if found.on_grid else []))
        selections = [Selection.parse(words) for words in (sources or [config.transfer.groups])]
        whole = [kind for s in selections if s.layers is None and not s.heads for kind in s.kinds]
        if lost := next((group for group in whole if group in own), None):
            where, which = ("transfer.sources", "it") if sources else ("init_from", "transfer.groups")
            raise UserError(
                f"model.init={init} would be overwritten by {where} ({which} has {lost}); "
                "set model.init=default, or leave that group out"
            )
    elif found.on_grid and warms_up(config):
        raise UserError(
            f"model.init={init} ties attention to the image positions, which a warm-up does not see; "
            "set warmup.budget=0"
        )


def _model_alone(config: Config) -> nn.Module:
    """The model of a warm-up without a main stage: one that can take all that the warm-up trains."""
    decoder, warmup = config.model.decoder, config.warmup
    if not decoder.size:
        rehearse_images(config.model, None)
        return build_model(config.model, "images", seed=config.seed)
    positions = decoder.positions or warmup.length
    if warmup.objective == "next_token":
        positions = warmup.length or positions  # as many as the warm-up trains
    vocab_size = rule_of(warmup.rule).vocab.size
    assert positions is not None  # a recipe that does not say was refused
    sizes, runs = (vocab_size, positions), warmup.middle_runs  # no main stage follows that would run the block once
    return configured_decoder(warmup_decoder(config), *sizes, "text", seed=config.seed, middle_runs=runs)


def _given_parts(config: Config, model: nn.Module) -> list[Part]:
    """The sources of `init_from` or `transfer.sources`, which must compute what the model computes."""
    several = [(groups.split(), source) for groups, source in config.transfer.sources.items()]
    parts = []
    for groups, source in several or [(config.transfer.groups, config.init_from)]:
        tensors, found = _tensors_of(config, source)
        tensors = fitted(model, tensors, found, config.transfer.fit, groups, seed=config.seed)
        parts.append(Part(groups, tensors, found))
    return parts


def _other_images(config: Config, size: int, source: str) -> str | None:
    """A warning, if a source was trained on images that were prepared otherwise than the recipe's."""
    if source.startswith("timm:"):
        known = timm.get_pretrained_cfg(source.removeprefix("timm:"))
        theirs = preprocessing(known.to_dict() if known else {})
    else:
        theirs = preprocessing_beside(Path(source))
    ours = {name: size if name == "size" else getattr(config.images, name) for name in theirs}
    if not (differing := [name for name in theirs if theirs[name] != ours[name]]):
        return None
    shown = [", ".join(f"{name} {one[name]}" for name in differing) for one in (theirs, ours)]
    return f"{source} was trained on images with {shown[0]}; the recipe has {shown[1]}"


def _tensors_of(config: Config, source: str) -> tuple[Mapping[str, Tensor], str]:
    if not source.startswith("timm:"):
        return read_source(source)
    named = replace(config.model, name=source.removeprefix("timm:"))
    if config.transfer.fit != "exact":
        named = replace(named, args={})  # the source has a shape of its own
    tensors = build_model(named, "images", seed=config.seed, pretrained=True).state_dict()
    names = canonical(tensors)
    return {names[n]: t for n, t in tensors.items()}, source
