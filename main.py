r"""Train and evaluate: parse -> Config -> seed -> build -> fit, test.

    python main.py --data_root <ROOT> --train_data_path faces_emore/imgs --val_data_path faces_emore \
        --gpus 2 --use_16bit --batch_size 512 --epochs 26 --lr_milestones 12,20,24 --arch ir_18 \
        --head adaface --m 0.4 --h 0.333 --low_res_augmentation_prob 0.2 \
        --crop_augmentation_prob 0.2 --photometric_augmentation_prob 0.2

``python main.py --help`` explains every option. A run's files (checkpoints, tables, plots, manifest) are in
``experiments/<prefix>_<MM-DD>_<n>``.
"""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import torch

import config as options
import plan
from agreement import ToldError, check_agreement, failure_told
from atomic_files import write_atomically
from callbacks import (
    CheckpointKeeper,
    InterruptedTrainingError,
    how_to_go_on,
)
from checkpoint_folders import run_folder_of
from checkpoints import (
    backbone_state,
    check_fits,
    load_backbone,
    load_checkpoint,
)
from command_line import EXPECTED_ERRORS, FAILED, INTERRUPTED, terminated_as_interrupted
from config import Config
from data import FaceDataModule
from devices import DevicePlan, device_memory, divide_threads, plan_devices
from evaluation.run_report import write_run_report
from execution import prepare_step
from health_plot import plot_health
from lightning_setup import pl
from loss_plot import plot_loss
from net import EMBEDDING_SIZE, check_architecture
from optimization import scaled_learning_rate
from partial_fc import choose_sharding
from plots import plot_roc, plot_similarity_histograms
from process_watch import ProcessWatch
from processes import (
    Launch,
    check_launch,
    decided_by_rank_0,
    end_with_parent,
    find_launch,
    join,
    tell_those_who_wait,
)
from results import results_table, write_results
from resume import check_still_new, with_checkpoint_options, with_run_folder
from run_folder import choose_run_folder, describe_environment, make_run_folder, write_config, write_manifest
from run_lock import RunLock
from train_val import FaceRecognitionModule
from trainer import batches_per_epoch, build_strategy, build_trainer, validation_interval

_SAMPLES_IN_GRID = 64
_OF_ONE_HOST = {"data_root", "num_workers"}  # may differ between the machines of a run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: words after the program's name; those of the process when None.
    """
    try:
        config, action = options.parse(sys.argv[1:] if arguments is None else arguments)
        if action == "print_config":
            print(config.as_yaml(), end="")
            return 0
        with terminated_as_interrupted(), RunLock(_say) as lock:
            config, notes = with_checkpoint_options(with_run_folder(config))
            return _run(config, notes, lock, plan_only=action == "plan")
    except InterruptedTrainingError as stop:
        _say(f"{stop}\n{how_to_go_on(stop.checkpoint)}")
        return INTERRUPTED
    except KeyboardInterrupt:
        _say("stopped at once; what had been saved is whole")
        return INTERRUPTED
    except ToldError:
        return FAILED
    except EXPECTED_ERRORS as error:
        status = _report(error)
        tell_those_who_wait(find_launch(), error)
        return status


def _run(config: Config, notes: list[str], lock: RunLock, *, plan_only: bool = False) -> int:
    """Build everything, then train and test, or only test, or only plan; ``notes`` are shown first."""
    launch = find_launch()
    devices = plan_devices(
        config.accelerator,
        config.gpus,
        config.devices,
        gpus_given="gpus" in config.given,
        use_16bit=config.use_16bit,
        precision=config.precision,
    )
    for note in (*notes, *devices.notes, *_advice(config, launch)):
        _say(f"note: {note}")
    if launch.external or not plan_only:  # several machines can be planned for on one
        check_launch(launch, devices.devices, config.num_nodes)
    end_with_parent(launch)
    join(launch, devices.accelerator, config.collective_timeout_sec)
    with failure_told():
        data, module, sharded = _build(config, devices)
        facts = _facts(config, devices, data, module)
    check_agreement(facts)
    if not config.evaluate and config.accumulate_grad_batches > _batches_per_epoch(config, data):
        _say(
            f"note: --accumulate_grad_batches {config.accumulate_grad_batches} is more than the "
            f"{_batches_per_epoch(config, data)} batches of an epoch: its one step has so much less weight"
        )
    if plan_only:
        return _plan(config, devices, launch, data, module)
    folder = Path(decided_by_rank_0("RUN_FOLDER", lambda: str(_run_folder(config, lock)), launch))
    keeper = CheckpointKeeper(folder, save_all=config.save_all_models, every_steps=config.checkpoint_every_steps)
    watch = ProcessWatch(facts, lambda: _after_a_loss(config, keeper), config.collective_timeout_sec)
    with failure_told():
        trainer = _build_trainer(config, devices, launch, data, keeper, watch, sharded)
        if trainer.is_global_zero:
            _describe(config, devices, data, module, folder)
    check_agreement({})  # else the others would wait for one that cannot write, or draw, to the run folder
    with watch, _errors_kept_in(folder, launch):
        if not config.evaluate:
            trainer.fit(module, data, ckpt_path=config.resume_from_checkpoint or None, weights_only=True)
        if data.pair_sets:
            _test(trainer, module, data, keeper, config)
    if trainer.is_global_zero:
        _finish(module, data, folder, config)
    return 0


def _after_a_loss(config: Config, keeper: CheckpointKeeper) -> str:
    """Return how to go on when a process of the run is lost."""
    return f"the same command goes on in {keeper.folder}" if config.run_folder else how_to_go_on(keeper.last)


def _build(config: Config, devices: DevicePlan) -> tuple[FaceDataModule, FaceRecognitionModule, bool]:
    """Open the data and build the module, or say why this cannot be done; also, whether the head is sharded."""
    if config.sync_batchnorm and devices.accelerator != "gpu":
        raise ValueError(
            f"--sync_batchnorm is for GPUs, this run is on {devices.accelerator}, where PyTorch has no synchronised "
            "batch norm: leave it out"
        )
    divide_threads(devices.devices)
    check_architecture(config.arch)
    pl.seed_everything(config.seed, verbose=False)
    data = _open_data(config, devices)
    sharded, notes = _choose_sharding(config, devices, data)
    module = _build_module(config, data, sharded)
    for note in notes + prepare_step(
        module,
        accelerator=devices.accelerator,
        processes=devices.devices,
        batch_size=data.batch_size_per_process,
        channels_last=config.channels_last,
        compile_backbone=config.compile,
        gradient_checkpointing=config.gradient_checkpointing,
        head_memory=config.head_memory,
    ):
        _say(f"note: {note}")
    return data, module, sharded


def _facts(config: Config, devices: DevicePlan, data: FaceDataModule, module: FaceRecognitionModule) -> dict[str, Any]:
    """Return what has to be the same in all processes; check the checkpoint to go on with."""
    facts = {f"--{name}": value for name, value in config.as_dict().items() if name not in _OF_ONE_HOST}
    facts["the device"] = f"{devices.accelerator}, {devices.precision}"
    facts["the fingerprint of the training data"] = data.fingerprint()
    # auto goes by each machine's memory
    facts["the head's sharding (--head_sharding on or off says it for all)"] = module.sharded
    if config.resume_from_checkpoint:
        checkpoint = load_checkpoint(config.resume_from_checkpoint)
        check_fits(checkpoint, module.checkpoint_shapes(), config.resume_from_checkpoint)
        if checkpoint["adaface"].get("data_fingerprint") not in (None, data.fingerprint()):
            _say("note: the training data is not what the run began with: an epoch goes on in another order")
        position = checkpoint["adaface"]["position"]
        facts["the position of the checkpoint"] = position
        if position["epoch"] >= config.epochs:
            _say(f"note: the run of {config.resume_from_checkpoint} has done its {config.epochs} epochs: only tested")
    return facts


def _plan(
    config: Config, devices: DevicePlan, launch: Launch, data: FaceDataModule, module: FaceRecognitionModule
) -> int:
    """Print what the training would take."""
    schedule = plan.schedule(
        data,
        epochs=1 if config.fast_dev_run else config.epochs,
        steps_per_epoch=_batches_per_epoch(config, data),
        val_check_interval=_validation_interval(config, data),
        batch_size=config.batch_size * config.num_nodes,
        world_size=devices.devices * config.num_nodes,
        accumulate_grad_batches=config.accumulate_grad_batches,
    )
    for line in plan.lines(module, data, devices, launch, schedule, config.num_nodes, _strategy(config, devices)):
        _say(line)
    return 0


def _open_data(config: Config, devices: DevicePlan) -> FaceDataModule:
    data = FaceDataModule(
        data_root=config.data_root,
        train_data_path=config.train_data_path,
        val_data_path=config.val_data_path,
        use_mxrecord=config.use_mxrecord,
        train_data_subset=config.train_data_subset,
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
    )
    data.open()
    return data


def _choose_sharding(config: Config, devices: DevicePlan, data: FaceDataModule) -> tuple[bool, list[str]]:
    """Decide whether the head is sharded; say so where nobody asked for it."""
    if config.evaluate:
        return False, []
    option = config.head_sharding
    if option == "auto" and config.sample_rate < 1:
        return True, [f"--sample_rate {config.sample_rate} needs a sharded head: --head_sharding on"]
    if option == "auto" and config.batch_statistics == "process":
        return False, []
    sharded = choose_sharding(
        option,
        class_num=data.num_classes,
        embedding_size=EMBEDDING_SIZE,
        processes=devices.devices * config.num_nodes,
        memory_bytes=device_memory(devices.accelerator, devices.devices),
    )
    automatic = sharded and option == "auto"
    note = f"the head's {data.num_classes:,} classes are shared out over the processes (--head_sharding off: not)"
    return sharded, [note] if automatic else []


def _build_module(config: Config, data: FaceDataModule, sharded: bool) -> FaceRecognitionModule:
    """Build backbone and head; load the backbone's start weights where asked for."""
    module = FaceRecognitionModule(
        arch=config.arch,
        class_num=0 if config.evaluate else data.num_classes,
        head_type=config.head,
        m=config.m,
        h=config.h,
        s=config.s,
        t_alpha=config.t_alpha,
        sharded=sharded,
        sample_rate=config.sample_rate,
        batch_statistics=config.batch_statistics,
        gradient_clip_val=config.gradient_clip_val,
        optimizer=config.optimizer,
        lr=scaled_learning_rate(config.lr, _images_per_update(config), config.lr_base_batch_size),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        lr_schedule=config.lr_schedule,
        lr_milestones=config.lr_milestones,
        lr_gamma=config.lr_gamma,
        lr_power=config.lr_power,
        warmup_epochs=config.warmup_epochs,
        seed=config.seed,
        metadata={
            "config": config.as_dict(),
            "given": sorted(config.given),
            "class_names": [] if config.evaluate else data.class_names,
            "data_fingerprint": data.fingerprint(),
            "input": {"color": "BGR", "size": [112, 112], "mean": 127.5, "std": 127.5},
            **describe_environment(),
        },
    )
    if config.start_from_model_statedict:
        load_backbone(module.model, config.start_from_model_statedict, config.arch)
    return module


def _images_per_update(config: Config) -> int:
    """Return the images, of all machines, whose gradients make one step of the optimiser."""
    return config.batch_size * config.num_nodes * config.accumulate_grad_batches


def _batches_per_epoch(config: Config, data: FaceDataModule) -> int:
    return 1 if config.fast_dev_run else batches_per_epoch(data.steps_per_epoch, test_run=config.test_run)


def _validation_interval(config: Config, data: FaceDataModule) -> int | float:
    if config.evaluate or config.fast_dev_run:
        return 1.0
    return validation_interval(_batches_per_epoch(config, data), config.epochs, config.accumulate_grad_batches)


def _build_trainer(
    config: Config,
    devices: DevicePlan,
    launch: Launch,
    data: FaceDataModule,
    keeper: CheckpointKeeper,
    watch: ProcessWatch,
    sharded: bool,
) -> "pl.Trainer":
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
        val_check_interval=_validation_interval(config, data),
        test_run=config.test_run,
        fast_dev_run=config.fast_dev_run,
        resumed=bool(config.resume_from_checkpoint),
        deterministic=config.deterministic,
        sync_batchnorm=config.sync_batchnorm,
        stalled_after_steps=config.stalled_after_steps,
        use_wandb=config.use_wandb,
        more_callbacks=[watch],
    )


def _strategy(config: Config, devices: DevicePlan) -> Any:
    distributed = devices.devices * config.num_nodes > 1
    return build_strategy(config.distributed_backend, config.collective_timeout_sec, distributed=distributed)


def _test(
    trainer: "pl.Trainer", module: FaceRecognitionModule, data: FaceDataModule, keeper: CheckpointKeeper, config: Config
) -> None:
    """Evaluate the best checkpoint of the run, or the given model, on all validation sets."""
    best = keeper.best if keeper.best.exists() else keeper.last
    if not config.evaluate and not config.fast_dev_run:
        module.model.load_state_dict(backbone_state(load_checkpoint(best), best))
        _say(f"testing {best}")
    trainer.test(module, datamodule=data, verbose=False)


def _finish(module: FaceRecognitionModule, data: FaceDataModule, folder: Path, config: Config) -> None:
    """Print and write the results, draw the plots, write the report."""
    if not config.evaluate:
        plot_loss(folder / "metrics", folder / "loss.png")
        plot_health(folder / "metrics", folder / "health.png")
    if module.results:
        print(results_table(module.results))
        write_results(folder, module.results)
        plot_roc(module.results, folder / "roc.png")
        plot_similarity_histograms(module.results, folder / "similarity.png")
    write_run_report(folder, module.results, data.pair_sets)
    print(f"everything of this run is in {folder}, begin with report.html")


def _describe(
    config: Config, devices: DevicePlan, data: FaceDataModule, module: FaceRecognitionModule, folder: Path
) -> None:
    """Print what is about to happen; write config, manifest and a picture of training samples."""
    write_config(folder, config.as_dict())
    lr = None if config.evaluate else module.schedule.lr
    write_manifest(folder, config.as_dict(), data.fingerprint(), data.num_classes, learning_rate=lr)
    parameters = sum(p.numel() for p in module.model.parameters()) / 1e6
    print(f"run folder: {folder}")
    hardware = f"{devices.devices} x {devices.device_name} ({devices.precision})"
    print(f"model: {config.arch}, {parameters:.1f} M parameters, on {hardware}")
    print(data.summary())
    if not config.evaluate:
        encoded = cv2.imencode(".png", data.sample_grid(_SAMPLES_IN_GRID))[1]
        write_atomically(folder / "train_samples.png", encoded.tobytes())


def _run_folder(config: Config, lock: RunLock) -> Path:
    """A new run folder, the one that is named, or that of the checkpoint to resume; locked against a second run."""
    if config.run_folder:
        folder = lock.take(make_run_folder(config.run_folder))
        if not config.resume_from_checkpoint:
            check_still_new(folder)
        return folder
    if config.resume_from_checkpoint:
        return lock.take(run_folder_of(Path(config.resume_from_checkpoint)).resolve())
    return lock.take(choose_run_folder(config.output_dir, config.prefix))


def _advice(config: Config, launch: Launch) -> list[str]:
    """Notes on options that mean something else than they seem to."""
    if config.evaluate:
        return []
    notes = []
    if launch.restarts and not config.run_folder:
        notes.append(
            f"torchrun may restart this run ({launch.restarts} times), and without --run_folder a restart begins anew"
        )
    if config.head == "adaface" and config.h == 0:
        notes.append("--head adaface with --h 0 is CosFace: the paper uses --m 0.4 --h 0.333")
    if config.lr_base_batch_size:
        images = _images_per_update(config)
        lr = scaled_learning_rate(config.lr, images, config.lr_base_batch_size)
        notes.append(
            f"learning rate {lr:g}: --lr {config.lr:g} x {images:,} images per update / --lr_base_batch_size "
            f"{config.lr_base_batch_size:,}"
        )
    return notes


@contextlib.contextmanager
def _errors_kept_in(folder: Path, launch: Launch) -> Iterator[None]:
    """Write the traceback of what goes wrong to a file of this process in the run folder, and pass it on."""
    try:
        yield
    except InterruptedTrainingError:
        raise
    except Exception as error:
        log = folder / (f"error_rank{launch.rank}.log" if launch.rank else "error.log")
        with contextlib.suppress(OSError):  # the disk may be what is full
            log.write_text(traceback.format_exc(), encoding="utf-8")
            error.add_note(f"details: {log}")
        raise


def _report(error: Exception) -> int:
    """Print an error on one line; return the exit status."""
    message = str(error).strip()
    if "in DataLoader worker process" in message:  # a traceback of another process: its last line is the message
        message = message.splitlines()[-1].partition(": ")[2]
    if isinstance(error, torch.OutOfMemoryError):
        message = f"the GPU's memory is full: give a smaller --batch_size, or --use_16bit ({message.splitlines()[0]})"
    if "DefaultCPUAllocator" in message:
        message = f"the memory is full: --plan tells what a step takes, and what takes less ({message.splitlines()[0]})"
    print(f"main.py: error: {message}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr, flush=True)
    return FAILED


def _say(text: str) -> None:
    """Print for the user, once: from rank 0."""
    if find_launch().rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
