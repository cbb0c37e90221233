"""A few steps of the training module under Lightning's trainer, for test_sharded_training.py.

Batch norm is frozen (unless ``norms="learn"``) and there is no dropout, so that one process with batches of twice the
size computes the same.
"""

import os
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from adaface.config.device_plan import DevicePlan
from adaface.config.options import Config
from adaface.distributed.launch import find_launch
from adaface.system.lightning_setup import pl
from adaface.training.checkpointing import AtomicCheckpointIO, CheckpointKeeper
from adaface.training.trainer import device_arguments
from train_val import FaceRecognitionModule

CLASSES, BATCH, STEPS = 7, 2, 6  # BATCH samples of each of two processes
NORM_DIVISOR = 5.0
OPTIONS = {"m": 0.4, "h": 0.333, "s": 8.0, "t_alpha": 0.3, "lr": 0.05, "lr_milestones": (9,)}


class Faces(Dataset):
    """The batches of one of W processes, which share each global batch of 2 * BATCH."""

    def __init__(self, rank: int, W: int) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (STEPS, W, 2 * BATCH // W, 112, 112, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (STEPS, W, 2 * BATCH // W), generator=generator)
        self.batches = list(zip(images[:, rank], labels[:, rank], strict=True))

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batches[index]


def frozen(module: FaceRecognitionModule) -> FaceRecognitionModule:
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
            layer.train = lambda mode=True, layer=layer: layer
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
    module.model.output_layer[-1].running_var.fill_(NORM_DIVISOR**2)  # feature norms inside of AdaFace's limits
    return module


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def train(
    processes: int,
    folder: Path,
    *,
    accumulate: int,
    sharded: bool = False,
    norms: str = "frozen",
    sync_buffers: bool | None = None,
    visible: int = 0,
    **options,
) -> dict:
    """Train with the strategy of a run; return losses and the parts of the checkpoint, on rank 0."""
    config = Config().with_values({**OPTIONS, **options})
    torch.manual_seed(4)
    module = FaceRecognitionModule("ir_mini", CLASSES, config.head, config.optimizer, sharded=sharded)
    module = frozen(module) if norms == "frozen" else module
    devices = DevicePlan("cpu", processes, "64-true", config.devices, visible=visible)
    arguments = device_arguments(devices, find_launch(), module, deterministic=False)
    if sync_buffers is not None:
        arguments["strategy"]._ddp_kwargs["forward_sync_buffers"] = sync_buffers
    losses = Losses()
    arguments["plugins"] = [*arguments["plugins"], AtomicCheckpointIO()]
    trainer = pl.Trainer(
        **arguments, max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[losses], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Faces(trainer.global_rank, processes), batch_size=None))
    CheckpointKeeper(folder).save(trainer)
    return {"losses": losses.values, "rank": trainer.global_rank}


def train_as_one_of_two(rank: int, port: int, folder: Path, options: dict) -> int:
    """Train with another process, as a launcher starts both; save what ``train`` returns."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": 2}
    os.environ |= {
        name: str(value) for name, value in {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items()
    }
    torch.set_num_threads(1)
    outcome = train(2, folder, **options)
    torch.save(outcome, folder / f"outcome_{outcome['rank']}.pt")
    return 0
