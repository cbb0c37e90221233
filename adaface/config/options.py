"""The options of a training run, in groups: name, type, default, help, unit and range. All defaults are defined here.

The name of each field is both an option of the command line and a key of a recipe, whatever its group;
``config/parsing.py`` builds the groups from these. A module takes its whole group. Names and meanings are those of the
official AdaFace repository, which has about half of the options.

Differs from the official code: ``--weight_decay`` is used (there it is ignored and 5e-4 is always applied, so 5e-4 is
the default here).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, get_type_hints

import yaml

from adaface.config.fields import About, Group, option
from adaface.heads.names import MARGINS, MOST_CENTERS

_PAPER = {name: value for margin in MARGINS.values() for name, value in margin.options.items()}
_SEEDS = 2**32  # NumPy's seeds are below this number


_neutral = partial(option, changes_training=False)
_probability = partial(option, 0.0, minimum=0, maximum=1)


@dataclass(frozen=True)
class DataOptions(Group):
    """Training and validation data."""

    data_root: str = _neutral(
        "", "folder that --train_data_path and --val_data_path are relative to", host_specific=True
    )
    train_data_path: str = _neutral(
        "faces_emore/imgs",
        "training images: a folder with one subfolder per identity, or a folder with train.rec or train_0.rec, "
        "train_1.rec, ...; several data sets are separated by commas",
    )
    val_data_path: str = _neutral(
        "faces_emore", "folder of the validation sets, converted or as .bin files; none: no sets"
    )
    val_sets: str = _neutral(
        "",
        "names of the validation sets to use, such as lfw,mine; empty: all in the folder; held_out: pairs of "
        "identities that are held out of the training data",
    )
    held_out_share: float = _neutral(
        0.1, "fraction of the identities held out by --val_sets held_out", above=0, below=1
    )
    use_mxrecord: bool = _neutral(False, "read train.rec even if there is an image folder")
    train_data_subset: bool = _neutral(False, "train on the paper's subset of MS1MV2, ms1mv2_train_subset_index.txt")
    train_data_index: str = _neutral(
        "",
        "CSV file of the training images to use, with their labels, as written by adaface audit --apply",
        host_specific=True,
    )
    swap_color_channel: bool = _neutral(False, "swap the red and blue channels of the training images")
    custom_num_class: int = _neutral(
        -1, "number of classes of the head, not fewer than in the data; -1: as many as in the data", minimum=-1
    )
    skip_bad_images: bool = _neutral(
        False, "count training images that cannot be decoded, and replace each by the next one that can"
    )
    num_workers: int = _neutral(
        16,
        "number of data loading processes per device, limited to the number of CPU cores",
        minimum=0,
        host_specific=True,
    )


@dataclass(frozen=True)
class RunOptions(Group):
    """Model, start and output of a run."""

    arch: str = option(
        "ir_18",
        "backbone: a name listed by adaface models, or timm:<name> for a model of timm",
        at_resume="fixed",
    )
    prefix: str = _neutral("default", "first part of the name of the run folder")
    output_dir: str = _neutral("experiments", "folder in which the run folders are created")
    run_folder: str = _neutral(
        "",
        "use this run folder instead of a new one; if it contains last.ckpt, the run is resumed from it",
        at_resume="own",
    )
    seed: int = option(42, "random seed of weights, shuffling, augmentation and dropout", minimum=0, below=_SEEDS)
    deterministic: bool = _neutral(False, "use deterministic kernels: identical results on the same hardware")
    fast_dev_run: bool = _neutral(False, "quick check: run one batch of training and one of validation")
    test_run: bool = _neutral(False, "trial run: limit each epoch to 50 batches")
    evaluate: bool = _neutral(
        False, "do not train: evaluate the model of --start_from_model_statedict on the validation sets"
    )
    resume_from_checkpoint: str = _neutral(
        "", "resume an interrupted run from this checkpoint (.ckpt), in its run folder", at_resume="own"
    )
    start_from_model_statedict: str = _neutral(
        "",
        "initialize the backbone from this checkpoint (.ckpt) or published model",
        at_resume="own",
    )
    color: str = _neutral(
        "",
        "color order that the network of --finetune or --start_from_model_statedict takes, for weights of another "
        "program, which do not store it",
        choices=("", "rgb", "bgr"),
    )
    finetune: str = _neutral(
        "",
        "fine-tune this checkpoint (.ckpt) or published model, and evaluate it before and after training, on "
        "identities held out of the training data if there are no validation sets; changes some defaults",
        host_specific=True,
    )
    checkpoint_every_steps: int = _neutral(
        0,
        "also write last.ckpt every N optimizer steps; 0: only after each validation and epoch",
        unit="optimizer steps",
        minimum=0,
    )
    save_all_models: bool = _neutral(False, "keep the checkpoint of every validation, not only the best and the last")
    use_wandb: bool = _neutral(False, "also log to Weights & Biases; requires the package wandb")
    stalled_after_steps: int = _neutral(
        5000,
        "warn once if the loss shows no learning after this many batches; 0: never",
        unit="batches",
        minimum=20,  # four windows of five losses
        off=0,
    )


@dataclass(frozen=True)
class DeviceOptions(Group):
    """Devices, processes, precision, memory."""

    gpus: int = _neutral(
        -1, "number of GPUs per machine; 0: train on the CPU; -1: all GPUs, or the CPU if there are none", minimum=-1
    )
    accelerator: str = _neutral(
        "auto", "device type; auto: chosen according to --gpus", choices=("auto", "cpu", "gpu", "mps")
    )
    devices: int = _neutral(
        0, "number of processes per machine, one per device; 0: chosen according to --gpus", minimum=0
    )
    num_nodes: int = option(1, "number of machines", minimum=1)
    distributed_backend: str = _neutral(
        "ddp", "strategy of training on several devices", choices=("ddp",), removed=("dp", "ddp2")
    )
    collective_timeout_sec: float = _neutral(
        600.0, "timeout after which a process stops waiting for the others", unit="seconds", above=0
    )
    use_16bit: bool = _neutral(False, "16-bit mixed precision: float16 on a GPU, bfloat16 on a CPU")
    precision: str = _neutral(
        "auto",
        "numerical precision; auto: chosen according to --use_16bit",
        choices=("auto", "32", "16-mixed", "bf16-mixed", "64"),
    )
    channels_last: str = _neutral(
        "auto",
        "channels-last memory layout of the backbone; auto: on, except on Apple GPUs",
        choices=("auto", "on", "off"),
    )
    compile: bool = _neutral(
        False,
        "compile the backbone with torch.compile: the first step is slow, later steps are faster; not with "
        "--gradient_checkpointing",
    )
    gradient_checkpointing: bool = _neutral(
        False,
        "recompute activations in the backward pass: less memory, a third more time, identical results "
        "(on a GPU with --deterministic)",
    )
    head_memory: str = _neutral(
        "auto",
        "fast stores batch x classes values for the backward pass, small recomputes them, with identical results "
        "(on a GPU with --deterministic); auto: fast if the values need at most a quarter of the free memory",
        choices=("auto", "fast", "small"),
    )
    head_sharding: str = _neutral(
        "auto",
        "shard the classes of the head over all processes; auto: on for more than 100,000 classes, or if the head would"
        " need more than a quarter of the memory",
        choices=("auto", "on", "off"),
    )
    check_memory: bool = _neutral(True, "do not start a run whose steps do not fit into memory", host_specific=True)
    sync_batchnorm: bool = _neutral(False, "compute batch norm statistics over the batches of all GPUs")
    gradient_compression: str = option(
        "off",
        "exchange the gradients of several processes in 16 bits: half of the traffic, at a loss of precision",
        choices=("off", "fp16", "bf16"),
    )
    matmul_precision: str = option(
        "highest",
        "precision of float32 matrix products and convolutions: high and medium use TF32 on GPUs that have it "
        "(PyTorch has no faster kernels for medium there); without effect on 16-bit precision",
        choices=("highest", "high", "medium"),
    )


@dataclass(frozen=True)
class OptimizerOptions(Group):
    """Optimizer, learning rate and duration of the training."""

    epochs: int = _neutral(24, "number of passes over the training data", minimum=1)
    batch_size: int = option(256, "images per batch, summed over all devices of a machine", unit="images", minimum=1)
    accumulate_grad_batches: int = option(
        1, "number of batches whose gradients are accumulated for one optimizer step", minimum=1
    )
    optimizer: str = option(
        "sgd", "optimizer; adamw needs an explicit --lr", choices=("sgd", "adamw"), at_resume="fixed"
    )
    lr: float = option(0.1, "peak learning rate; 1e-3 is usual for adamw", minimum=0)
    lr_base_batch_size: int = option(
        0,
        "linear scaling rule: number of images per optimizer step that --lr is meant for; --lr is scaled to the number "
        "of this run; 0: no scaling",
        unit="images",
        minimum=0,
    )
    lr_schedule: str = option(
        "multistep",
        "learning rate schedule: multistep drops at the milestones; cosine and poly decrease at every step, to 0",
        choices=("multistep", "cosine", "poly"),
    )
    lr_milestones: tuple[int, ...] = option(
        (8, 12, 14),
        "milestones: epochs after which the learning rate drops, such as 12,20,24",
        only_with=("lr_schedule", "multistep"),
    )
    lr_gamma: float = option(
        0.1, "learning rate decay factor at each milestone", minimum=0, only_with=("lr_schedule", "multistep")
    )
    lr_power: float = option(
        2.0,
        "exponent of the poly schedule: lr * (1 - completed fraction of the training) ** power",
        above=0,
        only_with=("lr_schedule", "poly"),
    )
    warmup_epochs: float = option(0.0, "number of epochs of linear learning rate warm-up", unit="epochs", minimum=0)
    momentum: float = option(0.9, "momentum of SGD", minimum=0, below=1, only_with=("optimizer", "sgd"))
    gradient_clip_val: float = option(
        0.0, "clip the gradient of backbone and head to this L2 norm; 0: do not clip", minimum=0
    )
    ema_decay: float = option(
        0.0,
        "decay of an exponential moving average (EMA) of the weights, such as 0.999; the average is evaluated and "
        "saved; 0: no average",
        minimum=0,
        below=1,
    )
    val_every_epochs: float = _neutral(
        0.0,
        "fraction of an epoch between two validations, such as 0.1, but at least 2 optimizer steps; 0: validate after "
        "each epoch, and in runs of up to four epochs ten times per epoch, at least 10 optimizer steps apart",
        unit="epochs",
        minimum=0,
        maximum=1,
    )
    early_stopping_patience: int = _neutral(
        0,
        "stop after this many consecutive epochs without a better mean validation accuracy; 0: never",
        unit="epochs",
        minimum=0,
    )
    weight_decay: float = option(
        5e-4, "weight decay of all parameters except batch norm; adamw needs more, such as 0.1", minimum=0
    )
    layer_lr_decay: float = option(
        1.0,
        "learning rate decay factor from each stage of a pretrained backbone to the stage before it",
        above=0,
        maximum=1,
        at_resume="fixed",
    )
    freeze_stages: int = option(
        0,
        "freeze the input layer and this many stages of a pretrained backbone; 0: freeze nothing",
        minimum=0,
        at_resume="fixed",
    )
    freeze_batch_norm: bool = option(False, "freeze the batch norms of a pretrained backbone", at_resume="fixed")

    def __post_init__(self) -> None:
        """Check each value by itself."""
        super().__post_init__()
        milestones = list(self.lr_milestones)
        if milestones != sorted(set(milestones)) or min(milestones, default=1) < 1:
            raise ValueError(f"--lr_milestones must be increasing epochs from 1 on, got {self.lr_milestones}")


@dataclass(frozen=True)
class HeadOptions(Group):
    """Margin head."""

    head: str = option(
        "adaface",
        "margin loss; the margins and their options are listed below",
        choices=tuple(MARGINS),
        at_resume="fixed",
    )
    m: float = option(0.5, "margin; 0.4 in the AdaFace paper", minimum=0)
    h: float = option(0.0, "AdaFace: concentration; 0.333 in the paper, 0 is CosFace", minimum=0)
    s: float = option(64.0, "scale of the logits", above=0)
    t_alpha: float = option(
        0.01, "AdaFace, CurricularFace: weight of the newest batch in the running statistics", minimum=0, maximum=1
    )
    batch_statistics: str = option(
        "global",
        "AdaFace, CurricularFace: compute statistics over the batches of all processes, or separately in each process, "
        "as in the official code",
        choices=("global", "process"),
    )
    l_margin: float = option(_PAPER["l_margin"], "MagFace: margin of images with norms up to --l_a", minimum=0)
    u_margin: float = option(_PAPER["u_margin"], "MagFace: margin of images with norms of --u_a or more", minimum=0)
    l_a: float = option(_PAPER["l_a"], "MagFace: feature norm at which the margin begins to grow", above=0)
    u_a: float = option(_PAPER["u_a"], "MagFace: feature norm at which the margin stops growing")
    lambda_g: float = option(_PAPER["lambda_g"], "MagFace: weight of the norm regularization", minimum=0)
    sub_centers: int = option(
        _PAPER["sub_centers"],
        "sub-center ArcFace: number of centers per class",
        minimum=1,
        maximum=MOST_CENTERS,
        at_resume="fixed",
    )
    m1: float = option(_PAPER["m1"], "combined margin: factor that multiplies the angle", above=0)
    m2: float = option(_PAPER["m2"], "combined margin: term added to the angle", unit="radians", minimum=0)
    m3: float = option(_PAPER["m3"], "combined margin: term subtracted from the cosine", minimum=0)
    sample_rate: float = option(
        1.0,
        "fraction of the classes used in a step: those of the batch and a random sample of the others; below 1, the "
        "head is sharded",
        above=0,
        maximum=1,
    )

    @property
    def margin_options(self) -> dict[str, float]:
        """The options that the chosen margin uses besides s."""
        return {name: getattr(self, name) for name in MARGINS[self.head].options}


@dataclass(frozen=True)
class AugmentationOptions(Group):
    """Augmentation."""

    low_res_augmentation_prob: float = _probability("probability of the low-resolution augmentation")
    crop_augmentation_prob: float = _probability("probability of the crop augmentation")
    photometric_augmentation_prob: float = _probability("probability of the photometric augmentation")
    mask_augmentation_prob: float = _probability("probability of a drawn face mask")
    cutout_augmentation_prob: float = _probability("probability of a gray square at a random place")
    blur_augmentation_prob: float = _probability("probability of Gaussian blur")
    motion_blur_augmentation_prob: float = _probability("probability of motion blur")
    noise_augmentation_prob: float = _probability("probability of Gaussian noise")
    grey_augmentation_prob: float = _probability("probability of conversion to grayscale")
    jpeg_augmentation_prob: float = _probability("probability of strong JPEG compression")

    @property
    def more_augmentations(self) -> dict[str, float]:
        """The probabilities of the augmentations that are not in the paper, by name."""
        from adaface.augmentation.more import MORE_AUGMENTATIONS  # OpenCV, which the command line does not need

        return {name: getattr(self, f"{name}_augmentation_prob") for name in MORE_AUGMENTATIONS}


@dataclass(frozen=True)
class Config:
    """The resolved options of one run; ``given`` names those set by the recipe or the command line.

    ``config["lr"]`` returns the value of an option without naming its group.
    """

    data: DataOptions = DataOptions()
    run: RunOptions = RunOptions()
    devices: DeviceOptions = DeviceOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    head: HeadOptions = HeadOptions()
    augmentation: AugmentationOptions = AugmentationOptions()
    given: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return getattr(getattr(self, GROUP_OF[name]), name)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with other values of some options, by name.

        Args:
            values: new values, of the options' types.

        Raises:
            ValueError: a value is outside of its option's range or choices.
        """
        of_group: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            of_group.setdefault(GROUP_OF[name], {})[name] = value
        changed: dict[str, Any] = {
            group: dataclasses.replace(getattr(self, group), **changes) for group, changes in of_group.items()
        }
        return dataclasses.replace(self, **changed)

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name, as plain values (lists for tuples)."""
        values = {name: self[name] for name in OPTIONS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def as_yaml(self) -> str:
        """Return the options as a recipe for ``--config``."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


GROUPS: dict[str, type[Group]] = {name: kind for name, kind in get_type_hints(Config).items() if name != "given"}
OPTIONS: dict[str, dataclasses.Field[Any]] = {
    one.name: one for group in GROUPS.values() for one in dataclasses.fields(group)
}
GROUP_OF = {one.name: name for name, group in GROUPS.items() for one in dataclasses.fields(group)}
ABOUT: dict[str, About] = {name: one.metadata["about"] for name, one in OPTIONS.items()}
HOST_SPECIFIC_OPTIONS = {name for name, about in ABOUT.items() if about.host_specific}
