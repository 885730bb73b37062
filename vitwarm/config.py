"""Every key of a recipe: type, default, meaning. Declarations only; `vitwarm.recipe` reads and checks recipes.

The class tree is the key tree (`warmup.mask_prob`, `train.lr`), and the help texts are what `--help` prints.
`run` holds what may differ between two runs of the same recipe (folders, logging, workers), as may where copies of its
data are kept (`cache`); all else is its identity and enters its hash.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def key(default: Any, help: str, within: str | None = None, count: int | None = None, since: str | None = None) -> Any:
    """A dataclass field that carries its help text; mutable defaults are copied per instance.

    `within` is the interval that the number, or each number of a list, must lie in; `count` is the length of a list.
    `since` is the version that brought the key, for one that came later than recipes with hashes: it enters a recipe's
    hash (`vitwarm.recipe.recipe_hash`) only where it is not its default, so that the hashes of older recipes stay.
    """
    metadata = {"help": help, "within": within, "count": count, "since": since}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


Objective = Literal["masked", "next_token", "next_state"]
AlgorithmicTask = Literal["haystack", "addition", "reversed_addition", "multiplication", "sorting"]
TextTask = Literal["language", "mathematics", "cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"]
Init = Literal["default", "mimetic", "mimetic_as_published", "mimetic_value", "conditioned", "impulse"]


@dataclass
class DecoderConfig:
    """A GPT-2 in place of the timm model; a run that sets its size trains a language model."""

    size: str | None = key(None, "DEPTH_HEADS_WIDTH such as 12_12_768; null: the timm model of model.name")
    positions: int | None = key(None, "longest sequence, in tokens; null: the main stage's own length", "[1, 1048576]")
    dropout: float = key(0.0, "rate of all dropouts, in every stage", "[0, 1)")
    tied: bool = key(True, "the head shares its weights with the token embedding")


@dataclass
class ModelConfig:
    """The model whose trunk every stage shares: a timm model, or a decoder."""

    name: str = key("vit_tiny_patch16_224", "timm model name (a ViT, DeiT, DeiT-III, SigLIP, EVA-02, DINOv3 or BEiT)")
    num_classes: int | None = key(None, "classes of the image head; null: as many as the data have", "[1, 16777216]")
    args: dict[str, Any] = key({}, "further arguments of timm.create_model (img_size, patch_size, drop_path_rate, ...)")
    init: Init = key("default", "fresh attention weights, in every stage: timm's own, or one in closed form")
    grad_checkpointing: bool = key(False, "recompute block activations in the backward pass to save memory")
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass
class OptimConfig:
    """Optimisation of one stage, under a schedule that is a pure function of the step."""

    global_batch: int = key(256, "samples a step over all processes; accumulation is derived from it", "[1, 16777216]")
    lr: float = key(1e-3, "peak learning rate", "(0, inf)")
    start_lr: float = key(1e-7, "learning rate at step 0, start of the linear warm-up of the learning rate", "[0, inf)")
    min_lr: float = key(1e-6, "learning rate at the end of the schedule", "[0, inf)")
    lr_warmup: str = key("5%", "length of the linear LR warm-up: '1000 steps', '50 epochs', '5%' of the stage")
    schedule: Literal["cosine", "cosine_floor", "wsd", "constant"] = key(
        "cosine", "shape after the LR warm-up; cosine ends at min_lr, cosine_floor heads for 0 and stays at min_lr"
    )
    cooldown: str = key("20%", "length of the linear decay that ends a wsd schedule, written like lr_warmup")
    optimizer: str = key("adamw", "a name of timm.optim.list_optimizers(), or lookahead_NAME", since="0.2")
    optimizer_args: dict[str, Any] = key({}, "further arguments of that optimiser (momentum, ...)", since="0.2")
    weight_decay: float = key(0.05, "weight decay, as the optimiser defines it", "[0, inf)")
    decay_all: bool = key(False, "decay biases, norms, class token and positions as well")
    betas: list[float] | None = key([0.9, 0.999], "betas of the optimiser; null: its own", "[0, 1)", 2)
    eps: float | None = key(1e-8, "epsilon of the optimiser; null: its own", "(0, inf)")
    clip_grad: float | None = key(None, "largest gradient norm; null does not clip", "(0, inf)")
    ema: float | None = key(None, "decay of an fp32 average of the weights that is evaluated and exported", "(0, 1)")
    precision: Literal["fp32", "bf16"] = key("fp32", "bf16 is autocast over fp32 weights")
    compile: bool = key(False, "torch.compile each block in place")


@dataclass
class WarmupConfig(OptimConfig):
    """Stage `warmup`: prediction on sequences of a rule (masked: arXiv 2511.13945; next: arXiv 2601.21725)."""

    lr: float = key(2e-3, "peak learning rate", "(0, inf)")
    lr_warmup: str = key("1000 steps", "length of the linear LR warm-up: '1000 steps', '5%' of the stage")
    decay_all: bool = key(True, "decay biases, norms, class token and positions as well (the paper does)")
    rule: dict[str, Any] = key({"name": "dyck"}, "the rule and its parameters: warmup.rule.name, warmup.rule.k, ...")
    budget: str = key("1%", "'1%' of the main stage's samples, '3.84M' samples, '20M tokens', '15000 steps'; 0: none")
    objective: Objective = key("masked", "masked tokens, the next token, or the next state of the rule eca as bits")
    loss_on: Literal["outputs", "all"] = key(
        "outputs", "next_token: the rule's eligible tokens, or every token but PAD"
    )
    length: int | None = key(
        None,
        "tokens (next_state: states) a sequence; null is a ViT's token grid, a decoder's positions",
        "[1, 1048576]",
    )
    tied: bool | None = key(
        None, "next_token: the head shares its weights with the token embedding; null: as model.decoder", since="0.2"
    )
    dropout: float | None = key(
        None, "of a decoder: rate of all dropouts in this stage; null: as model.decoder", "[0, 1)", since="0.2"
    )
    mask_prob: float = key(0.5, "probability that an eligible token of the rule is masked", "(0, 1]")
    middle_runs: int = key(
        1, "times that the middle one of three blocks runs, one after another (compact core)", "[1, 1000]"
    )
    val_rows: int = key(1024, "sequences of the validation stream in one evaluation", "[1, inf)")
    eval_every: int = key(1000, "steps between evaluations; the last step is always evaluated", "[1, inf)")


@dataclass
class TransferConfig:
    """Tensors to copy from the source trunk to the target model; all others start fresh."""

    groups: list[str] = key(
        ["trunk"],
        "what to copy: trunk, attention, mlp, norm, norm1, norm2, embedding, head; layers=last:4 and heads=0 narrow it",
    )
    fit: Literal["exact", "select", "expand"] = key(
        "exact",
        "given weights of another size: exact refuses, select takes part of a larger trunk, expand a compact core",
    )
    sources: dict[str, Any] = key({}, "several sources in place of init_from, by their groups: {attention: A, mlp: B}")
    controls: dict[str, Any] = key(
        {}, "by groups, how to perturb a source's tensors: shuffle, gaussian, noise:S, scale:F"
    )


@dataclass
class MainStageConfig:
    """Base of a main stage's section; `Config` has a field with the stage's name for each.

    Attributes:
        asks: key of the section that asks for the stage when it is set.
        length_key: key of the section that says how long the stage is.
        decoder: whether the stage trains a decoder; else a timm model.
        headline: metric that comparisons show first.
    """

    asks: ClassVar[str]
    length_key: ClassVar[str]
    decoder: ClassVar[bool]
    headline: ClassVar[str]

    def requested(self) -> bool:
        """Whether the recipe asks for this stage."""
        return bool(getattr(self, self.asks))


@dataclass
class ImagesConfig(MainStageConfig):
    """Stage `images`: classification of images."""

    asks, length_key, decoder, headline = "train", "epochs", False, "top1"

    def requested(self) -> bool:
        return bool(self.train) and self.epochs > 0

    train: str = key("", "training images (docs/shards.md): tars, class folders, parquet, a list, a URL, 'digits'")
    train_samples: int | None = key(None, "images in streamed tars; null reads manifest.json beside them", "[1, inf)")
    val: str = key("", "validation images, written likewise")
    cache: str | None = key(None, "folder for copies of URLs (hf://, https://, ...), downloaded whole; null streams")
    epochs: float = key(
        300.0, "passes over the training images: as many presentations as there are images", "[0, 1000000]"
    )
    subset: str | None = key(None, "train on a part: '10%' or '1300 samples' (classes balanced), or a file of names")
    subset_seed: int = key(0, "which images make up the subset; not tied to seed, so that seeds share it", "[0, inf)")
    epochs_of: Literal["subset", "full"] = key("subset", "an epoch is as long as the subset, or as the full set")
    repeats: int = key(
        1, "consecutive presentations of an image, each augmented anew (repeated augmentation)", "[1, inf)"
    )
    size: int | None = key(None, "image side in pixels; null is the model's own", "[1, inf)")
    mean: list[float] = key([0.485, 0.456, 0.406], "channel means that normalise pixels in [0, 1]", "[0, 1]", 3)
    std: list[float] = key([0.229, 0.224, 0.225], "channel standard deviations, likewise", "(0, inf)", 3)
    interpolation: Literal["bicubic", "bilinear"] = key("bicubic", "resampling filter")
    resident: bool = key(False, "keep the training images on the device, decoded once; crops and flips happen there")
    crop: Literal["rrc", "pad", "none"] = key("rrc", "random-resized-crop, zero-pad and random crop, or none")
    pad: int = key(4, "pixels of zero padding on each side when crop is pad", "[0, inf)")
    scale: list[float] = key([0.08, 1.0], "range of the crop's share of the image area when crop is rrc", "(0, 1]", 2)
    ratio: list[float] = key([0.75, 1.3333333], "range of the crop's aspect ratio when crop is rrc", "(0, inf)", 2)
    hflip: float = key(0.5, "probability of a horizontal flip", "[0, 1]")
    auto_augment: str | None = key(None, "timm policy such as rand-m9-mstd0.5-inc1, or 3a")
    color_jitter: float = key(0.0, "brightness, contrast, saturation jitter; of policies only 3a keeps it", "[0, inf)")
    random_erasing: float = key(0.0, "probability of erasing one box with noise", "[0, 1]")
    mixup: float = key(0.0, "mixup alpha; 0 is off", "[0, inf)")
    cutmix: float = key(0.0, "cutmix alpha; 0 is off", "[0, inf)")
    mix_prob: float = key(1.0, "probability that a step mixes", "[0, 1]")
    mix_switch_prob: float = key(0.5, "probability of cutmix when both are on", "[0, 1]")
    loss: Literal["ce", "bce"] = key("ce", "cross-entropy; bce: one sigmoid a class, every class mixed in counts fully")
    label_smoothing: float = key(0.1, "label smoothing; 0 under bce", "[0, 1)")
    eval_crop_pct: float = key(0.875, "share of the resized side that the centre crop of evaluation keeps", "[0.01, 1]")
    eval_every: int = key(1, "epochs between evaluations; the last step is always evaluated", "[1, inf)")
    max_damaged: float = key(0.001, "largest share of unreadable training images before the run stops", "[0, 1]")


@dataclass
class AlgorithmicConfig(MainStageConfig):
    """Stage `algorithmic`: a decoder learns to compute, on fresh sequences each step (arXiv 2505.22308, 2601.21725)."""

    asks, length_key, decoder, headline = "task", "budget", True, "accuracy"

    task: AlgorithmicTask | None = key(None, "what to compute; null for no algorithmic stage")
    size: int | None = key(None, "pairs (haystack), digits, numbers (sorting); null is the papers'", "[1, 65536]")
    budget: str = key("10000 steps", "length of the stage: '10000 steps', '10M' samples, '20M tokens'")
    loss_on: Literal["published", "answers"] = key(
        "published", "loss mask: the papers' (not the first digit, but pads), or with the whole answer as well"
    )
    embeddings: Literal["mean", "fresh"] = key(
        "mean",
        "tokens and head start as the mean of the source's tokens, positions as the source's (of one source, under "
        "transfer.fit=exact); or all fresh",
    )
    val_rows: int = key(4000, "sequences of the validation stream in one evaluation, all held out", "[1, inf)")
    eval_every: int = key(500, "steps between evaluations; the last step is always evaluated", "[1, inf)")


@dataclass
class TextConfig(MainStageConfig):
    """Stage `text`: a decoder on text, code, mathematics, or a task of GLUE (arXiv 2601.21725)."""

    asks, length_key, decoder, headline = "train", "budget", True, "loss"

    task: TextTask = key(
        "language", "language: next token of documents; mathematics: answers to DeepMind's problems; else GLUE's"
    )
    train: str = key("", "file, folder, glob, braces, URL (docs/text.md); of GLUE the task's folder; empty: no stage")
    val: str = key("", "validation files, likewise; empty for mathematics and GLUE, which hold their own")
    cache: str | None = key(None, "folder for copies of what train and val name by URLs (hf://, https://, ...)")
    field: str = key("text", "what holds the text: field of JSON objects, parquet column, extension of tar members")
    heading: str | None = key(None, "plain text: regular expression of the lines that begin a document")
    tokenizer: str = key("bytes", "folder with vocab.json and merges.txt, or tokenizer.json; or bytes, chars")
    length: int = key(1024, "tokens a sequence; GLUE: the most that a sentence or pair may have", "[2, 1048576]")
    budget: str = key("1 epochs", "length of the stage: '655M tokens', '10000 steps', '3 epochs', '1M' samples")
    val_rows: int | None = key(
        None, "sequences (mathematics, GLUE: of each split) of one evaluation, always the same; null: all", "[1, inf)"
    )
    eval_every: int = key(500, "steps between evaluations; the last step is always evaluated", "[1, inf)")
    max_damaged: float = key(0.001, "largest share of unreadable documents before the run stops", "[0, 1]")


@dataclass
class TrainConfig(OptimConfig):
    """Optimisation of the main stage (`images`, `algorithmic`, `text`)."""

    layer_decay: float | None = key(None, "learning rate of a block over the next one's; null: equal rates", "(0, 1]")
    freeze: list[str] = key([], "tensor groups that keep their weights, such as attention or layers=first:4")
    lr_factors: dict[str, Any] = key({}, "by groups, what the learning rate is multiplied by: {attention: 0.1}")


@dataclass
class WandbConfig:
    """Weights & Biases. `run.wandb=PROJECT` is short for `run.wandb.project=PROJECT`."""

    project: str | None = key(None, "also log to this project (pip install vitwarm[wandb]); run.wandb=NAME is short")
    entity: str | None = key(None, "user or team that has the project; null: the account's default")
    group: str | None = key(None, "group of the run, such as the seeds of an experiment")
    tags: list[str] = key([], "tags of the run")


@dataclass
class RunConfig:
    """Where and how to run; not part of the recipe's identity."""

    dir: str | None = key(None, "run folder; null is runs/RECIPE-seedSEED")
    device_batch: int | None = key(None, "most samples a device takes at once; null is its share", "[1, inf)")
    workers: int | None = key(None, "loader processes a rank; null scales with the CPUs, at most 8", "[0, 256]")
    log_every: int = key(50, "steps between log lines", "[1, inf)")
    checkpoint_every: int = key(1000, "steps between checkpoints; the end of a stage is always saved", "[1, inf)")
    keep_last: int = key(2, "checkpoints to keep besides the best one", "[1, inf)")
    keep_at: list[int] = key([], "steps, counted over all stages, at which a checkpoint is saved and kept", "[1, inf)")
    smoke: bool = key(False, "try the recipe out: 20 steps a stage, little validation, in RUN_FOLDER-smoke")
    deterministic: bool = key(False, "deterministic kernels on CUDA; the CPU always is")
    tensorboard: bool = key(False, "also write TensorBoard events (pip install vitwarm[tensorboard])")
    wandb: WandbConfig = field(default_factory=WandbConfig)
    push: str | None = key(None, "push the export of the finished run to this Hugging Face Hub repository (USER/NAME)")


@dataclass
class Config:
    """A resolved recipe."""

    name: str = key("", "the recipe's name; set from its file name")
    description: str = key("", "one line on what the recipe is for")
    seed: int = key(0, "root seed of every random stream", "[0, inf)")
    init_from: str | None = key(None, "start here, not from a warm-up: run, export folder, .safetensors, timm:NAME")
    resume_from: str | None = key(None, "run folder or checkpoint of the same recipe to resume from")
    model: ModelConfig = field(default_factory=ModelConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    algorithmic: AlgorithmicConfig = field(default_factory=AlgorithmicConfig)
    text: TextConfig = field(default_factory=TextConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
