"""Checks of combinations of options. Single options are checked by their group."""

from collections.abc import Collection

from adaface.config.options import ABOUT, OPTIONS, Config, DeviceOptions, RunOptions
from adaface.heads.names import MARGINS


def check_combinations(config: Config) -> None:
    """Raise an error for contradictory options.

    Args:
        config: options as given by the user.

    Raises:
        ValueError: contradictory options; the message names them and a remedy.
    """
    _check_devices(config.devices)
    _check_head_sharding(config)
    _check_start(config.run)
    if config.data.train_data_index and config.data.train_data_subset:
        raise ValueError("--train_data_index and --train_data_subset both select images: give only one of them")
    partly = [
        name
        for name in ("freeze_stages", "freeze_batch_norm", "layer_lr_decay")
        if config[name] != OPTIONS[name].default
    ]
    # a resumed run takes its backbone from the checkpoint
    run = config.run
    if partly and not (run.finetune or run.start_from_model_statedict or run.resume_from_checkpoint):
        raise ValueError(
            f"--{partly[0]} requires a pretrained backbone, but this one is initialized randomly: give --finetune "
            "CHECKPOINT (or --start_from_model_statedict)"
        )


def _check_devices(options: DeviceOptions) -> None:
    if options.use_16bit and options.precision not in ("auto", "16-mixed", "bf16-mixed"):
        raise ValueError(f"--use_16bit contradicts --precision {options.precision}: give only one of them")
    if options.accelerator == "cpu" and options.gpus > 0:
        raise ValueError(f"--accelerator cpu contradicts --gpus {options.gpus}: give --devices for CPU processes")
    if options.accelerator in ("gpu", "mps") and options.gpus == 0:
        raise ValueError(f"--accelerator {options.accelerator} contradicts --gpus 0")
    if options.gpus > 0 and options.devices not in (0, options.gpus):
        raise ValueError(f"--gpus {options.gpus} contradicts --devices {options.devices}: give only one of them")
    if options.compile and options.gradient_checkpointing:
        raise ValueError(
            "--compile contradicts --gradient_checkpointing: the compiler itself decides what to recompute; give only "
            "one of them"
        )


def _check_head_sharding(config: Config) -> None:
    rate, sharding = config.head.sample_rate, config.devices.head_sharding
    cause = "--head_sharding on" if sharding == "on" else f"--sample_rate {rate}"
    if rate < 1 and sharding == "off":
        raise ValueError(f"{cause} contradicts --head_sharding off: only a sharded head can sample classes")
    if config.head.batch_statistics == "process" and (rate < 1 or sharding == "on"):
        raise ValueError(
            f"--batch_statistics process contradicts {cause}: a sharded head uses the batches of all processes"
        )


def _check_start(run: RunOptions) -> None:
    if run.finetune and run.evaluate:
        raise ValueError(
            "--evaluate contradicts --finetune, which trains: give the model to evaluate with "
            "--start_from_model_statedict"
        )
    if run.finetune and run.start_from_model_statedict:
        raise ValueError(
            "--finetune contradicts --start_from_model_statedict: both name the model to start from; give only one of "
            "them"
        )
    if run.evaluate and not run.start_from_model_statedict:
        raise ValueError("--evaluate needs --start_from_model_statedict CHECKPOINT: the model to evaluate")
    if run.evaluate and run.resume_from_checkpoint:
        raise ValueError(
            "--evaluate contradicts --resume_from_checkpoint: give the model to evaluate with "
            "--start_from_model_statedict"
        )
    if run.evaluate and run.run_folder:
        raise ValueError(
            "--evaluate contradicts --run_folder, which is the folder of a training run: set the folder for the "
            "results of an evaluation with --output_dir"
        )
    if run.resume_from_checkpoint and run.start_from_model_statedict:
        raise ValueError(
            "--resume_from_checkpoint restores all weights, --start_from_model_statedict only the backbone: give only "
            "one of them"
        )


def check_optimizer(config: Config) -> None:
    """Raise an error for contradictory options of optimizer and learning rate schedule.

    Args:
        config: options, including those of the checkpoint if a run is resumed.

    Raises:
        ValueError: an option that the chosen optimizer or schedule does not use, or a warm-up as long as the training.
    """
    for name, about in ABOUT.items():
        # a complete config.yaml sets every option, so a default value is not a contradiction
        if about.only_with is None or name not in config.given or config[name] == OPTIONS[name].default:
            continue
        owner, needed = about.only_with
        if config[owner] != needed:
            raise ValueError(f"--{name} requires --{owner} {needed}, got --{owner} {config[owner]}")
    options = config.optimizer
    if options.optimizer == "adamw" and "lr" not in config.given and not config.run.evaluate:
        raise ValueError(f"--optimizer adamw needs an explicit --lr, such as 1e-3: the default {options.lr} is for SGD")
    if not options.warmup_epochs < options.epochs:
        raise ValueError(
            f"--warmup_epochs {options.warmup_epochs:g} must be below --epochs {options.epochs}: "
            "the warm-up would last until the end of the training"
        )


def check_head_options(config: Config, given: Collection[str]) -> None:
    """Raise an error for options that the chosen margin does not use.

    Args:
        config: options, including those of the checkpoint if a run is resumed.
        given: options given by the user for this start.

    Raises:
        ValueError: such an option has a value other than its default.
    """
    head = config.head
    if not head.u_a > head.l_a or not head.u_margin >= head.l_margin:
        raise ValueError(
            "the margin must grow from --l_margin at --l_a to --u_margin at --u_a, got "
            f"{head.l_margin} at {head.l_a} and {head.u_margin} at {head.u_a}"
        )
    used = MARGINS[head.head].options
    for name in sorted({name for margin in MARGINS.values() for name in margin.options} - set(used)):
        if name in given and config[name] != OPTIONS[name].default:
            readers = [margin_name for margin_name, margin in MARGINS.items() if name in margin.options]
            raise ValueError(
                f"--{name} is only used by {' and '.join(readers)}, got --head {head.head}, which uses "
                f"{', '.join(f'--{option}' for option in used)}: leave out --{name}"
            )
