"""What a training is made of, built from its options: data, module, trainer, and what all processes have to agree on.

The only rooms that see the whole configuration are this one and ``main.py``, which runs what is built here.
"""

from pathlib import Path
from typing import Any

import plan
from backbone import EMBEDDING_SIZE
from checkpoint_weights import check_fits, load_backbone
from checkpointing import CheckpointKeeper
from checkpoints import load_checkpoint
from config import Config
from data_module import FaceDataModule
from devices import DevicePlan, device_memory, divide_threads
from evaluation.before_after import comparable_sets
from execution import configure_backbone
from finetuning import HeadFromClassMeans, find_pretrained, fingerprint_to_finetune
from held_out import HELD_OUT
from lightning_setup import pl
from optimization import scaled_learning_rate
from partial_fc import choose_sharding
from process_watch import ProcessWatch
from processes import Launch, say
from registry import check_architecture
from run_folder import describe_environment
from trainer import batches_per_epoch, build_strategy, build_trainer, validation_interval
from training_module import FaceRecognitionModule

_OF_ONE_HOST = {"data_root", "num_workers", "train_data_index", "finetune"}  # may differ between the machines of a run


def build(config: Config, devices: DevicePlan) -> tuple[FaceDataModule, FaceRecognitionModule, bool]:
    """Open the data and build the module, or say why this cannot be done.

    Args:
        config: resolved.
        devices: to train on.

    Returns:
        Data, module, and whether the head is sharded.

    Raises:
        FileNotFoundError: no data, or no checkpoint to start from.
        ValueError: options, data or checkpoint that do not go together.
        RuntimeError: something that the machine lacks.
    """
    if config.sync_batchnorm and devices.accelerator != "gpu":
        raise ValueError(
            f"--sync_batchnorm is for GPUs, this run is on {devices.accelerator}, where PyTorch has no synchronised "
            "batch norm: leave it out"
        )
    divide_threads(devices.devices)
    check_architecture(config.arch)
    pl.seed_everything(config.seed, verbose=False)
    data = open_data(config, devices)
    sharded, notes = choose_head_sharding(config, devices, data)
    module = build_module(config, data, sharded)
    for note in notes + configure_backbone(
        module,
        accelerator=devices.accelerator,
        processes=devices.devices,
        batch_size=data.batch_size_per_process,
        channels_last=config.channels_last,
        compile_backbone=config.compile,
        gradient_checkpointing=config.gradient_checkpointing,
        head_memory=config.head_memory,
    ):
        say(f"note: {note}")
    return data, module, sharded


def facts_of(
    config: Config, devices: DevicePlan, data: FaceDataModule, module: FaceRecognitionModule
) -> dict[str, Any]:
    """Return what has to be the same in all processes, by name; check the checkpoint to go on with.

    Args:
        config: resolved.
        devices: to train on.
        data: opened.
        module: built for it.

    Raises:
        ValueError: the checkpoint does not fit.
    """
    facts = {f"--{name}": value for name, value in config.as_dict().items() if name not in _OF_ONE_HOST}
    facts["the model to fine-tune"] = module.metadata["pretrained"]
    facts["the device"] = f"{devices.accelerator}, {devices.precision}"
    facts["the fingerprint of the training data"] = data.fingerprint()
    # auto goes by each machine's memory
    facts["the head's sharding (--head_sharding on or off says it for all)"] = module.sharded
    if config.resume_from_checkpoint:
        checkpoint = load_checkpoint(config.resume_from_checkpoint)
        check_fits(checkpoint, module.checkpoint_shapes(), config.resume_from_checkpoint, module.sub_centers)
        _check_same_model(config, checkpoint["adaface"].get("pretrained", ""), module.metadata["pretrained"])
        if checkpoint["adaface"].get("data_fingerprint") not in (None, data.fingerprint()):
            if HELD_OUT in data.pair_sets:
                raise ValueError(
                    f"the people held out are not those of the run of {config.resume_from_checkpoint}, which may have "
                    "been trained on these: go on with the same data, --seed and --held_out_share, or start a new run"
                )
            say("note: the training data is not what the run began with: an epoch goes on in another order")
        position = checkpoint["adaface"]["position"]
        facts["the position of the checkpoint"] = position
        if position["epoch"] >= config.epochs:
            say(f"note: the run of {config.resume_from_checkpoint} has done its {config.epochs} epochs: only tested")
    return facts


def _check_same_model(config: Config, before: str, now: str) -> None:
    """Raise ValueError where a run that goes on would be compared with another model than it began from."""
    if before != now:
        raise ValueError(
            f"--finetune {config.finetune} is not the model that the run of {config.resume_from_checkpoint} began "
            "from: give that one, or start a new run"
        )


def plan_lines(
    config: Config, devices: DevicePlan, launch: Launch, data: FaceDataModule, module: FaceRecognitionModule
) -> list[str]:
    """Return what the training would take, as lines.

    Args:
        config: resolved.
        devices: to train on.
        launch: who started the processes.
        data: opened.
        module: built for it.
    """
    schedule = plan.schedule(
        data,
        epochs=1 if config.fast_dev_run else config.epochs,
        steps_per_epoch=epoch_batches(config, data),
        val_check_interval=_interval(config, data),
        batch_size=config.batch_size * config.num_nodes,
        world_size=devices.devices * config.num_nodes,
        accumulate_grad_batches=config.accumulate_grad_batches,
    )
    return list(plan.lines(module, data, devices, launch, schedule, config.num_nodes, _strategy(config, devices)))


def open_data(config: Config, devices: DevicePlan) -> FaceDataModule:
    """Find, open and check the data of a run.

    Args:
        config: resolved.
        devices: to train on.

    Raises:
        FileNotFoundError: data are not there.
        ValueError: what is there is damaged, or does not fit the options.
    """
    data = FaceDataModule(
        data_root=config.data_root,
        train_data_path=config.train_data_path,
        val_data_path=config.val_data_path,
        use_mxrecord=config.use_mxrecord,
        train_data_subset=config.train_data_subset,
        train_data_index=config.train_data_index,
        swap_color_channel=config.swap_color_channel,
        batch_size=config.batch_size,
        devices=devices.devices,
        num_nodes=config.num_nodes,
        num_workers=config.num_workers,
        seed=config.seed,
        low_res_augmentation_prob=config.low_res_augmentation_prob,
        crop_augmentation_prob=config.crop_augmentation_prob,
        photometric_augmentation_prob=config.photometric_augmentation_prob,
        more_augmentations=config.more_augmentations,
        custom_num_class=config.custom_num_class,
        skip_bad_images=config.skip_bad_images,
        evaluate_only=config.evaluate,
        val_sets=config.val_sets,
        held_out_share=config.held_out_share,
        needs_validation=bool(config.finetune),
    )
    data.open()
    if config.finetune:
        comparable_sets(data.pair_sets)
    if config.early_stopping_patience and not data.pair_sets:
        raise ValueError(
            f"--early_stopping_patience {config.early_stopping_patience} goes by the accuracy on validation sets, and "
            f"there are none in {Path(config.data_root, config.val_data_path)}: name their folder, or leave it out"
        )
    return data


def choose_head_sharding(config: Config, devices: DevicePlan, data: FaceDataModule) -> tuple[bool, list[str]]:
    """Decide whether the head is sharded.

    Args:
        config: resolved.
        devices: to train on.
        data: opened.

    Returns:
        The decision, and a note where nobody asked for it.
    """
    if config.evaluate:
        return False, []
    option = config.head_sharding
    if option == "auto" and config.sample_rate < 1:
        return True, [f"--sample_rate {config.sample_rate} needs a sharded head: --head_sharding on"]
    if option == "auto" and config.batch_statistics == "process":
        return False, []
    sharded = choose_sharding(
        option,
        columns=data.num_classes * int(config.margin_options.get("sub_centers", 1)),
        embedding_size=EMBEDDING_SIZE,
        processes=devices.devices * config.num_nodes,
        memory_bytes=device_memory(devices.accelerator, devices.devices),
    )
    automatic = sharded and option == "auto"
    note = f"the head's {data.num_classes:,} classes are shared out over the processes (--head_sharding off: not)"
    return sharded, [note] if automatic else []


def build_module(config: Config, data: FaceDataModule, sharded: bool) -> FaceRecognitionModule:
    """Build backbone and head; load the backbone's start weights where asked for.

    Args:
        config: resolved.
        data: opened.
        sharded: the head's classes are shared out over the processes.

    Raises:
        ValueError: start weights of another network.
    """
    module = FaceRecognitionModule(
        arch=config.arch,
        class_num=0 if config.evaluate else data.num_classes,
        head_type=config.head,
        m=config.m,
        h=config.h,
        s=config.s,
        t_alpha=config.t_alpha,
        margin_options=config.margin_options,
        sharded=sharded,
        sample_rate=config.sample_rate,
        batch_statistics=config.batch_statistics,
        gradient_clip_val=config.gradient_clip_val,
        ema_decay=config.ema_decay,
        optimizer=config.optimizer,
        lr=scaled_learning_rate(config.lr, images_per_update(config), config.lr_base_batch_size),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        lr_schedule=config.lr_schedule,
        lr_milestones=config.lr_milestones,
        lr_gamma=config.lr_gamma,
        lr_power=config.lr_power,
        warmup_epochs=config.warmup_epochs,
        freeze_stages=config.freeze_stages,
        freeze_batch_norm=config.freeze_batch_norm,
        layer_lr_decay=config.layer_lr_decay,
        seed=config.seed,
        metadata={
            "config": config.as_dict(),
            "given": sorted(config.given),
            "class_names": [] if config.evaluate else data.class_names,
            "data_fingerprint": data.fingerprint(),
            "pretrained": fingerprint_to_finetune(config.finetune, config.arch) if config.finetune else "",
            "input": {"color": "BGR", "size": [112, 112], "mean": 127.5, "std": 127.5},
            **describe_environment(),
        },
    )
    word = config.finetune or config.start_from_model_statedict
    if word and not config.resume_from_checkpoint:
        load_backbone(module.model, find_pretrained(word), config.arch)
    return module


def images_per_update(config: Config) -> int:
    """Return the images, of all machines, whose gradients make one step of the optimiser.

    Args:
        config: resolved.
    """
    return config.batch_size * config.num_nodes * config.accumulate_grad_batches


def epoch_batches(config: Config, data: FaceDataModule) -> int:
    """Return the batches of an epoch of one process, those of a trial run too.

    Args:
        config: resolved.
        data: opened.
    """
    return 1 if config.fast_dev_run else batches_per_epoch(data.steps_per_epoch, test_run=config.test_run)


def _interval(config: Config, data: FaceDataModule) -> int | float:
    if config.evaluate or config.fast_dev_run:
        return 1.0
    return validation_interval(epoch_batches(config, data), config.epochs, config.accumulate_grad_batches)


def build_run_trainer(
    config: Config,
    devices: DevicePlan,
    launch: Launch,
    data: FaceDataModule,
    keeper: CheckpointKeeper,
    watch: ProcessWatch,
    sharded: bool,
) -> "pl.Trainer":
    """Build the trainer of a run.

    Args:
        config: resolved.
        devices: to train on.
        launch: who started the processes.
        data: opened.
        keeper: writes the checkpoints.
        watch: notices when a process is lost.
        sharded: the head's classes are shared out over the processes.

    Raises:
        RuntimeError: Weights & Biases is asked for and not installed.
    """
    resumed = bool(config.resume_from_checkpoint)
    return build_trainer(
        devices,
        launch,
        keeper,
        num_nodes=config.num_nodes,
        strategy=_strategy(config, devices),
        sharded=sharded,
        batch_size=config.batch_size * config.num_nodes,
        epochs=config.epochs,
        steps_per_epoch=0 if config.evaluate else data.steps_per_epoch,
        accumulate_grad_batches=config.accumulate_grad_batches,
        val_check_interval=_interval(config, data),
        test_run=config.test_run,
        fast_dev_run=config.fast_dev_run,
        resumed=resumed,
        deterministic=config.deterministic,
        sync_batchnorm=config.sync_batchnorm,
        stalled_after_steps=config.stalled_after_steps,
        early_stopping_patience=config.early_stopping_patience,
        use_wandb=config.use_wandb,
        more_callbacks=[watch, *([HeadFromClassMeans(data)] if config.finetune and not resumed else [])],
    )


def _strategy(config: Config, devices: DevicePlan) -> Any:
    distributed = devices.devices * config.num_nodes > 1
    return build_strategy(config.distributed_backend, config.collective_timeout_sec, distributed=distributed)
