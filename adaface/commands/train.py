r"""Train and evaluate a model: parse the options, build data, model and trainer, then fit and test.

    python main.py --data_root <ROOT> --train_data_path faces_emore/imgs --val_data_path faces_emore \
        --gpus 2 --use_16bit --batch_size 512 --epochs 26 --lr_milestones 12,20,24 --arch ir_18 \
        --head adaface --m 0.4 --h 0.333 --low_res_augmentation_prob 0.2 \
        --crop_augmentation_prob 0.2 --photometric_augmentation_prob 0.2

``python main.py --help`` shows all options. The files of a run (checkpoints, tables, plots, manifest) are in
``experiments/<prefix>_<MM-DD>_<n>``.
"""

import contextlib
import logging
import math
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.distributed as dist

from adaface.checkpoints.files import THRESHOLD, load_checkpoint
from adaface.checkpoints.folders import run_folder_of
from adaface.checkpoints.run_folder import CONFIG, choose_run_folder, make_run_folder, write_config, write_manifest
from adaface.checkpoints.weights import backbone_state
from adaface.commands.train_options import check_files, parse
from adaface.config.device_plan import DevicePlan, plan_devices
from adaface.config.options import Config
from adaface.data.datasets import TrainingDataset
from adaface.data.module import FaceDataModule
from adaface.data.sampler import RandomStreams
from adaface.distributed.launch import Launch, check_launch, end_with_parent, find_launch, rank_zero_info
from adaface.distributed.startup import (
    ReportedElsewhereError,
    check_agreement,
    decided_by_rank_0,
    failures_reported,
    join,
    report_absence,
    run_and_leave,
)
from adaface.distributed.watch import InterruptedTrainingError, ProcessWatch
from adaface.evaluation.before_after import compare_before_after, verdict, write_before_after
from adaface.evaluation.model_comparison import comparison_table, comparison_text, write_comparison
from adaface.inference.embedding_cache import CachedEmbedding, ModelFile
from adaface.metrics.calibration import describe_threshold
from adaface.metrics.results import results_table, write_results
from adaface.reporting.contact_sheet import tiled
from adaface.reporting.curves import plot_roc, plot_similarity_histograms
from adaface.reporting.run_report import write_run_report
from adaface.reporting.tables import ReportTable
from adaface.reporting.training import plot_health, plot_loss
from adaface.system.command_line import (
    EXPECTED_ERRORS,
    FAILED,
    INTERRUPTED,
    is_out_of_memory,
    output_written,
    program_name,
    report_error,
    terminated_as_interrupted,
)
from adaface.system.files import write_atomically
from adaface.system.interrupt import interruptible
from adaface.system.lightning_setup import pl
from adaface.system.locks import RunLock
from adaface.system.quiet import quiet_event_writer
from adaface.system.screen import log_to_screen
from adaface.training.build import build, build_run_trainer, facts_of, images_per_update, plan_lines
from adaface.training.checkpointing import CheckpointKeeper, resume_hint
from adaface.training.finetuning import find_pretrained
from adaface.training.module import FaceRecognitionModule
from adaface.training.optimization import scaled_learning_rate
from adaface.training.plan import check_memory
from adaface.training.resume import check_folders_agree, check_still_new, with_checkpoint_options, with_run_folder
from adaface.training.trainer import batches_of_epoch, validation_note

logger = logging.getLogger(__name__)

_STOPPED = "stopped immediately; files that were already saved are complete"

_SAMPLES_IN_GRID = 64


@log_to_screen(errors_from=logging.ERROR)  # stdout is the log of a run, including warnings
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: command-line arguments after the program's name; None: those of the process.
    """
    if dist.is_available() and dist.is_initialized():  # created by the caller, who also destroys it
        return _status_of_all(arguments)
    return run_and_leave(lambda: _status_of_all(arguments))


def _status_of_all(arguments: list[str] | None) -> int:
    """Return the exit status, even if a second Ctrl-C comes while the first one is reported."""
    try:
        return _status(arguments)
    except KeyboardInterrupt:
        rank_zero_info(_STOPPED)
        return INTERRUPTED


@interruptible()
def _status(arguments: list[str] | None) -> int:
    """Run the command line; report errors and interruptions, and return the exit status."""
    try:
        with output_written():
            arguments = sys.argv[1:] if arguments is None else arguments
            config, action = parse(arguments)
            check_folders_agree(config.run)
            check_files(config.run, config.data.train_data_index)
            if action == "print_config":
                print(config.as_yaml(), end="")
                return 0
            with terminated_as_interrupted(), RunLock() as lock:
                config, notes = with_checkpoint_options(with_run_folder(config))
                return _run(config, notes, lock, plan_only=action == "plan")
    except InterruptedTrainingError as stop:
        rank_zero_info(f"{stop}\n{resume_hint(stop.checkpoint)}")
        return INTERRUPTED
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning converts a KeyboardInterrupt into SystemExit(1)
        if not _is_interruption(stop):
            raise  # --help
        rank_zero_info(_STOPPED)
        return INTERRUPTED
    except ReportedElsewhereError:
        return FAILED
    except EXPECTED_ERRORS as error:
        status = _report(error)
        report_absence(find_launch(), error)
        return status


def _is_interruption(error: BaseException | None) -> bool:
    """Return whether an error is, or was raised while handling, a KeyboardInterrupt."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _run(config: Config, notes: list[str], lock: RunLock, *, plan_only: bool = False) -> int:
    """Print the notes and build everything, then train and test, only test, or only plan."""
    launch = find_launch()
    devices = plan_devices(config.devices, launched=launch.local_world_size, own_cores=launch.own_cores)
    for note in (*notes, *devices.notes, *_advice(config, launch)):
        rank_zero_info(f"note: {note}")
    if launch.external or not plan_only:  # a run on several machines can be planned on one
        check_launch(launch, devices.devices, config.devices.num_nodes)
    end_with_parent(launch)
    join(launch, devices.accelerator, config.devices.collective_timeout_sec)
    with failures_reported():
        data, module = build(config, devices)
        facts = facts_of(config, devices, data, module)
        if not plan_only and not config.run.evaluate and launch.local_rank == 0:
            check_memory(module, data, devices, config.optimizer.accumulate_grad_batches)
    check_agreement(facts)
    batches = 0 if config.run.evaluate else batches_of_epoch(data.steps_per_epoch, config.run)
    if 0 < batches < config.optimizer.accumulate_grad_batches:
        rank_zero_info(
            f"note: --accumulate_grad_batches {config.optimizer.accumulate_grad_batches} is more than the "
            f"{batches} batches of an epoch: the gradient of its single optimizer step is scaled by "
            f"{batches}/{config.optimizer.accumulate_grad_batches}"
        )
    if not config.run.evaluate and (note := validation_note(data.steps_per_epoch, config.run, config.optimizer)):
        rank_zero_info(f"note: {note}")
    if plan_only:
        for line in plan_lines(config, devices, launch, data, module):
            rank_zero_info(line)
        return 0
    folder = Path(decided_by_rank_0("RUN_FOLDER", lambda: str(_run_folder(config, lock)), launch))
    keeper = CheckpointKeeper(
        folder, save_all=config.run.save_all_models, every_steps=config.run.checkpoint_every_steps
    )
    watch = ProcessWatch(facts, lambda: _after_a_loss(config, keeper), config.devices.collective_timeout_sec)
    with failures_reported():
        trainer = build_run_trainer(config, devices, launch, data, keeper, watch, module)
        if trainer.is_global_zero:
            _describe(config, devices, data, module, folder)
    check_agreement({})  # otherwise the others would wait for a process that cannot write to the run folder
    with watch, quiet_event_writer(), _errors_kept_in(folder, launch):
        if not config.run.evaluate:
            if config.run.finetune and not config.run.resume_from_checkpoint:
                _test_pretrained(trainer, module, data)
            trainer.fit(module, data, ckpt_path=config.run.resume_from_checkpoint or None, weights_only=True)
        if data.pair_sets:
            _test(trainer, module, data, keeper, config)
    if trainer.is_global_zero:
        _finish(module, folder, config)
        compared: tuple[ReportTable, list[str]] | tuple[()] = ()
        if config.run.finetune and not config.run.fast_dev_run:
            compared = _compare_with_pretrained(config, devices, data, keeper)
        write_run_report(folder, module.results, data.pair_sets, *compared, warnings=data.warnings)
        print(f"results are in {folder}; start with report.html")
    return 0


def _after_a_loss(config: Config, keeper: CheckpointKeeper) -> str:
    """Return how to resume the run after a process was lost."""
    return f"run the same command to resume in {keeper.folder}" if config.run.run_folder else resume_hint(keeper.last)


def _test(
    trainer: "pl.Trainer", module: FaceRecognitionModule, data: FaceDataModule, keeper: CheckpointKeeper, config: Config
) -> None:
    """Evaluate the best checkpoint of the run, or the given model, on all validation sets."""
    best = _best_of(keeper)
    if not config.run.evaluate and not config.run.fast_dev_run:
        checkpoint = load_checkpoint(best)
        module.model.load_state_dict(backbone_state(checkpoint, best))
        rank_zero_info("\n".join([f"testing {best}", *describe_threshold(checkpoint.get(THRESHOLD))]))
    trainer.test(module, datamodule=data, verbose=False)


def _best_of(keeper: CheckpointKeeper) -> Path:
    """Return the checkpoint of a run to evaluate."""
    return keeper.best if keeper.best.exists() else keeper.last


def _test_pretrained(trainer: "pl.Trainer", module: FaceRecognitionModule, data: FaceDataModule) -> None:
    """Evaluate the pretrained model before fine-tuning."""
    trainer.test(module, datamodule=data, verbose=False)
    rank_zero_info(f"the pretrained model, before fine-tuning:\n{results_table(module.results)}")


def _compare_with_pretrained(
    config: Config, devices: DevicePlan, data: FaceDataModule, keeper: CheckpointKeeper
) -> tuple[ReportTable, list[str]]:
    """Compare the best checkpoint of the run with the pretrained model, on clear and blurred images.

    Returns:
        The table of the report, and the result in words.
    """
    before, after = (
        CachedEmbedding(
            ModelFile(str(path), config.run.arch, "gpu" if devices.accelerator == "gpu" else "cpu", color),
            folder=None,
            batch_size=data.batch_size_per_process,
        )
        for path, color in ((find_pretrained(config.run.finetune), config.run.color), (_best_of(keeper), None))
    )
    comparison = compare_before_after(before, after, data.pair_sets, keeper.folder, seed=config.run.seed)
    words = verdict(comparison)
    print(comparison_text(comparison), "", *words, sep="\n")
    write_comparison(comparison, keeper.folder)
    write_before_after(comparison, words, keeper.folder)
    return comparison_table(comparison), words


def _finish(module: FaceRecognitionModule, folder: Path, config: Config) -> None:
    """Print and write the results, draw the plots."""
    if not config.run.evaluate:
        plot_loss(folder / "metrics", folder / "loss.png")
        plot_health(folder / "metrics", folder / "health.png")
    if module.results:
        print(results_table(module.results))
        write_results(folder, module.results)
        plot_roc(module.results, folder / "roc.png")
        plot_similarity_histograms(module.results, folder / "similarity.png")


def _describe(
    config: Config, devices: DevicePlan, data: FaceDataModule, module: FaceRecognitionModule, folder: Path
) -> None:
    """Print a summary of the run; write config, manifest and an image of training samples."""
    write_config(folder, config.as_dict())
    lr = None if config.run.evaluate else module.schedule.options.lr
    write_manifest(folder, config.as_dict(), data.fingerprint(), data.num_classes, learning_rate=lr)
    parameters = sum(p.numel() for p in module.model.parameters()) / 1e6
    print(f"run folder: {folder}")
    hardware = f"{devices.devices} x {devices.device_name} ({devices.precision})"
    print(f"model: {config.run.arch}, {parameters:.1f} M parameters, on {hardware}")
    print(data.summary())
    if not config.run.evaluate:
        encoded = cv2.imencode(".png", draw_sample_grid(data.dataset, data.seed, _SAMPLES_IN_GRID))[1]
        write_atomically(folder / "train_samples.png", encoded.tobytes())


def draw_sample_grid(dataset: TrainingDataset, seed: int, n: int = 64) -> np.ndarray:
    """Return the first training samples of a run, augmented, in a grid.

    Args:
        dataset: the training data.
        seed: seed of the run.
        n: maximum number of samples.

    Returns:
        (rows * 114, columns * 114, 3) uint8 BGR, to be written by ``cv2.imwrite``.
    """
    order = RandomStreams(seed).shuffled(len(dataset), 0)[:n].tolist()
    return tiled([dataset[0, sample][0].numpy() for sample in order], math.ceil(math.sqrt(len(order))))


def _run_folder(config: Config, lock: RunLock) -> Path:
    """Return a new run folder, that of --run_folder, or that of the checkpoint to resume; lock it."""
    if config.run.run_folder:
        folder = lock.take(make_run_folder(config.run.run_folder))
        if not config.run.resume_from_checkpoint:
            check_still_new(folder)
        return folder
    if config.run.resume_from_checkpoint:
        return lock.take(run_folder_of(Path(config.run.resume_from_checkpoint)).resolve())
    return lock.take(choose_run_folder(config.run.output_dir, config.run.prefix))


def _advice(config: Config, launch: Launch) -> list[str]:
    """Return notes on options whose effect may be unexpected."""
    if config.run.evaluate:
        return []
    notes = []
    if launch.restarts and not config.run.run_folder:
        notes.append(
            f"torchrun may restart this run ({launch.restarts} times): without --run_folder, a restart begins a new run"
        )
    if config.head.head == "adaface" and config.head.h == 0:
        notes.append("--head adaface with --h 0 is CosFace: the paper uses --m 0.4 --h 0.333")
    if config.optimizer.lr_base_batch_size:
        images = images_per_update(config)
        lr = scaled_learning_rate(config.optimizer, images)
        notes.append(
            f"learning rate {lr:g}: --lr {config.optimizer.lr:g} x {images:,} images per update / --lr_base_batch_size "
            f"{config.optimizer.lr_base_batch_size:,}"
        )
    return notes


@contextlib.contextmanager
def _errors_kept_in(folder: Path, launch: Launch) -> Iterator[None]:
    """Write the traceback of an error to a file of this process in the run folder, and re-raise the error."""
    try:
        yield
    except InterruptedTrainingError:
        raise
    except Exception as error:
        if not (folder / CONFIG).exists():
            raise RuntimeError(f"the run folder {folder} was deleted while the run wrote to it ({error})") from error
        log = folder / (f"error_rank{launch.rank}.log" if launch.rank else "error.log")
        with contextlib.suppress(OSError):  # the error may be a full disk
            log.write_text(traceback.format_exc(), encoding="utf-8")
            error.add_note(f"details: {log}")
        raise


def _report(error: Exception) -> int:
    """Report an error in one line, followed by its notes; return the exit status."""
    reported, lines = error, str(error).strip().splitlines()
    if "in DataLoader worker process" in str(error):  # a traceback of another process: its last line is the message
        kind, _, message = lines[-1].partition(": ")
        reported = (MemoryError if kind.endswith("MemoryError") else RuntimeError)(message)
    if isinstance(error, torch.OutOfMemoryError):
        reported = RuntimeError(f"out of GPU memory: give a smaller --batch_size, or --use_16bit ({lines[0]})")
    elif is_out_of_memory(reported):
        said = f" ({str(reported).splitlines()[0]})" if str(reported) else ""
        reported = RuntimeError(f"out of memory: --plan shows the memory of a step and how to reduce it{said}")
    return report_error(program_name("train"), reported, notes=getattr(error, "__notes__", ()))


if __name__ == "__main__":
    sys.exit(main())
