"""Lightning's trainer of a run: callbacks, strategy, loggers and validation interval."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from adaface.config.device_plan import DevicePlan
from adaface.config.options import OptimizerOptions, RunOptions
from adaface.distributed.launch import Launch, lightning_environment
from adaface.heads.sharded_optimizer import AgreedGradScaler
from adaface.system.lightning_internals import let_the_watch_report_first
from adaface.system.lightning_setup import pl
from adaface.training.checkpointing import AtomicCheckpointIO, CheckpointKeeper
from adaface.training.health import HealthMonitor, StalledLossWarning
from adaface.training.progress import ProgressLine
from adaface.training.stopping import EarlyStopping, NonFiniteLossGuard, StopOnSignal

_TEST_RUN_BATCHES = 50
_LOG_EVERY_STEPS = 10
_SHORT_RUN_EPOCHS = 4


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
    """Return how often to validate: every epoch (1.0), or every tenth of an epoch in a short run.

    The interval in batches is a multiple of the accumulation window, because checkpoints do not contain accumulated
    gradients.

    Args:
        steps_per_epoch: batches of one process in one epoch of the data.
        run: may limit them.
        optimizer: how long the training is.
    """
    if run.evaluate or run.fast_dev_run or optimizer.epochs > _SHORT_RUN_EPOCHS:
        return 1.0
    batches, window = batches_of_epoch(steps_per_epoch, run), optimizer.accumulate_grad_batches
    every = max(1, batches // 10 // window) * window
    return every if every <= batches else 1.0


def build_strategy(devices: DevicePlan) -> Any:
    """Return Lightning's strategy for these devices.

    Args:
        devices: devices of the run; their ``collective_timeout_sec`` applies to processes that Lightning starts, while
            ``distributed.startup.join`` sets the timeout of others.
    """
    if devices.world_size == 1:
        return "auto"
    let_the_watch_report_first()
    strategies = {"ddp": pl.strategies.DDPStrategy}
    timeout = timedelta(seconds=devices.options.collective_timeout_sec)
    return strategies[devices.options.distributed_backend](timeout=timeout)


def build_trainer(
    devices: DevicePlan,
    launch: Launch,
    keeper: CheckpointKeeper,
    run: RunOptions,
    optimizer: OptimizerOptions,
    *,
    steps_per_epoch: int,
    sharded: bool,
    more_callbacks: list["pl.Callback"],
) -> "pl.Trainer":
    """Build the trainer of a run.

    Args:
        devices: devices of this machine, precision and strategy.
        launch: who started the processes.
        keeper: writes the checkpoints; its folder is the run folder.
        run: options of the run.
        optimizer: options of the optimizer.
        steps_per_epoch: batches of one process in one epoch of the data; 0 without training.
        sharded: whether the head's classes are sharded over the processes.
        more_callbacks: callbacks to call after the others.

    Raises:
        RuntimeError: Weights & Biases is requested but not installed.
    """
    folder = keeper.folder
    plugins: list[Any] = [AtomicCheckpointIO(), lightning_environment(launch)]
    scaled = sharded and devices.world_size > 1 and devices.precision == "16-mixed"
    if scaled:  # every process has a part of the gradient, but all must skip the same steps
        plugins.append(pl.plugins.precision.MixedPrecision("16-mixed", "cuda", scaler=AgreedGradScaler("cuda")))
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        num_nodes=devices.options.num_nodes,
        strategy=build_strategy(devices),
        precision=None if scaled else devices.precision,
        max_epochs=optimizer.epochs,
        accumulate_grad_batches=optimizer.accumulate_grad_batches,
        val_check_interval=validation_interval(steps_per_epoch, run, optimizer),
        limit_train_batches=_TEST_RUN_BATCHES if run.test_run else 1.0,
        fast_dev_run=run.fast_dev_run,
        num_sanity_val_steps=0 if run.resume_from_checkpoint else 2,
        deterministic=run.deterministic,
        use_distributed_sampler=False,
        logger=_loggers(folder, use_wandb=run.use_wandb),
        log_every_n_steps=min(_LOG_EVERY_STEPS, max(1, steps_per_epoch // optimizer.accumulate_grad_batches)),
        callbacks=[
            ProgressLine(optimizer.batch_size * devices.options.num_nodes),
            NonFiniteLossGuard(folder),
            HealthMonitor(),
            *([StalledLossWarning(run.stalled_after_steps)] if run.stalled_after_steps else []),
            *([EarlyStopping(optimizer.early_stopping_patience)] if optimizer.early_stopping_patience else []),
            keeper,
            StopOnSignal(keeper),
            *more_callbacks,
        ],
        plugins=plugins,
        sync_batchnorm=devices.options.sync_batchnorm,
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
