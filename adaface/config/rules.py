"""Which options go together: the checks that concern several of them. Each by itself is checked by its group."""

from collections.abc import Collection

from adaface.config.options import ABOUT, OPTIONS, Config, DeviceOptions, RunOptions
from adaface.heads.margins import HEADS


def check_combinations(config: Config) -> None:
    """Refuse options that contradict each other.

    Args:
        config: as it was given.

    Raises:
        ValueError: says which options, and which of them to give.
    """
    _check_devices(config.devices, gpus_given="gpus" in config.given)
    _check_head_sharding(config)
    _check_start(config.run)
    if config.data.train_data_index and config.data.train_data_subset:
        raise ValueError("--train_data_index and --train_data_subset both say which images to use: give one of them")
    partly = [
        name
        for name in ("freeze_stages", "freeze_batch_norm", "layer_lr_decay")
        if config[name] != OPTIONS[name].default
    ]
    # a run that is resumed has its backbone from there
    run = config.run
    if partly and not (run.finetune or run.start_from_model_statedict or run.resume_from_checkpoint):
        raise ValueError(
            f"--{partly[0]} is for a pretrained backbone, this one starts at random: give --finetune CHECKPOINT (or "
            "--start_from_model_statedict)"
        )


def _check_devices(options: DeviceOptions, *, gpus_given: bool) -> None:
    if options.use_16bit and options.precision not in ("auto", "16-mixed", "bf16-mixed"):
        raise ValueError(f"--use_16bit contradicts --precision {options.precision}: give one of them")
    if options.accelerator == "cpu" and gpus_given and options.gpus > 0:
        raise ValueError(f"--accelerator cpu contradicts --gpus {options.gpus}: give --devices for CPU processes")
    if options.accelerator in ("gpu", "mps") and gpus_given and options.gpus == 0:
        raise ValueError(f"--accelerator {options.accelerator} contradicts --gpus 0")
    if gpus_given and options.gpus > 0 and options.devices not in (0, options.gpus):
        raise ValueError(f"--gpus {options.gpus} contradicts --devices {options.devices}: give one of them")
    if options.compile and options.gradient_checkpointing:
        raise ValueError(
            "--compile contradicts --gradient_checkpointing: the compiler decides itself what to compute again; "
            "give one of them"
        )


def _check_head_sharding(config: Config) -> None:
    rate, sharding = config.head.sample_rate, config.devices.head_sharding
    cause = "--head_sharding on" if sharding == "on" else f"--sample_rate {rate}"
    if rate < 1 and sharding == "off":
        raise ValueError(f"{cause} contradicts --head_sharding off: classes are sampled in a sharded head alone")
    if config.head.batch_statistics == "process" and (rate < 1 or sharding == "on"):
        raise ValueError(
            f"--batch_statistics process contradicts {cause}: a sharded head sees the batch of all processes"
        )


def _check_start(run: RunOptions) -> None:
    if run.finetune and run.evaluate:
        raise ValueError(
            "--evaluate contradicts --finetune, which trains: --start_from_model_statedict names the model to evaluate"
        )
    if run.finetune and run.start_from_model_statedict:
        raise ValueError(
            "--finetune contradicts --start_from_model_statedict: both say which model to start from; give one of them"
        )
    if run.evaluate and not run.start_from_model_statedict:
        raise ValueError("--evaluate needs --start_from_model_statedict CHECKPOINT: the model to evaluate")
    if run.evaluate and run.resume_from_checkpoint:
        raise ValueError(
            "--evaluate contradicts --resume_from_checkpoint: name the model by --start_from_model_statedict"
        )
    if run.evaluate and run.run_folder:
        raise ValueError(
            "--evaluate contradicts --run_folder, which is the folder of a training: --output_dir says where the "
            "results of an evaluation go"
        )
    if run.resume_from_checkpoint and run.start_from_model_statedict:
        raise ValueError(
            "--resume_from_checkpoint restores all weights, --start_from_model_statedict the backbone only: "
            "give one of them"
        )


def check_optimizer(config: Config) -> None:
    """Refuse optimizer and schedule options that contradict each other.

    Args:
        config: with the options of the checkpoint where a run is resumed.

    Raises:
        ValueError: an option that the chosen optimizer or schedule does not have, or a warm-up without an end.
    """
    for name, about in ABOUT.items():
        # a whole config.yaml gives every option: its default says nothing
        if about.only_with is None or name not in config.given or config[name] == OPTIONS[name].default:
            continue
        owner, needed = about.only_with
        if config[owner] != needed:
            raise ValueError(f"--{name} is of --{owner} {needed}, got --{owner} {config[owner]}: give one of them")
    options = config.optimizer
    if options.optimizer == "adamw" and "lr" not in config.given and not config.run.evaluate:
        raise ValueError(f"--optimizer adamw needs its own --lr, as 1e-3: the default {options.lr} suits SGD alone")
    if not options.warmup_epochs < options.epochs:
        raise ValueError(
            f"--warmup_epochs {options.warmup_epochs:g} must be below --epochs {options.epochs}: "
            "the warm-up would last to the end of the training"
        )


def check_head_options(config: Config, given: Collection[str]) -> None:
    """Refuse options that the chosen margin does not use.

    Args:
        config: with the options of the checkpoint where a run is resumed.
        given: options that the user gave, now.

    Raises:
        ValueError: such an option is given a value that is not its default.
    """
    head = config.head
    if not head.u_a > head.l_a or not head.u_margin >= head.l_margin:
        raise ValueError(
            "the margin grows from --l_margin at --l_a to --u_margin at --u_a, got "
            f"{head.l_margin} at {head.l_a} and {head.u_margin} at {head.u_a}"
        )
    used = HEADS[head.head].options
    for name in sorted({name for margin in HEADS.values() for name in margin.options} - set(used)):
        if name in given and config[name] != OPTIONS[name].default:
            readers = [margin_name for margin_name, margin in HEADS.items() if name in margin.options]
            raise ValueError(
                f"--{name} is read by {' and '.join(readers)} only, got --head {head.head}, which reads "
                f"{', '.join(f'--{option}' for option in used)}: leave --{name} out"
            )
