"""Which values an option may have, and which options belong together: the checks of ``config.py``."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoint_folders import run_folder_of
from command_line import nearest
from held_out import HELD_OUT
from margin_head import MOST_CENTERS
from margins import HEADS
from published_models import published_by_name

if TYPE_CHECKING:  # config.py imports this module
    from config import Config

_FEWEST_STALLED_STEPS = 20  # four windows of five losses
_TOO_MANY = 2**31
_LONGEST_WAIT_SEC = 1e9  # a Python timedelta ends at 9e13


def check_ranges(config: "Config") -> None:
    """Refuse a value outside its range or choices.

    Args:
        config: with each value of its option's type.

    Raises:
        ValueError: says which option, its value, and what is expected.
    """
    options = _options(config)
    for name, option in options.items():
        choices = option.metadata["choices"]
        if choices and getattr(config, name) not in choices:
            raise ValueError(_bad_choice(name, getattr(config, name), choices))
    for name in (n for n in options if n.endswith("_prob")):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"--{name} is a probability in [0, 1], got {getattr(config, name)}")
    lowest = {
        "epochs": 1, "batch_size": 1, "accumulate_grad_batches": 1, "num_nodes": 1,
        "num_workers": 0, "gpus": 0, "devices": 0, "seed": 0, "custom_num_class": -1, "lr_base_batch_size": 0,
        "lr": 0.0, "lr_gamma": 0.0, "momentum": 0.0, "weight_decay": 0.0, "gradient_clip_val": 0.0,
        "warmup_epochs": 0.0, "m": 0.0, "h": 0.0, "checkpoint_every_steps": 0, "early_stopping_patience": 0,
        "freeze_stages": 0,
        "sub_centers": 1, "l_margin": 0.0, "u_margin": 0.0, "lambda_g": 0.0, "m2": 0.0, "m3": 0.0,
    }  # fmt: skip
    for name, bound in lowest.items():
        if not getattr(config, name) >= bound:
            raise ValueError(f"--{name} must be at least {bound}, got {getattr(config, name)}")
    if config.seed >= 2**32:
        raise ValueError(f"--seed must be below 2**32, got {config.seed}")
    if not 0.0 < config.sample_rate <= 1.0:
        raise ValueError(f"--sample_rate is a share of the classes in (0, 1], got {config.sample_rate}")
    if not 0.0 < config.held_out_share < 1.0:
        raise ValueError(f"--held_out_share is a share of the people in (0, 1), got {config.held_out_share}")
    if not 0.0 < config.layer_lr_decay <= 1.0:
        raise ValueError(f"--layer_lr_decay is a factor in (0, 1], got {config.layer_lr_decay}")
    for name in ("s", "lr_power", "collective_timeout_sec", "l_a", "m1"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} must be above 0, got {getattr(config, name)}")
    if config.momentum >= 1:
        raise ValueError(f"--momentum must be below 1, got {config.momentum}: from 1 on old gradients never fade")
    if not 0.0 <= config.ema_decay < 1.0:
        raise ValueError(f"--ema_decay is a share in [0, 1), as 0.999, got {config.ema_decay}")
    for name in options:
        value = getattr(config, name)
        if value in (math.inf, -math.inf):
            raise ValueError(f"--{name} must be a finite number, got {value}")
        if isinstance(value, int) and value >= _TOO_MANY and name != "seed":
            raise ValueError(f"--{name} must be below 2**31, got {value}")
    if config.collective_timeout_sec > _LONGEST_WAIT_SEC:
        raise ValueError(
            f"--collective_timeout_sec must be at most {_LONGEST_WAIT_SEC:,.0f} (30 years), "
            f"got {config.collective_timeout_sec:g}"
        )
    if config.stalled_after_steps and config.stalled_after_steps < _FEWEST_STALLED_STEPS:
        raise ValueError(
            f"--stalled_after_steps must be 0 (never) or at least {_FEWEST_STALLED_STEPS}, "
            f"got {config.stalled_after_steps}"
        )
    if not 0.0 <= config.t_alpha <= 1.0:
        raise ValueError(f"--t_alpha is a weight in [0, 1], got {config.t_alpha}")
    if not config.u_a > config.l_a or not config.u_margin >= config.l_margin:
        raise ValueError(
            "the margin grows from --l_margin at --l_a to --u_margin at --u_a, got "
            f"{config.l_margin} at {config.l_a} and {config.u_margin} at {config.u_a}"
        )
    if config.sub_centers > MOST_CENTERS:
        raise ValueError(f"--sub_centers must be at most {MOST_CENTERS}, got {config.sub_centers}")
    if list(config.lr_milestones) != sorted(set(config.lr_milestones)) or min(config.lr_milestones, default=1) < 1:
        raise ValueError(f"--lr_milestones must be increasing epochs from 1 on, got {config.lr_milestones}")


def check_combinations(config: "Config") -> None:
    """Refuse options that contradict each other.

    Args:
        config: of ``check_ranges``.

    Raises:
        ValueError: says which options, and which of them to give.
        FileNotFoundError: there is no such checkpoint.
    """
    if config.use_16bit and config.precision not in ("auto", "16-mixed", "bf16-mixed"):
        raise ValueError(f"--use_16bit contradicts --precision {config.precision}: give one of them")
    if config.accelerator == "cpu" and "gpus" in config.given and config.gpus > 0:
        raise ValueError(f"--accelerator cpu contradicts --gpus {config.gpus}: give --devices for CPU processes")
    if config.accelerator in ("gpu", "mps") and "gpus" in config.given and config.gpus == 0:
        raise ValueError(f"--accelerator {config.accelerator} contradicts --gpus 0")
    if "gpus" in config.given and config.gpus > 0 and config.devices not in (0, config.gpus):
        raise ValueError(f"--gpus {config.gpus} contradicts --devices {config.devices}: give one of them")
    if config.compile and config.gradient_checkpointing:
        raise ValueError(
            "--compile contradicts --gradient_checkpointing: the compiler decides itself what to compute again; "
            "give one of them"
        )
    sharding = "--head_sharding on" if config.head_sharding == "on" else f"--sample_rate {config.sample_rate}"
    if config.sample_rate < 1 and config.head_sharding == "off":
        raise ValueError(f"{sharding} contradicts --head_sharding off: classes are sampled in a sharded head alone")
    if config.batch_statistics == "process" and (config.sample_rate < 1 or config.head_sharding == "on"):
        raise ValueError(
            f"--batch_statistics process contradicts {sharding}: a sharded head sees the batch of all processes"
        )
    if config.train_data_index and config.train_data_subset:
        raise ValueError("--train_data_index and --train_data_subset both say which images to use: give one of them")
    _check_finetuning(config)
    if config.evaluate and not config.start_from_model_statedict:
        raise ValueError("--evaluate needs --start_from_model_statedict CHECKPOINT: the model to evaluate")
    if config.evaluate and config.resume_from_checkpoint:
        raise ValueError(
            "--evaluate contradicts --resume_from_checkpoint: name the model by --start_from_model_statedict"
        )
    if config.evaluate and config.run_folder:
        raise ValueError(
            "--evaluate contradicts --run_folder, which holds a training to go on with: --output_dir says where the "
            "results of an evaluation go"
        )
    if config.resume_from_checkpoint and config.run_folder:
        _check_same_folder(config)
    if config.resume_from_checkpoint and config.start_from_model_statedict:
        raise ValueError(
            "--resume_from_checkpoint restores all weights, --start_from_model_statedict the backbone only: "
            "give one of them"
        )
    for name in ("resume_from_checkpoint", "train_data_index"):
        path = getattr(config, name)
        if path and not Path(path).exists():
            raise FileNotFoundError(f"--{name}: there is no file {path}")
    for name in ("start_from_model_statedict", "finetune"):
        _check_model(name, getattr(config, name))


def _check_finetuning(config: "Config") -> None:
    if config.finetune and config.evaluate:
        raise ValueError(
            "--evaluate contradicts --finetune, which trains: --start_from_model_statedict names the model to evaluate"
        )
    if config.finetune and config.start_from_model_statedict:
        raise ValueError(
            "--finetune contradicts --start_from_model_statedict: both say which model to start from; give one of them"
        )
    options = _options(config)
    partly = [
        name
        for name in ("freeze_stages", "freeze_batch_norm", "layer_lr_decay")
        if getattr(config, name) != options[name].default
    ]
    # a run that is resumed has its backbone from there
    if partly and not (config.finetune or config.start_from_model_statedict or config.resume_from_checkpoint):
        raise ValueError(
            f"--{partly[0]} is for a pretrained backbone, this one starts at random: give --finetune CHECKPOINT (or "
            "--start_from_model_statedict)"
        )
    if config.evaluate and HELD_OUT in config.val_sets.split(","):
        raise ValueError(f"--val_sets {HELD_OUT} is cut from the training data, of which --evaluate reads none")


def _check_model(option: str, word: str) -> None:
    """Refuse a word that is neither a file nor the name of a published model."""
    if not word or word.startswith("hf:") or Path(word).exists():
        return
    if "/" in word or "\\" in word:
        raise FileNotFoundError(f"--{option}: there is no file {word}")
    try:
        published_by_name(word)
    except ValueError as error:
        raise FileNotFoundError(f"--{option}: there is no file {word}, and {error}") from None


def _check_same_folder(config: "Config") -> None:
    folder = run_folder_of(Path(config.resume_from_checkpoint))
    if folder.resolve() != Path(config.run_folder).resolve():
        raise ValueError(
            f"--resume_from_checkpoint goes on in its own folder, {folder}, which is not --run_folder "
            f"{config.run_folder}: leave one of them out"
        )


def check_optimisation(config: "Config") -> None:
    """Refuse optimiser and schedule options that contradict each other.

    Args:
        config: with the options of the checkpoint where a run is resumed.

    Raises:
        ValueError: an option that the chosen optimiser or schedule does not have, or a warm-up without an end.
    """
    owners = {
        "lr_milestones": ("lr_schedule", "multistep"),
        "lr_gamma": ("lr_schedule", "multistep"),
        "lr_power": ("lr_schedule", "poly"),
        "momentum": ("optimizer", "sgd"),
    }
    for name, (owner, needed) in owners.items():
        # a whole config.yaml gives every option: its default says nothing
        changed = name in config.given and getattr(config, name) != _options(config)[name].default
        if changed and getattr(config, owner) != needed:
            raise ValueError(
                f"--{name} is of --{owner} {needed}, got --{owner} {getattr(config, owner)}: give one of them"
            )
    if config.optimizer == "adamw" and "lr" not in config.given and not config.evaluate:
        raise ValueError(f"--optimizer adamw needs its own --lr, as 1e-3: the default {config.lr} suits SGD alone")
    if not config.warmup_epochs < config.epochs:
        raise ValueError(
            f"--warmup_epochs {config.warmup_epochs:g} must be below --epochs {config.epochs}: "
            "the warm-up would last to the end of the training"
        )


def check_head_options(config: "Config", given: Collection[str]) -> None:
    """Refuse options that the chosen margin does not read.

    Args:
        config: with the options of the checkpoint where a run is resumed.
        given: options that the user gave, now.

    Raises:
        ValueError: such an option is given a value that is not its default, for which there is no reader.
    """
    read = HEADS[config.head].options
    for name in sorted({name for margin in HEADS.values() for name in margin.options} - set(read)):
        if name in given and getattr(config, name) != _options(config)[name].default:
            readers = [head for head, margin in HEADS.items() if name in margin.options]
            raise ValueError(
                f"--{name} is read by {' and '.join(readers)} only, got --head {config.head}, which reads "
                f"{', '.join(f'--{option}' for option in read)}: leave --{name} out"
            )


def _options(config: "Config") -> dict[str, "dataclasses.Field[Any]"]:
    return {field.name: field for field in dataclasses.fields(config) if field.name != "given"}


def _bad_choice(name: str, got: Any, choices: Sequence[str]) -> str:
    if name == "distributed_backend" and got in ("dp", "ddp2"):
        return f"--distributed_backend {got} no longer exists in PyTorch Lightning: use ddp"
    return f"--{name} takes one of {', '.join(choices)}, got {got!r}; {nearest(str(got), choices)}"
