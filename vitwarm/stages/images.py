"""Stage `images`: classification of images by a timm model."""

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from vitwarm.amounts import Amount
from vitwarm.config import Config
from vitwarm.data.images import EvalTransform, TrainTransform
from vitwarm.data.loading import ImageDataset, eval_loader, train_loader
from vitwarm.data.mixing import Mixer, Normalise, RandomErasing
from vitwarm.data.opening import (
    IMAGENET_CLASSES,
    count_classes,
    count_images,
    data_line,
    describe,
    is_streamed,
    open_training,
    open_validation,
)
from vitwarm.data.order import ImageOrder
from vitwarm.data.resident import ResidentImages, check_resident
from vitwarm.data.streaming import Stream, stream_loader
from vitwarm.data.subset import SUBSET, select_subset
from vitwarm.errors import UserError
from vitwarm.stages.batches import ImageBatch
from vitwarm.stages.registry import MainStage, Setup, main_stage
from vitwarm.training.batch import Sums, Totals
from vitwarm.training.param_groups import with_rates
from vitwarm.training.schedule import check_lengths
from vitwarm.trunk import ImageModel, build_model, family_of, rehearse_images, require_memory


def image_lengths(config: Config, full: int, used: int) -> tuple[int, int, tuple[int, int]]:
    """How long the image stage is: steps, steps between evaluations, (LR warm-up, cooldown) in steps.

    Args:
        config: the recipe.
        full: images of the full training set.
        used: images of the subset that is trained on.

    Raises:
        UserError: the schedule does not fit into the stage.
    """
    images, optim = config.images, config.train
    epoch = full if images.epochs_of == "full" else used
    passes = (Fraction(str(n)) for n in (images.epochs, images.eval_every))  # 1.1 x 50,000 is 55,000, not a bit more
    steps, eval_every = (max(1, math.ceil(n * epoch / optim.global_batch)) for n in passes)
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
    normalise: Normalise,
    rank: int,
    world: int,
    batch: int,
    workers: int,
    damage: list[tuple[int, str, str]] | None = None,
    samples: int | None = None,
) -> Totals:
    """This rank's sums over its share of a validation set; every image counts once over all ranks.

    Args:
        model: logits from normalised images; in evaluation mode.
        dataset: with the transform of evaluation.
        normalise: pixels to the model's inputs.
        rank, world: this process, and how many share the set.
        batch: images at once.
        workers: loader processes.
        damage: is extended by (sample, key, reason) of each image that cannot be read.
        samples: so many of the set, the first; None is all.

    Returns:
        `loss` (nats), `top1`, `top5`, `weight` (images read) and `damaged` (images that could not be read).
    """
    device = next(model.parameters()).device
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    damaged = 0
    for loaded in eval_loader(dataset, rank, world, batch, workers, samples=samples):
        valid, labels = loaded["valid"].to(device), loaded["label"].to(device)
        logits = model(normalise(loaded["image"].to(device, non_blocking=True))).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        parts = (loss, best[:, 0], best.any(1), torch.ones_like(loss))
        sums += torch.stack([(part.double() * valid).sum() for part in parts])
        damaged += len(loaded["damage"])
        if damage is not None:
            damage += loaded["damage"]
    loss, top1, top5, weight = sums.tolist()
    return {"loss": loss, "top1": top1, "top5": top5, "weight": weight, "damaged": float(damaged)}


@main_stage("images")
class ImagesStage(MainStage[ImageBatch]):
    """Classification of images by a timm model.

    Args:
        config: the recipe.
        setup: loader processes; for an estimate, how many images to assume.

    Raises:
        UserError: shards, labels, sizes or lengths that cannot be right.
    """

    name = "images"
    sample_unit = "images/s decoded and augmented"

    def __init__(self, config: Config, setup: Setup):
        self.config, self.optim, self.seed, self.workers = config.images, config.train, config.seed, setup.workers
        images, given = config.images, config.model.num_classes
        self.num_classes = given or IMAGENET_CLASSES  # until the data are open
        found = rehearse_images(replace(config.model, num_classes=self.num_classes), images.size)
        if found.height != found.width:
            shape = f"{found.height}x{found.width}"
            raise UserError(f"the model takes {shape} images; set model.args.img_size to a square size")
        self.size, self.tokens_per_sample = found.height, found.tokens
        if setup.estimate:
            self.counts = count_images(config, setup.train_images)
            self.num_classes = given or self.counts.classes
            full, used, self.val_samples = self.counts.full, self.counts.used, self.counts.val
        else:
            require_memory(found.memory)
            self.shards = open_training(config)
            self.val_shards = open_validation(config, self.shards)
            self.num_classes = count_classes(given, self.shards, self.val_shards)
            self.subset = None
            if images.subset:
                assert not isinstance(self.shards, Stream)  # of which a subset was refused
                self.subset = select_subset(self.shards, images.subset, images.subset_seed)
            ids = self.subset.ids if self.subset else None
            self.order = ImageOrder(len(self.shards), self.optim.global_batch, self.seed, ids, images.repeats)
            full, used, self.val_samples = len(self.shards), self.order.epoch_size, len(self.val_shards or ())
            self.read = describe(self.shards, used, self.val_shards)
            self.warnings = _large_head(self.num_classes, self.read["train"])
            known = self.shards.classes
            if known is not None and len(known.names) == self.num_classes:
                self.class_names = known.names
        self.model_config = replace(config.model, num_classes=self.num_classes)
        self.counted = given is None
        self.steps, self.eval_every, self.schedule_lengths = image_lengths(config, full, used)
        self.epochs = images.epochs
        self.best = "top1" if images.val else None
        if not images.val:
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
        self.normalise = Normalise(images.mean, images.std)
        self.erasing = RandomErasing(images.random_erasing, self.seed)
        self._events: list[dict[str, Any]] = []

    @property
    def samples(self) -> int:
        """Image presentations of the stage, which a warm-up budget in percent refers to."""
        return self.steps * self.optim.global_batch

    def shorten(self, steps: int, val_samples: int) -> None:
        whole = max(1, self.steps)
        super().shorten(steps, val_samples)
        self.epochs *= self.steps / whole

    def describe(self) -> str:
        return f"{self.epochs:.4g} epochs, {self.num_classes:,} classes"

    def fresh_model(self) -> nn.Module:
        return build_model(self.model_config, "images", seed=self.seed)

    def exported(self, trained: nn.Module) -> nn.Module:
        assert isinstance(trained, ImageModel)
        return trained.vit

    def facts(self) -> dict[str, Any]:
        subset = {"images": len(self.subset.names), "sha256": self.subset.sha256} if self.subset else None
        return {"data": self.read} | ({"subset": subset} if subset else {})

    def data_line(self) -> str:
        return data_line(self.read)

    def data_read(self) -> dict[str, str]:
        sets = {"images.train": self.shards, "images.val": self.val_shards}
        read = {name: shards.identity for name, shards in sets.items() if shards is not None}
        return read | ({"model.num_classes": str(self.num_classes)} if self.counted else {})

    def estimate_facts(self) -> dict[str, str]:
        return self.counts.facts

    def fixed_files(self) -> dict[str, str]:
        return {SUBSET: self.subset.text} if self.subset else {}

    def bind(self, model: nn.Module) -> None:
        images = self.config
        self.vit: Any = family_of(model).model
        self.model = ImageModel(model, self.model_config.grad_checkpointing)
        if images.crop == "pad" and images.pad >= self.size:
            raise UserError(
                f"images.pad={images.pad} leaves nothing of images of {self.size} pixels; set less than that"
            )
        (smallest, largest), (narrowest, widest), (red, green, blue) = images.scale, images.ratio, images.mean
        self.transform = TrainTransform(
            self.size,
            images.crop,
            (smallest, largest),
            (narrowest, widest),
            images.pad,
            images.interpolation,
            images.hflip,
            images.auto_augment,
            images.color_jitter,
            (red, green, blue),
        )
        if images.resident and (is_streamed(images) or self.transform.needs_pil):
            raise UserError(
                "images.resident crops and flips on the device, where streamed tars, images.auto_augment and "
                "images.color_jitter cannot follow; leave images.resident off"
            )
        self.eval_transform = EvalTransform(self.size, images.eval_crop_pct, images.interpolation)

    def check_device_batch(self, size: int) -> None:
        if size % 2 and (self.config.mixup or self.config.cutmix):
            raise UserError(
                f"mixup and cutmix pair images, so a device's batch must be even, not {size}; change run.device_batch, "
                "the number of processes or train.global_batch"
            )

    def rehearse(self, device: torch.device) -> None:
        if self.config.resident:
            assert not isinstance(self.shards, Stream)  # which `bind` refused
            check_resident(self.shards, self.transform, self.order.ids, device)

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

    def batches(self, start: int, rank: int, world: int, device_batch: int) -> Generator[ImageBatch, None, None]:
        share = self.optim.global_batch // world
        what = (self.order, start, self.steps, rank, world, device_batch, self.workers)
        if isinstance(self.shards, Stream):
            loader = stream_loader(self.shards, self.transform, *what)
        elif self.config.resident:
            device = next(self.model.parameters()).device
            images = (self.shards, self.transform, self.seed, self.order.ids, device, self.workers)
            self.resident = ResidentImages(*images)
            loader = train_loader(self.resident, *what)
        else:
            loader = train_loader(ImageDataset(self.shards, self.transform, self.seed), *what)
        for i, loaded in enumerate(loader):
            offset = i * device_batch % share
            self._note("train", loaded["damage"])
            yield ImageBatch(
                labels=loaded["label"],
                valid=loaded["valid"],
                sample=loaded["sample"],
                offset=rank * share + offset,
                images=loaded.get("image"),
                box=loaded.get("box"),
                flip=loaded.get("flip"),
                weight=float(loaded["valid"].sum()),
            )

    def losses(self, model: Callable[..., Any], batch: ImageBatch, step: int) -> Sums:
        """Summed loss in nats; of a mixed pair the larger label is the right one.

        `bce` is that of DeiT-III (arXiv 2204.07118): the mean over classes of binary cross-entropies, where every class
        that went into the mix counts fully.
        """
        pixels = batch.images
        if pixels is None:
            assert batch.box is not None and batch.flip is not None
            pixels = self.resident.images(batch.sample, batch.box, batch.flip)
        images = self.normalise(pixels)
        images = self.erasing(images, step, batch.offset)  # before mixing, as in timm
        images, targets, weight = self.mixer(images, batch.labels, batch.valid, step)
        logits = model(images).float()
        if self.config.loss == "bce":
            loss = F.binary_cross_entropy_with_logits(logits, (targets > 0).float(), reduction="none").mean(-1)
        else:
            loss = torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1)
        right = logits.detach().argmax(-1) == targets.argmax(-1)
        return Sums((loss * weight).sum(), (right * weight).sum())

    def evaluate(self, model: nn.Module, rank: int, world: int, device_batch: int) -> Totals:
        if self.val_shards is None:
            return {"weight": 0.0}
        damage: list[tuple[int, str, str]] = []
        sums = evaluate_images(
            model,
            ImageDataset(self.val_shards, self.eval_transform),
            self.normalise,
            rank,
            world,
            device_batch,
            self.workers,
            damage=damage,
            samples=self.val_samples,
        )
        del sums["damaged"]  # named one by one instead
        self._note("val", damage)
        return sums

    def example(self) -> tuple[ImageBatch, int]:
        images = torch.zeros(2, 3, self.size, self.size, dtype=torch.uint8)  # two, because mixup pairs images
        numbers, valid = torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.bool)
        return ImageBatch(labels=numbers, valid=valid, sample=numbers, offset=0, images=images, weight=2.0), 2

    def _note(self, split: str, damage: Iterable[tuple[int, str, str]]) -> None:
        for _, key, reason in damage:
            self._events.append({"event": "damaged", "sample": f"{split} {key}", "reason": reason})

    def events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def check_events(self, damaged: list[str]) -> None:
        for split, total in (("train", self.order.epoch_size), ("val", self.val_samples)):
            count = sum(name.startswith(f"{split} ") for name in damaged)
            if count and count > self.config.max_damaged * total:
                raise UserError(
                    f"{count} of {total} images of images.{split} cannot be read, more than images.max_damaged="
                    f"{self.config.max_damaged:g} allows; the log names each: fix the shards or raise the limit"
                )


def _large_head(num_classes: int, read: dict[str, Any]) -> list[str]:
    """A warning, if most of the head's outputs are of classes that the training images do not have."""
    if num_classes <= 2 * (found := read.get("classes", num_classes)):
        return []
    return [
        f"model.num_classes={num_classes}, but the training images have {found} classes; leave it out, and the head "
        "has as many outputs as the data have classes"
    ]
