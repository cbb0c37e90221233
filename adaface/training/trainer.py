"""Lightning's trainer of a run: callbacks, strategy, loggers and validation interval."""

from pathlib import Path
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook

from adaface.config.device_plan import DevicePlan
from adaface.config.options import OptimizerOptions, RunOptions
from adaface.distributed.launch import Launch, lightning_environment
from adaface.distributed.startup import collective_timeout
from adaface.heads.sharded_optimizer import AgreedGradScaler
from adaface.system.command_line import counted
from adaface.system.lightning_internals import DataParallelStrategy, let_the_watch_report_first
from adaface.system.lightning_setup import pl
from adaface.training.checkpointing import AtomicCheckpointIO, CheckpointKeeper
from adaface.training.health import HealthMonitor, StalledLossWarning
from adaface.training.module import FaceRecognitionModule
from adaface.training.progress import ProgressLine
from adaface.training.stopping import EarlyStopping, NonFiniteLossGuard, StopOnSignal

_COMPRESSION = {"off": None, "fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
_TEST_RUN_BATCHES = 50
_LOG_EVERY_STEPS = 10
_SHORT_RUN_EPOCHS, _OF_SHORT_RUN = 4, 0.1  # as in the official code
_STEPS_BETWEEN_VALIDATIONS = 10  # by default
_FEWEST_STEPS_BETWEEN = 2  # whoever asks
_ROUNDING = 1e-6  # 0.29 x 100 is below 29


def batches_of_epoch(steps_per_epoch: int, run: RunOptions) -> int:
    """Return the batches of one epoch of one process: all, or fewer in a trial run.

    Args:
        steps_per_epoch: batches of one epoch of the data.
        run: may limit them.
    """
    if run.fast_dev_run:
        return 1
    return min(steps_per_epoch, _TEST_RUN_BATCHES) if run.test_run else steps_per_epoch


def validation_interval(steps_per_epoch: int, run: RunOptions, optimizer: OptimizerOptions) -> int | float:
    """Return how often to validate: after each epoch (1.0), or the batches from one validation to the next.

    The interval in batches is a multiple of the accumulation window, because checkpoints do not contain accumulated
    gradients. By default, short runs on small sets are validated less often than ten times, not after every few steps;
    and no run is validated after every step.

    Args:
        steps_per_epoch: batches of one process in one epoch of the data.
        run: may limit them.
        optimizer: how long the training is.
    """
    fraction = optimizer.val_every_epochs or (_OF_SHORT_RUN if optimizer.epochs <= _SHORT_RUN_EPOCHS else 1.0)
    if run.evaluate or run.fast_dev_run or fraction == 1:
        return 1.0
    batches, window = batches_of_epoch(steps_per_epoch, run), optimizer.accumulate_grad_batches
    steps = max(_FEWEST_STEPS_BETWEEN, int(batches * fraction + _ROUNDING) // window)
    if not optimizer.val_every_epochs and steps < _STEPS_BETWEEN_VALIDATIONS:
        validations = batches // window // _STEPS_BETWEEN_VALIDATIONS
        steps = batches // window // validations if validations > 1 else 0
    return steps * window if 0 < steps * window <= batches else 1.0


def validation_note(steps_per_epoch: int, run: RunOptions, optimizer: OptimizerOptions) -> str:
    """Return a note if validations are further apart than ``val_every_epochs`` asks for; "" if not.

    Args:
        steps_per_epoch: as in ``validation_interval``.
        run: as in ``validation_interval``.
        optimizer: as in ``validation_interval``.
    """
    batches = batches_of_epoch(steps_per_epoch, run)
    interval, wanted = validation_interval(steps_per_epoch, run, optimizer), batches * optimizer.val_every_epochs
    apart = batches if isinstance(interval, float) else interval
    if run.fast_dev_run or not wanted or apart <= wanted + _ROUNDING:
        return ""
    return (
        f"--val_every_epochs {optimizer.val_every_epochs:g} is every {wanted:.2g} of the "
        f"{counted(batches, 'batch', 'batches')} of an epoch: validations are {counted(apart, 'batch', 'batches')} "
        f"apart, as at least {_FEWEST_STEPS_BETWEEN} optimizer steps, or an epoch, are between them"
    )


def device_arguments(
    devices: DevicePlan, launch: Launch, module: FaceRecognitionModule, *, deterministic: bool
) -> dict[str, Any]:
    """Return the arguments of Lightning's Trainer that say where and how a step is computed.

    Args:
        devices: devices of this machine, precision and strategy.
        launch: who started the processes.
        module: to train.
        deterministic: use deterministic algorithms only.
    """
    plugins: list[Any] = [lightning_environment(launch)]
    scaled = module.sharded and devices.world_size > 1 and devices.precision == "16-mixed"
    if scaled:  # every process has a part of the gradient, but all must skip the same steps
        plugins.append(pl.plugins.precision.MixedPrecision("16-mixed", "cuda", scaler=AgreedGradScaler("cuda")))
    return {
        "accelerator": devices.accelerator,
        "devices": devices.visible or devices.devices,
        "num_nodes": devices.options.num_nodes,
        "strategy": _strategy(devices, launch, same_buffers=module.head_options.batch_statistics == "process"),
        "precision": None if scaled else devices.precision,
        "sync_batchnorm": devices.options.sync_batchnorm,
        "deterministic": deterministic,
        "benchmark": not deterministic,  # cuDNN measures its algorithms: all batches but the last have one size
        "use_distributed_sampler": False,
        "plugins": plugins,
    }


def _strategy(devices: DevicePlan, launch: Launch, *, same_buffers: bool) -> Any:
    """Return Lightning's strategy for these devices.

    Batch norm's running statistics do not affect a training step, and those of rank 0 are evaluated and saved: they are
    broadcast in each step only with ``same_buffers``. ``distributed.startup.join`` sets the timeout of processes that
    Lightning does not start.
    """
    if devices.world_size == 1:
        return "auto"
    let_the_watch_report_first()
    return {"ddp": DataParallelStrategy}[devices.options.distributed_backend](
        timeout=collective_timeout(launch, devices.accelerator, devices.options.collective_timeout_sec),
        forward_sync_buffers=same_buffers,
        gradient_as_bucket_view=True,  # a second copy of the gradients less
        ddp_comm_hook=_COMPRESSION[devices.options.gradient_compression],
    )


def build_trainer(
    arguments: dict[str, Any],
    keeper: CheckpointKeeper,
    run: RunOptions,
    optimizer: OptimizerOptions,
    *,
    steps_per_epoch: int,
    images_per_step: int,
    more_callbacks: list["pl.Callback"],
) -> "pl.Trainer":
    """Build the trainer of a run.

    Args:
        arguments: of ``device_arguments``.
        keeper: writes the checkpoints; its folder is the run folder.
        run: options of the run.
        optimizer: options of the optimizer.
        steps_per_epoch: batches of one process in one epoch of the data; 0 without training.
        images_per_step: images of the largest step, over all processes.
        more_callbacks: callbacks to call after the others.

    Raises:
        RuntimeError: Weights & Biases is requested but not installed.
    """
    folder = keeper.folder
    return pl.Trainer(
        **{**arguments, "plugins": [*arguments["plugins"], AtomicCheckpointIO()]},
        max_epochs=optimizer.epochs,
        accumulate_grad_batches=optimizer.accumulate_grad_batches,
        val_check_interval=validation_interval(steps_per_epoch, run, optimizer),
        limit_train_batches=_TEST_RUN_BATCHES if run.test_run else 1.0,
        fast_dev_run=run.fast_dev_run,
        num_sanity_val_steps=0 if run.resume_from_checkpoint else 2,
        logger=_loggers(folder, use_wandb=run.use_wandb),
        log_every_n_steps=min(_LOG_EVERY_STEPS, max(1, steps_per_epoch // optimizer.accumulate_grad_batches)),
        callbacks=[
            ProgressLine(images_per_step),
            NonFiniteLossGuard(folder),
            HealthMonitor(),
            *([StalledLossWarning(run.stalled_after_steps)] if run.stalled_after_steps else []),
            *([EarlyStopping(optimizer.early_stopping_patience)] if optimizer.early_stopping_patience else []),
            keeper,
            StopOnSignal(keeper),
            *more_callbacks,
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _loggers(folder: Path, *, use_wandb: bool) -> list[Any]:
    loggers: list[Any] = [
        pl.loggers.CSVLogger(folder, name="metrics"),
        pl.loggers.TensorBoardLogger(folder, name="tensorboard", version=""),
    ]
    if use_wandb:
        try:
            wandb = pl.loggers.WandbLogger(save_dir=folder, name=folder.name, project="adaface_face_recognition")
        except ModuleNotFoundError as error:
            raise RuntimeError("--use_wandb needs a package: pip install wandb") from error
        loggers.append(wandb)
    return loggers
