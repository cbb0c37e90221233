"""Build a training run from its options: data, module, trainer, and the values that all processes must agree on.

Only this module and ``commands/train.py``, which runs the training, use the whole configuration.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaface.checkpoints.files import load_checkpoint
from adaface.checkpoints.run_folder import describe_environment
from adaface.checkpoints.weights import check_fits, describe_foreign, load_backbone
from adaface.config.device_plan import DevicePlan
from adaface.config.options import HOST_SPECIFIC_OPTIONS, Config
from adaface.data.chosen_sets import HELD_OUT, check_folder_of_sets
from adaface.data.module import FaceDataModule
from adaface.data.pair_sets import fingerprint_of_pairs
from adaface.data.sources.class_images import describe_moved
from adaface.data.sources.class_order import describe_change
from adaface.distributed.launch import Launch, find_launch, rank_zero_info
from adaface.distributed.watch import ProcessWatch
from adaface.evaluation.before_after import comparable_sets
from adaface.heads.partial_fc import reason_to_shard
from adaface.models.backbone import EMBEDDING_SIZE
from adaface.models.names import TIMM_PREFIX
from adaface.models.registry import check_architecture
from adaface.system.command_line import warnings_as_notes
from adaface.system.devices import device_memory, divide_threads, set_matmul_precision
from adaface.system.lightning_setup import pl
from adaface.training import plan
from adaface.training.checkpointing import CheckpointKeeper
from adaface.training.execution import configure_backbone, leave_out_unused
from adaface.training.finetuning import HeadFromClassMeans, find_pretrained, fingerprint_to_finetune
from adaface.training.module import FaceRecognitionModule
from adaface.training.optimization import scaled_learning_rate
from adaface.training.trainer import build_trainer, device_arguments


def build(config: Config, devices: DevicePlan) -> tuple[FaceDataModule, FaceRecognitionModule]:
    """Open the data and build the module.

    Args:
        config: resolved.
        devices: to train on.

    Returns:
        Data and module.

    Raises:
        FileNotFoundError: no data, or no checkpoint to start from.
        ValueError: options, data and checkpoint do not match.
        RuntimeError: the machine lacks something that the options need.
    """
    if config.devices.sync_batchnorm and devices.accelerator != "gpu":
        raise ValueError(
            f"--sync_batchnorm needs GPUs, this run is on {devices.accelerator}, where PyTorch has no synchronized "
            "batch norm: omit the option"
        )
    if config.devices.gradient_compression == "bf16" and devices.accelerator != "gpu":
        raise ValueError(
            f"--gradient_compression bf16 needs GPUs and NCCL, this run is on {devices.accelerator}: give fp16, or "
            "omit the option"
        )
    divide_threads(devices.sharing)
    set_matmul_precision(config.devices.matmul_precision)
    check_architecture(config.run.arch)
    pl.seed_everything(config.run.seed, verbose=False)
    data = open_data(config, devices)
    sharded, notes = choose_head_sharding(config, devices, data)
    if not sharded and not config.run.evaluate and find_launch().local_rank == 0:
        plan.check_head_memory(data.num_classes * _sub_centers(config), devices)
    module = build_module(config, data, sharded)
    for note in notes + configure_backbone(
        module,
        config.devices,
        accelerator=devices.accelerator,
        processes=devices.devices,
        batch_size=data.largest_batch,
    ):
        rank_zero_info(f"note: {note}")
    if module.class_num and devices.world_size > 1 and config.run.arch.startswith(TIMM_PREFIX):
        leave_out_unused(module)
    return data, module


def facts_of(
    config: Config, devices: DevicePlan, data: FaceDataModule, module: FaceRecognitionModule
) -> dict[str, Any]:
    """Return the values that must be equal in all processes, by name; check the checkpoint to resume.

    Args:
        config: resolved.
        devices: to train on.
        data: opened.
        module: built for it.

    Raises:
        ValueError: the checkpoint does not match.
    """
    facts = {f"--{name}": value for name, value in config.as_dict().items() if name not in HOST_SPECIFIC_OPTIONS}
    facts["the model to fine-tune"] = module.metadata["pretrained"]
    facts["the device"] = f"{devices.accelerator}, {devices.precision}"
    facts["the fingerprint of the training data"] = data.fingerprint()
    # auto depends on each machine's memory
    facts["the head's sharding (set --head_sharding to on or off)"] = module.sharded
    if config.run.resume_from_checkpoint:
        facts["the position of the checkpoint"] = _check_checkpoint(config, data, module)
    return facts


def _check_checkpoint(config: Config, data: FaceDataModule, module: FaceRecognitionModule) -> dict[str, int]:
    """Check that the checkpoint to resume fits data and module; return its position in the training."""
    path = config.run.resume_from_checkpoint
    checkpoint = load_checkpoint(path)
    saved = checkpoint.get("adaface", {})
    names = saved.get("class_names", [])
    change = describe_change(names, data.class_names) if names and len(names) != len(data.class_names) else ""
    check_fits(checkpoint, module.checkpoint_shapes(), path, module.sub_centers, change)
    if saved.get("pretrained", "") != module.metadata["pretrained"]:
        raise ValueError(
            f"--finetune {config.run.finetune} is not the model that the run of {path} started "
            "from: give that model, or start a new run"
        )
    changed = saved.get("data_fingerprint") not in (None, data.fingerprint())
    if changed and HELD_OUT in data.pair_sets:
        raise ValueError(
            f"the people held out are not those of the run of {path}, so the model may have been trained on them: "
            "resume with the same data, --seed and --held_out_share, or start a new run"
        )
    _match_classes(names, data, module, path)
    # an older checkpoint has none
    if moved := describe_moved(saved.get("class_images", {}), data.dataset.source, shown=find_launch().rank == 0):
        raise ValueError(
            f"identities have the images of others since the run of {path}, whose head has one row for each: "
            f"{moved}. Restore the data, or start a new run with --start_from_model_statedict"
        )
    before, now = saved.get("validation_sets"), module.metadata["validation_sets"]
    if before is not None and before != now:
        others = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        rank_zero_info(
            f"note: the validation sets are not those of the run of {path} ({', '.join(others)}), so its best accuracy "
            "is not comparable: delete best.ckpt before the resume to choose it anew"
        )
    if changed:
        rank_zero_info(
            "note: the training data has changed since the start of the run, so the order of the samples changes"
        )
    position = saved["position"]
    if position["epoch"] >= config.optimizer.epochs:
        rank_zero_info(f"note: the run of {path} has completed its {config.optimizer.epochs} epochs: test only")
    return position


def _match_classes(saved: list[str], data: FaceDataModule, module: FaceRecognitionModule, path: str) -> None:
    """Number the classes of the data as in the checkpoint to resume, whose head has one row for each.

    Args:
        saved: names of the classes in the checkpoint, in the order of the head's rows; empty in an old one.
        data: opened.
        module: built for it.
        path: the checkpoint, for messages.

    Raises:
        ValueError: the data have other classes.
    """
    names = data.class_names
    if not saved or not names or names == saved:
        return
    if change := describe_change(saved, names):
        raise ValueError(
            f"the identities are not those of the run of {path}, whose head has one row for each: {change}. "
            "Restore the data, or start a new run with --start_from_model_statedict"
        )
    data.order_classes_as(saved)
    module.metadata |= {"class_names": saved, "class_images": data.class_images()}
    rank_zero_info("note: the identities come in another order than in the resumed run: they keep their classes")


def plan_lines(
    config: Config, devices: DevicePlan, launch: Launch, data: FaceDataModule, module: FaceRecognitionModule
) -> Iterator[str]:
    """Return the plan of the training, line by line.

    Args:
        config: resolved.
        devices: to train on.
        launch: who started the processes.
        data: opened.
        module: built for it.
    """
    workload = plan.count_work(data, devices, config.run, config.optimizer)
    arguments = device_arguments(devices, launch, module, deterministic=config.run.deterministic)
    return plan.lines(module, data, devices, launch, workload, arguments)


def open_data(config: Config, devices: DevicePlan) -> FaceDataModule:
    """Find, open and check the data of a run.

    Args:
        config: resolved.
        devices: to train on.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are damaged, or do not fit the options.
    """
    if "val_data_path" in config.given and not config.run.resume_from_checkpoint:
        check_folder_of_sets(config.data)
    data = FaceDataModule(
        config.data,
        config.augmentation,
        batch_size=config.optimizer.batch_size,
        devices=devices.devices,
        num_nodes=config.devices.num_nodes,
        seed=config.run.seed,
        evaluate_only=config.run.evaluate,
        needs_validation=bool(config.run.finetune),
    )
    data.sharing = devices.sharing
    data.equal_batches = config.devices.compile  # the backbone would be compiled again for a smaller batch
    with warnings_as_notes(shown=find_launch().local_rank == 0):
        data.open()
    if config.run.finetune:
        comparable_sets(data.pair_sets)
    patience, folder = config.optimizer.early_stopping_patience, Path(config.data.data_root, config.data.val_data_path)
    if patience and not data.pair_sets:
        raise ValueError(
            f"--early_stopping_patience {patience} needs the accuracy on validation sets, but "
            f"there are none in {folder}: set --val_data_path, or omit the option"
        )
    return data


def choose_head_sharding(config: Config, devices: DevicePlan, data: FaceDataModule) -> tuple[bool, list[str]]:
    """Decide whether the head is sharded.

    Args:
        config: resolved.
        devices: to train on.
        data: opened.

    Returns:
        The decision, and a note if it was made automatically.
    """
    if config.run.evaluate:
        return False, []
    if config.devices.head_sharding != "auto":
        return config.devices.head_sharding == "on", []
    if config.head.sample_rate < 1:
        return True, [f"--sample_rate {config.head.sample_rate} needs a sharded head: --head_sharding on"]
    if config.head.batch_statistics == "process":
        return False, []
    columns = data.num_classes * _sub_centers(config)
    reason = reason_to_shard(
        columns=columns,
        embedding_size=EMBEDDING_SIZE,
        processes=devices.world_size,
        memory_bytes=lambda: device_memory(devices.accelerator, devices.devices),
    )
    note = f"the head's {columns:,} weight vectors are sharded over the processes: {reason}"
    return bool(reason), [f"{note} (--head_sharding off disables it)"] if reason else []


def build_module(config: Config, data: FaceDataModule, sharded: bool) -> FaceRecognitionModule:
    """Build backbone and head; load the initial weights of the backbone if given.

    Args:
        config: resolved.
        data: opened.
        sharded: whether the head's classes are sharded over the processes.

    Raises:
        ValueError: the initial weights are of another network.
    """
    lr = scaled_learning_rate(config.optimizer, images_per_update(config))
    module = FaceRecognitionModule(
        config.run.arch,
        0 if config.run.evaluate else data.num_classes,
        config.head,
        replace(config.optimizer, lr=lr),
        sharded=sharded,
        seed=config.run.seed,
        metadata={
            "config": config.as_dict(),
            "given": sorted(config.given),
            "class_names": [] if config.run.evaluate else data.class_names,
            "data_fingerprint": data.fingerprint(),
            "class_images": data.class_images(),
            "validation_sets": {name: fingerprint_of_pairs(one) for name, one in data.pair_sets.items()},
            "pretrained": (
                fingerprint_to_finetune(config.run.finetune, config.run.arch, config.run.color)
                if config.run.finetune
                else ""
            ),
            "input": {"color": "BGR", "size": [112, 112], "mean": 127.5, "std": 127.5},
            **describe_environment(),
        },
    )
    word = config.run.finetune or config.run.start_from_model_statedict
    if word and not config.run.resume_from_checkpoint:
        path = find_pretrained(word)
        checkpoint = load_checkpoint(path)
        load_backbone(module.model, checkpoint, path, config.run.arch, config.run.color)
        if foreign := describe_foreign(checkpoint, path):
            rank_zero_info(f"note: {foreign}")
    return module


def _sub_centers(config: Config) -> int:
    return int(config.head.margin_options.get("sub_centers", 1))


def images_per_update(config: Config) -> int:
    """Return the number of images, over all machines, per optimizer step.

    Args:
        config: resolved.
    """
    return config.optimizer.batch_size * config.devices.num_nodes * config.optimizer.accumulate_grad_batches


def build_run_trainer(
    config: Config,
    devices: DevicePlan,
    launch: Launch,
    data: FaceDataModule,
    keeper: CheckpointKeeper,
    watch: ProcessWatch,
    module: FaceRecognitionModule,
) -> "pl.Trainer":
    """Build the trainer of a run.

    Args:
        config: resolved.
        devices: to train on.
        launch: who started the processes.
        data: opened.
        keeper: writes the checkpoints.
        watch: detects lost processes.
        module: to train.

    Raises:
        RuntimeError: Weights & Biases is requested but not installed.
    """
    fine_tuned = config.run.finetune and not config.run.resume_from_checkpoint
    return build_trainer(
        device_arguments(devices, launch, module, deterministic=config.run.deterministic),
        keeper,
        config.run,
        config.optimizer,
        steps_per_epoch=0 if config.run.evaluate else data.steps_per_epoch,
        images_per_step=data.images_per_step,
        more_callbacks=[watch, *([HeadFromClassMeans(data)] if fine_tuned else [])],
    )
