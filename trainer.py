"""Lightning's trainer for a training: what goes on around its steps, how its processes meet, how often it validates."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from checkpointing import AtomicCheckpointIO, CheckpointKeeper
from devices import DevicePlan
from health import HealthMonitor, StalledLossWarning
from lightning_setup import pl
from processes import Launch, lightning_environment
from progress import ProgressLine
from sharded_optimizer import AgreedGradScaler
from stopping import EarlyStopping, NonFiniteLossGuard, StopOnSignal

_TEST_RUN_BATCHES = 50
_LOG_EVERY_STEPS = 10
_SHORT_RUN_EPOCHS = 4


def batches_per_epoch(steps_per_epoch: int, *, test_run: bool) -> int:
    """Return the batches of one epoch: all, or the few of a test run."""
    return min(steps_per_epoch, _TEST_RUN_BATCHES) if test_run else steps_per_epoch


def validation_interval(batches: int, epochs: int, accumulate_grad_batches: int) -> int | float:
    """Return how often to validate: each epoch (1.0), or after each tenth of one in a short run.

    In batches, and in whole windows of accumulated gradients: what is summed up inside one is in no checkpoint.

    Args:
        batches: of an epoch of one process.
        epochs: of the run.
        accumulate_grad_batches: batches of one window.
    """
    if epochs > _SHORT_RUN_EPOCHS:
        return 1.0
    every = max(1, batches // 10 // accumulate_grad_batches) * accumulate_grad_batches
    return every if every <= batches else 1.0


def build_strategy(distributed_backend: str, collective_timeout_sec: float, *, distributed: bool) -> Any:
    """Return Lightning's strategy, the way in which processes work together.

    Args:
        distributed_backend: ``ddp``.
        collective_timeout_sec: how long processes that Lightning starts wait for each other; ``processes.join`` sets
            that of others.
        distributed: there is more than one process.
    """
    if not distributed:
        return "auto"
    strategies = {"ddp": pl.strategies.DDPStrategy}
    return strategies[distributed_backend](timeout=timedelta(seconds=collective_timeout_sec))


def build_trainer(
    devices: DevicePlan,
    launch: Launch,
    keeper: CheckpointKeeper,
    *,
    num_nodes: int,
    strategy: Any,
    sharded: bool,
    batch_size: int,
    epochs: int,
    steps_per_epoch: int,
    accumulate_grad_batches: int,
    val_check_interval: int | float,
    test_run: bool,
    fast_dev_run: bool,
    resumed: bool,
    deterministic: bool,
    sync_batchnorm: bool,
    stalled_after_steps: int,
    early_stopping_patience: int,
    use_wandb: bool,
    more_callbacks: list["pl.Callback"],
) -> "pl.Trainer":
    """Build the trainer of a run.

    Args:
        devices: of this machine, and the precision.
        launch: who started the processes.
        keeper: writes the checkpoints; its folder is that of the run.
        num_nodes: machines.
        strategy: of ``build_strategy``.
        sharded: the head's classes are shared out over the processes.
        batch_size: images of one step, of all processes.
        epochs: of the run.
        steps_per_epoch: batches of one process; 0 where nothing is trained.
        accumulate_grad_batches: batches whose gradients make one step of the optimiser.
        val_check_interval: of ``validation_interval``.
        test_run: a few batches per epoch.
        fast_dev_run: one batch of everything, and nothing is kept.
        resumed: the run goes on from a checkpoint.
        deterministic: only algorithms that give the same result each time.
        sync_batchnorm: batch norm over all GPUs.
        stalled_after_steps: when to warn of a loss that has not moved; 0 for never.
        early_stopping_patience: epochs without a better accuracy after which to stop; 0 for never.
        use_wandb: log to Weights & Biases too.
        more_callbacks: called after the others.

    Raises:
        RuntimeError: Weights & Biases is asked for and not installed.
    """
    folder = keeper.folder
    distributed = devices.devices * num_nodes > 1
    plugins: list[Any] = [AtomicCheckpointIO(), lightning_environment(launch)]
    scaled = sharded and distributed and devices.precision == "16-mixed"
    if scaled:  # every process sees a part of the gradient: all have to skip the same steps
        plugins.append(pl.plugins.precision.MixedPrecision("16-mixed", "cuda", scaler=AgreedGradScaler("cuda")))
    return pl.Trainer(
        accelerator=devices.accelerator,
        devices=devices.devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=None if scaled else devices.precision,
        max_epochs=epochs,
        accumulate_grad_batches=accumulate_grad_batches,
        val_check_interval=val_check_interval,
        limit_train_batches=_TEST_RUN_BATCHES if test_run else 1.0,
        fast_dev_run=fast_dev_run,
        num_sanity_val_steps=0 if resumed else 2,
        deterministic=deterministic,
        use_distributed_sampler=False,
        logger=_loggers(folder, use_wandb=use_wandb),
        log_every_n_steps=min(_LOG_EVERY_STEPS, max(1, steps_per_epoch // accumulate_grad_batches)),
        callbacks=[
            ProgressLine(batch_size),
            NonFiniteLossGuard(folder),
            HealthMonitor(),
            *([StalledLossWarning(stalled_after_steps)] if stalled_after_steps else []),
            *([EarlyStopping(early_stopping_patience)] if early_stopping_patience else []),
            keeper,
            StopOnSignal(keeper),
            *more_callbacks,
        ],
        plugins=plugins,
        sync_batchnorm=sync_batchnorm,
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
            raise RuntimeError("--use_wandb needs the package: pip install wandb") from error
        loggers.append(wandb)
    return loggers
