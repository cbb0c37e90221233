"""Every option of a training run: name, type, default and help. The only home of a default.

Values come from the defaults below, then from a recipe (``--config recipe.yaml``, the same keys), then from
the command line; what comes later wins. Unknown keys, abbreviations and bad values are refused in both, with
the nearest match. Names and meanings are those of the official AdaFace repository; what it lacks
(``accelerator``, ``devices``, ``precision``, ...) is marked "(ours)" below.

Differs from the official code: ``--weight_decay`` is used (there it is ignored, and 5e-4 is what is used in
its place, so 5e-4 is the default here), and a misspelt option is an error (there it reads as None).
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from command_line import Parser, nearest
from margins import HEADS
from more_augmentations import MORE_AUGMENTATIONS
from option_rules import check_combinations, check_head_options, check_optimisation, check_ranges

Action = typing.Literal["run", "plan", "print_config"]

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_PAPER = {name: value for margin in HEADS.values() for name, value in margin.options.items()}


def _option(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


@dataclass(frozen=True)
class Config:
    """The resolved options of one run; ``given`` names those set by the recipe or the command line."""

    # data
    data_root: str = _option("", "folder that the two data paths are relative to")
    train_data_path: str = _option(
        "faces_emore/imgs", "training images: image folder, or folder with train.rec or train_0.rec, ...; several: a,b"
    )
    val_data_path: str = _option("faces_emore", "folder of the validation sets (converted, or .bin)")
    val_sets: str = _option(
        "", "validation sets to use, as lfw,mine; held_out: pairs of people held out of the training data (ours)"
    )
    held_out_share: float = _option(0.1, "share of the people that --val_sets held_out keeps out of training (ours)")
    use_mxrecord: bool = _option(False, "train straight from train.rec even where an image folder exists")
    train_data_subset: bool = _option(False, "train on the paper's subset list (ms1mv2_train_subset_index.txt)")
    train_data_index: str = _option(
        "", "train on the images that this file uses, as whose it says; written by convert.py --audit --apply (ours)"
    )
    swap_color_channel: bool = _option(False, "the training images on disk have red and blue swapped")
    custom_num_class: int = _option(
        -1, "number of classes of the head, at least that of the data; -1: that of the data"
    )
    skip_bad_images: bool = _option(False, "count and replace training images that cannot be decoded (ours)")
    num_workers: int = _option(16, "data loading processes per device, at most the processor cores")
    # run
    prefix: str = _option("default", "first part of the run folder's name")
    output_dir: str = _option("experiments", "folder of the run folders (ours)")
    run_folder: str = _option(
        "", "folder of this run, in place of a new one: begun there, or gone on with from its last.ckpt (ours)"
    )
    seed: int = _option(42, "seed of weights, shuffling, augmentation and dropout")
    deterministic: bool = _option(False, "deterministic kernels: the same bits on the same hardware (ours)")
    fast_dev_run: bool = _option(False, "one batch of training and validation, to see that everything works")
    test_run: bool = _option(False, "50 training batches per epoch, for a trial")
    evaluate: bool = _option(False, "no training: evaluate --start_from_model_statedict on the validation sets")
    resume_from_checkpoint: str = _option("", "checkpoint (.ckpt) of an interrupted run to go on from, in its folder")
    start_from_model_statedict: str = _option(
        "", "checkpoint (.ckpt), or name of a published model, whose backbone weights to start from"
    )
    finetune: str = _option(
        "", "checkpoint, or name of a published model, to fine-tune: evaluated before and after, on held_out people "
        "where there are no validation sets; has defaults of its own (ours)"
    )  # fmt: skip
    checkpoint_every_steps: int = _option(
        0, "write last.ckpt after every so many steps of the optimiser too; 0: after validations and epochs (ours)"
    )
    save_all_models: bool = _option(False, "keep the checkpoint of every validation, not only best and last")
    use_wandb: bool = _option(False, "log to Weights & Biases too (pip install wandb)")
    # devices
    gpus: int = _option(1, "number of GPUs per node; 0 trains on the CPU")
    accelerator: str = _option("auto", "device type; auto follows --gpus (ours)", ("auto", "cpu", "gpu", "mps"))
    devices: int = _option(0, "number of processes per node, one a device; 0 follows --gpus (ours)")
    num_nodes: int = _option(1, "number of machines (ours)")
    distributed_backend: str = _option("ddp", "how several devices work together", ("ddp",))
    collective_timeout_sec: float = _option(
        600.0, "seconds that a process waits for the others before it gives up (ours)"
    )
    use_16bit: bool = _option(False, "16-bit mixed precision (float16 on a GPU, bfloat16 on a CPU)")
    precision: str = _option(
        "auto",
        "arithmetic; auto follows --use_16bit (ours)",
        ("auto", "32", "16-mixed", "bf16-mixed", "64"),
    )
    channels_last: str = _option(
        "auto", "memory layout of the backbone; auto: on but for Apple GPUs (ours)", ("auto", "on", "off")
    )
    compile: bool = _option(False, "compile the backbone (torch.compile): a slow first step, then faster ones (ours)")
    gradient_checkpointing: bool = _option(
        False, "keep a fraction of the backbone's activations: less memory, a third more time, the same bits (ours)"
    )
    head_memory: str = _option(
        "auto",
        "fast keeps images x classes numbers for the backward pass, small computes them again: the same bits (ours)",
        ("auto", "fast", "small"),
    )
    head_sharding: str = _option(
        "auto",
        "share the head's classes out over all processes; auto: where it would take over a quarter of memory (ours)",
        ("auto", "on", "off"),
    )
    sync_batchnorm: bool = _option(False, "batch norm over the batches of all GPUs (ours)")
    # optimisation
    epochs: int = _option(24, "passes over the training data")
    batch_size: int = _option(256, "images per step, over all devices of a node")
    accumulate_grad_batches: int = _option(1, "steps whose gradients are summed before the weights change")
    optimizer: str = _option("sgd", "what moves the weights; adamw wants its own --lr (ours)", ("sgd", "adamw"))
    lr: float = _option(0.1, "learning rate, the highest of the schedule; 1e-3 is usual for adamw")
    lr_base_batch_size: int = _option(
        0, "linear scaling: --lr suits this many images per update, multiply it by those of this run; 0: off (ours)"
    )
    lr_schedule: str = _option(
        "multistep",
        "how the learning rate falls: at milestones, or at each step, to 0 at the end (ours)",
        ("multistep", "cosine", "poly"),
    )
    lr_milestones: tuple[int, ...] = _option((8, 12, 14), "epochs after which the learning rate drops, as 12,20,24")
    lr_gamma: float = _option(0.1, "factor of the learning rate at each milestone")
    lr_power: float = _option(2.0, "power of --lr_schedule poly: lr * (1 - share of the training) ** power (ours)")
    warmup_epochs: float = _option(0.0, "epochs in which the learning rate first rises, step by step (ours)")
    momentum: float = _option(0.9, "momentum of SGD")
    gradient_clip_val: float = _option(0.0, "largest L2 norm of the gradient of backbone and head; 0: any (ours)")
    ema_decay: float = _option(
        0.0, "decay of a moving average of the weights, as 0.999: it is evaluated and kept; 0: no average (ours)"
    )
    early_stopping_patience: int = _option(
        0, "stop after so many epochs in a row without a better mean validation accuracy; 0: never (ours)"
    )
    weight_decay: float = _option(5e-4, "weight decay of all but the batch-norm parameters; adamw wants more, as 0.1")
    layer_lr_decay: float = _option(
        1.0, "factor of the learning rate from each stage of a pretrained backbone to the one before it (ours)"
    )
    freeze_stages: int = _option(
        0, "input layer and first stages, of a pretrained backbone, that training leaves as they are; 0: none (ours)"
    )
    freeze_batch_norm: bool = _option(False, "training leaves a pretrained backbone's batch norms as they are (ours)")
    stalled_after_steps: int = _option(
        5000, "batches after which to warn, once, when the loss shows no learning; 0: never (ours)"
    )
    # model
    arch: str = _option(
        "ir_18", "backbone, a name that python architecture_table.py lists, or timm:<name>, a network of timm"
    )
    head: str = _option("adaface", "margin of the loss; what each is, and which options it reads: below", tuple(HEADS))
    m: float = _option(0.5, "margin; the paper's AdaFace uses 0.4")
    h: float = _option(0.0, "AdaFace: concentration; the paper uses 0.333 (0 makes it CosFace)")
    s: float = _option(64.0, "scale of the logits")
    t_alpha: float = _option(0.01, "AdaFace, CurricularFace: weight of the newest batch in the running statistics")
    batch_statistics: str = _option(
        "global",
        "AdaFace, CurricularFace: statistics of all processes' batches, or of each one's own as officially (ours)",
        ("global", "process"),
    )
    l_margin: float = _option(_PAPER["l_margin"], "MagFace: margin of images with norms up to --l_a (ours)")
    u_margin: float = _option(_PAPER["u_margin"], "MagFace: margin of images with norms from --u_a on (ours)")
    l_a: float = _option(_PAPER["l_a"], "MagFace: feature norm from which the margin grows (ours)")
    u_a: float = _option(_PAPER["u_a"], "MagFace: feature norm up to which the margin grows (ours)")
    lambda_g: float = _option(_PAPER["lambda_g"], "MagFace: weight of what pulls the norms up (ours)")
    sub_centers: int = _option(_PAPER["sub_centers"], "sub-center ArcFace: centers of each class (ours)")
    m1: float = _option(_PAPER["m1"], "combined margin: factor of the angle (ours)")
    m2: float = _option(_PAPER["m2"], "combined margin: added to the angle (ours)")
    m3: float = _option(_PAPER["m3"], "combined margin: taken off the cosine (ours)")
    sample_rate: float = _option(
        1.0,
        "share of the classes in a step, in (0, 1]: those of the batch, random others; below 1: sharded head (ours)",
    )
    # augmentation
    low_res_augmentation_prob: float = _option(0.0, "probability of the low-resolution augmentation, in [0, 1]")
    crop_augmentation_prob: float = _option(0.0, "probability of the crop augmentation, in [0, 1]")
    photometric_augmentation_prob: float = _option(0.0, "probability of the photometric augmentation, in [0, 1]")
    mask_augmentation_prob: float = _option(0.0, "probability of a drawn face mask, in [0, 1] (ours)")
    cutout_augmentation_prob: float = _option(0.0, "probability of a grey square anywhere, in [0, 1] (ours)")
    blur_augmentation_prob: float = _option(0.0, "probability of a Gaussian blur, in [0, 1] (ours)")
    motion_blur_augmentation_prob: float = _option(0.0, "probability of a motion blur, in [0, 1] (ours)")
    noise_augmentation_prob: float = _option(0.0, "probability of Gaussian noise, in [0, 1] (ours)")
    grey_augmentation_prob: float = _option(0.0, "probability of a face without colours, in [0, 1] (ours)")
    jpeg_augmentation_prob: float = _option(0.0, "probability of a strong JPEG compression, in [0, 1] (ours)")

    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse values that no run can use."""
        check_ranges(self)
        check_combinations(self)
        if not self.resume_from_checkpoint:  # then the options of the checkpoint are still to come
            check_optimisation(self)
            check_head_options(self, self.given)

    @property
    def margin_options(self) -> dict[str, float]:
        """The options that the chosen margin reads beside those of the official code."""
        return {name: getattr(self, name) for name in HEADS[self.head].options if name not in ("m", "h", "t_alpha")}

    @property
    def more_augmentations(self) -> dict[str, float]:
        """The probabilities of the augmentations beyond the paper's, by their names."""
        return {name: getattr(self, f"{name}_augmentation_prob") for name in MORE_AUGMENTATIONS}

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain values (lists for tuples), in declaration order."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def as_yaml(self) -> str:
        """Return the options as a recipe that ``--config`` takes."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


# of --finetune, in place of the above: less and smaller steps, and the paper's margin
FINETUNE_DEFAULTS: dict[str, Any] = {"epochs": 8, "batch_size": 64, "lr": 0.01, "lr_schedule": "cosine"}
FINETUNE_MARGIN: dict[str, Any] = {"m": 0.4, "h": 0.333}  # of AdaFace
_OF_OTHER_SCHEDULES = ("lr_milestones", "lr_gamma", "lr_power")

# the first option of each group of --help
_GROUPS = {
    "data_root": "data",
    "prefix": "run",
    "gpus": "devices",
    "epochs": "optimisation",
    "arch": "model",
    "low_res_augmentation_prob": "augmentation",
}
OPTIONS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Config) if f.name != "given"}
_TYPES = typing.get_type_hints(Config)


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("expected true or false")


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("expected a whole number")
    return int(value)


def _to_float(value: Any) -> float:
    # PyYAML reads 5e-4 as a string: YAML 1.1 wants 5.0e-4
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return float(value)


def _to_ints(value: Any) -> tuple[int, ...]:
    parts = [value] if isinstance(value, int) else value
    if isinstance(value, str):
        parts = [part for part in value.replace(" ", "").strip("[]()").split(",") if part]
    return tuple(_to_int(part) for part in parts or ())


def _to_str(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        raise ValueError("expected a text")
    return str(value)


_CONVERTERS: dict[Any, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str}


def convert_value(name: str, value: Any) -> Any:
    """Convert a value from the command line or a recipe to the type of its option.

    Args:
        name: option name, without dashes.
        value: text, or a YAML value.

    Raises:
        ValueError: the value does not fit the option's type.
    """
    kind = _TYPES[name]
    converter = _to_ints if isinstance(kind, types.GenericAlias) else _CONVERTERS[kind]
    try:
        return converter(value)
    except (TypeError, ValueError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(
            kind, "whole numbers such as 12,20,24"
        )
        raise ValueError(f"--{name} takes {expected}, got {value!r}") from error


def _margins_explained() -> str:
    """Return a line for each margin: the first of its docstring, and its options."""
    lines = ["margins (--head), each with --s and:"]
    for name, margin in HEADS.items():
        what = (margin.__doc__ or "").partition("\n")[0]
        lines.append(f"  {name}: {what} ({', '.join(f'--{option}' for option in margin.options)})")
    return "\n".join(lines)


def _parser() -> Parser:
    parser = Parser(
        prog="main.py",
        usage="main.py [--config RECIPE] [--option value ...]",
        description="Train and evaluate a face recognition model with AdaFace (or ArcFace, CosFace, MagFace, ...).",
        epilog=f"{_margins_explained()}\n\n"
        "Every option is also a key of a recipe (YAML); the command line wins over the recipe.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="RECIPE", default="", help="YAML file with any of the options below")
    parser.add_argument("--print_config", action="store_true", help="print the resolved options as YAML and stop")
    parser.add_argument("--plan", action="store_true", help="print memory, steps and time of the training and stop")
    group: argparse._ActionsContainer = parser
    for name, option in OPTIONS.items():
        group = parser.add_argument_group(_GROUPS[name]) if name in _GROUPS else group
        default, choices = option.default, option.metadata["choices"]
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = (
            f"{option.metadata['help']} (default: {shown!r})"
            if shown == ""
            else f"{option.metadata['help']} (default: {shown})"
        )
        flag: dict[str, Any] = {"default": None, "help": text.replace("%", "%%")}
        if _TYPES[name] is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **flag)
        else:
            kind = _TYPES[name].__name__.upper()
            metavar = "{" + ",".join(choices) + "}" if choices else kind.replace("TUPLE", "INT,INT,...")
            group.add_argument(f"--{name}", metavar=metavar, **flag)
    return parser


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe and return its options, converted.

    Args:
        path: YAML file with option names as keys.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, not a mapping, an unknown key, or a value of the wrong type.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config: there is no recipe {path}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `option: value` lines, got a {type(values).__name__}")
    for key in values:
        if key not in OPTIONS:
            raise ValueError(f"{path}: unknown option {key!r}; {nearest(str(key), list(OPTIONS))}")
    try:
        return {key: convert_value(key, value) for key, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def finetune_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that a fine-tuning has in place of the ordinary ones.

    Args:
        values: what was given, by option; it wins.
    """
    if not values.get("finetune"):
        return {}
    margin = FINETUNE_MARGIN if values.get("head", Config.head) == "adaface" else {}
    of_another = any(name in values for name in _OF_OTHER_SCHEDULES)
    return {
        name: value
        for name, value in (FINETUNE_DEFAULTS | margin).items()
        if name not in values and not (name == "lr_schedule" and of_another)
    }


def parse(arguments: Sequence[str]) -> tuple[Config, Action]:
    """Parse a command line into a checked configuration.

    Args:
        arguments: the words after the program's name.

    Returns:
        The configuration, and what to do with it.

    Raises:
        ValueError: an unknown option, a bad value, or options that contradict each other.
        FileNotFoundError: a recipe or checkpoint that does not exist.
    """
    parsed = _parser().parse(arguments)
    values = read_recipe(parsed.config) if parsed.config else {}
    for name in OPTIONS:
        if (value := getattr(parsed, name)) is not None:
            values[name] = convert_value(name, value)
    config = Config(**values, **finetune_defaults(values), given=frozenset(values))
    if parsed.plan and config.evaluate:
        raise ValueError("--plan is for a training, --evaluate does none: give one of them")
    return config, "print_config" if parsed.print_config else "plan" if parsed.plan else "run"
