"""Stage `images`: classification of images in WebDataset tars by a timm model."""

import math
import os
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.data.digits import digits_shards
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.loading import ImageDataset, eval_loader, train_loader
from vitwarm.data.mixing import Mixer, RandomErasing, to_float
from vitwarm.data.plan import ImagePlan
from vitwarm.data.resident import ResidentImages
from vitwarm.data.shards import ShardSet, check_labels, expand
from vitwarm.data.streaming import Stream, is_url, open_stream, stream_loader
from vitwarm.data.subset import select_subset
from vitwarm.errors import UserError
from vitwarm.training.param_groups import with_rates
from vitwarm.training.protocol import Batch, means
from vitwarm.training.schedule import check_lengths
from vitwarm.trunk import ImageModel, family_of


def open_shards(spec: str, split: str, key: str) -> ShardSet:
    """The tars of a specification; `digits` is scikit-learn's handwritten digits, written to the cache on first use.

    Args:
        spec: folder, tar, glob or brace pattern, or `digits`.
        split: `train` or `test`, for `digits`.
        key: where the user wrote it, which starts every error message.

    Raises:
        UserError: nothing there, or not a set of labelled images.
    """
    try:
        return ShardSet(expand(digits_shards(split) if spec == "digits" else spec))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def open_training(config: Config) -> ShardSet | Stream:
    """The training images of a recipe, on a disk or streamed, with labels that fit the classifier.

    Raises:
        UserError: nothing there, not a set of labelled images, or keys that a stream has no use for.
    """
    images, num_classes = config.images, config.model.num_classes
    if not is_url(images.train):
        if images.train_samples is not None:
            raise UserError("images.train_samples is for streamed tars (URLs); these are counted: leave it out")
        shards = open_shards(images.train, "train", "images.train")
        check_labels(shards, num_classes)
        return shards
    for key, default in (("subset", None), ("repeats", 1)):
        if getattr(images, key) != default:
            raise UserError(f"images.{key} needs images by number, which a stream has not; copy the tars to a disk")
    return open_stream(images.train, images.train_samples, num_classes)


def default_workers(world: int) -> int:
    """Loader processes a rank: the CPUs it can count on for itself, less one for the loop, at most 8."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, cpus // world - 1))


def image_lengths(config: Config, full: int, used: int) -> tuple[int, int, tuple[int, int]]:
    """How long the image stage is: steps, steps between evaluations, (LR warm-up, cooldown) in steps.

    Args:
        config: the recipe.
        full: images of the whole training set.
        used: images of the subset that is trained on.

    Raises:
        UserError: the schedule does not fit into the stage.
    """
    images, optim = config.images, config.train
    epoch = full if images.epochs_of == "full" else used
    steps, eval_every = (max(1, math.ceil(n * epoch / optim.global_batch)) for n in (images.epochs, images.eval_every))
    warmup, cooldown = (
        Amount.parse(getattr(optim, name), f"train.{name}").steps(
            global_batch=optim.global_batch, steps_of_whole=steps, samples_per_epoch=epoch
        )
        for name in ("lr_warmup", "cooldown")
    )
    check_lengths("train", steps, optim, warmup, cooldown)
    return steps, eval_every, (warmup, cooldown)


def evaluate_images(
    model: nn.Module,
    dataset: ImageDataset,
    mean: Sequence[float],
    std: Sequence[float],
    rank: int,
    world: int,
    batch: int,
    workers: int,
    damage: list[tuple[int, str, str]] | None = None,
) -> dict[str, float]:
    """This rank's sums over its share of a validation set; every image counts once over all ranks.

    Args:
        model: logits from normalised images; in evaluation mode.
        dataset: with the transform of evaluation.
        mean, std: channel statistics that normalise.
        rank, world: this process, and how many share the set.
        batch: images at once.
        workers: loader processes.
        damage: is extended by (sample, key, reason) of each image that cannot be read.

    Returns:
        `loss` (nats), `top1`, `top5`, `weight` (images read) and `damaged` (images that could not be read).
    """
    device = next(model.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    damaged = 0
    for loaded in eval_loader(dataset, rank, world, batch, workers):
        valid, labels = loaded["valid"].to(device), loaded["label"].to(device)
        logits = model(to_float(loaded["image"].to(device, non_blocking=True), mean, std)).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        parts = (loss, best[:, 0], best.any(1), torch.ones_like(loss))
        sums += torch.stack([(part.double() * valid).sum() for part in parts])
        damaged += len(loaded["damage"])
        if damage is not None:
            damage += loaded["damage"]
    loss, top1, top5, weight = sums.tolist()
    return {"loss": loss, "top1": top1, "top5": top5, "weight": weight, "damaged": float(damaged)}


class ImagesStage:
    """See `vitwarm.training.protocol.Stage`.

    Args:
        config: the recipe.
        workers: loader processes.

    `set_model` gives it the model to train before it runs.

    Raises:
        UserError: shards, labels, sizes or lengths that cannot be right.
    """

    name = "images"

    def __init__(self, config: Config, workers: int):
        self.config, self.optim, self.seed, self.workers = config.images, config.train, config.seed, workers
        self.num_classes = config.model.num_classes
        images = config.images
        self.shards = open_training(config)
        self.val_shards = open_shards(images.val, "test", "images.val") if images.val else None
        self.best = "top1" if self.val_shards is not None else None
        if self.val_shards is not None:
            check_labels(self.val_shards, self.num_classes)
        self.subset = select_subset(self.shards, images.subset, images.subset_seed) if images.subset else None
        ids = self.subset.ids if self.subset else None
        self.plan = ImagePlan(len(self.shards), self.optim.global_batch, self.seed, ids, images.repeats)
        lengths = image_lengths(config, len(self.shards), self.plan.epoch_size)
        self.steps, self.eval_every, self.schedule_lengths = lengths
        if self.val_shards is None:
            self.eval_every = self.steps  # nothing to measure on the way
        self.mixer = Mixer(
            images.mixup,
            images.cutmix,
            images.mix_prob,
            images.mix_switch_prob,
            images.label_smoothing,
            self.num_classes,
            self.seed,
        )
        self.erasing = RandomErasing(images.random_erasing, self.seed)
        self._events: list[dict[str, Any]] = []

    @property
    def samples(self) -> int:
        """Image presentations of the whole stage, which a warm-up budget in percent refers to."""
        return self.steps * self.optim.global_batch

    def set_model(self, vit: nn.Module, grad_checkpointing: bool) -> None:
        """The model to train."""
        images = self.config
        self.vit = vit
        self.model = ImageModel(vit, grad_checkpointing)
        self.size = images.size or family_of(vit).image_size
        takes = family_of(vit).image_size
        if self.size != takes and not family_of(vit).any_size:
            raise UserError(f"images.size={self.size}, but the model takes {takes} pixels; set model.args.img_size too")
        self.tokens_per_sample = family_of(vit).tokens(self.size)
        self.transform = TrainTransform(
            self.size,
            images.crop,
            tuple(images.scale),
            tuple(images.ratio),
            images.pad,
            images.interpolation,
            images.hflip,
            images.auto_augment,
            images.color_jitter,
            tuple(images.mean),
        )
        if images.resident and (isinstance(self.shards, Stream) or self.transform.needs_pil):
            raise UserError(
                "images.resident crops and flips on the device, where streamed tars, images.auto_augment and "
                "images.color_jitter cannot follow; leave images.resident off"
            )
        if self.val_shards is not None:
            evaluation = EvalTransform(self.size, images.eval_crop_pct, images.interpolation)
            self.val_dataset = ImageDataset(self.val_shards, evaluation)

    def check_device_batch(self, size: int) -> None:
        if size % 2 and (self.config.mixup or self.config.cutmix):
            raise UserError(
                f"mixup and cutmix pair images, so a device's batch must be even, not {size}; change run.device_batch, "
                "the number of processes or train.global_batch"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """timm's grouping, on the raw model: through a wrapper it would not find positions and tokens."""
        decay, free = self.optim.weight_decay, self.vit.no_weight_decay()
        if self.optim.layer_decay is not None:
            groups = param_groups_layer_decay(self.vit, decay, free, layer_decay=self.optim.layer_decay)
        else:
            groups = param_groups_weight_decay(self.vit, decay, no_weight_decay_list=free)
        groups = [group | {"weight_decay": decay} for group in groups] if self.optim.decay_all else groups
        return with_rates(groups, self.vit, self.optim)

    def blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[Batch, None, None]:
        share = self.optim.global_batch // world
        what = (self.plan, start, self.steps, rank, world, device_batch, self.workers)
        if isinstance(self.shards, Stream):
            loader = stream_loader(self.shards, self.transform, *what)
        elif self.config.resident:
            device = next(self.model.parameters()).device
            loaded = (self.shards, self.transform, self.seed, self.plan.ids, device, self.workers)
            self.resident = ResidentImages(*loaded)
            loader = train_loader(self.resident, *what)
        else:
            loader = train_loader(ImageDataset(self.shards, self.transform, self.seed), *what)
        for i, loaded in enumerate(loader):
            offset = i * device_batch % share
            self._note("train", loaded.pop("damage"))
            loaded["position"] = rank * share + offset
            yield loaded | {"weight": float(loaded["valid"].sum())}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Summed loss in nats; accuracy counts the larger label of a mixed pair.

        `bce` is that of DeiT-III (arXiv 2204.07118): the mean over classes of binary cross-entropies, where every class
        that went into the mix counts fully.
        """
        if "image" in batch:
            pixels = batch["image"]
        else:
            pixels = self.resident.images(batch["sample"], batch["box"], batch["flip"])
        images = to_float(pixels, self.config.mean, self.config.std)
        images = self.erasing(images, step, batch["position"])  # before mixing, as in timm
        images, targets, weight = self.mixer(images, batch["label"], batch["valid"], step)
        logits = model(images).float()
        if self.config.loss == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, (targets > 0).float(), reduction="none").mean(-1)
        else:
            loss = torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1)
        right = logits.detach().argmax(-1) == targets.argmax(-1)
        return {"loss": (loss * weight).sum(), "accuracy": (right * weight).sum()}

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> dict[str, float]:
        if self.val_shards is None:
            return {"weight": 0.0}
        mean, std, damage = self.config.mean, self.config.std, []
        sums = evaluate_images(
            model, self.val_dataset, mean, std, rank, world, device_batch, self.workers, damage=damage
        )
        del sums["damaged"]  # named one by one instead
        self._note("val", damage)
        return sums

    def metrics(self, totals: dict[str, float]) -> dict[str, float]:
        return means(totals)

    def follow(self, metrics: dict[str, float]) -> None:
        """Images come in their order whatever was measured."""

    def example(self) -> tuple[Batch, int]:
        image = torch.zeros(2, 3, self.size, self.size, dtype=torch.uint8)
        valid = torch.ones(2, dtype=torch.bool)
        label = torch.zeros(2, dtype=torch.long)  # two, because mixup pairs images
        return {"image": image, "label": label, "valid": valid, "position": 0, "weight": 2.0}, 2

    def _note(self, split: str, damage: Iterable[tuple[int, str, str]]) -> None:
        for _, key, reason in damage:
            self._events.append({"event": "damaged", "sample": f"{split} {key}", "reason": reason})

    def events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def check_events(self, damaged: list[str]) -> None:
        for split, total in (("train", self.plan.epoch_size), ("val", len(self.val_shards or ()))):
            count = sum(name.startswith(f"{split} ") for name in damaged)
            if count and count > self.config.max_damaged * total:
                raise UserError(
                    f"{count} of {total} images of images.{split} cannot be read, more than images.max_damaged="
                    f"{self.config.max_damaged:g} allows; the log names each: mend the shards or raise the limit"
                )
