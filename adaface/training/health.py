"""Monitor the health of a training: diagnostic numbers for each epoch, and a warning if the loss does not decrease.

Both are Lightning callbacks that do not affect training. Their values stay on the device and are read once per epoch,
or once per window of steps, so that no step waits for them.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from adaface.heads.base import Head
from adaface.heads.margins import AdaFace, CurricularFace
from adaface.heads.sharded_optimizer import gradient_norm
from adaface.system.lightning_internals import unscales_in_its_step
from adaface.system.lightning_setup import pl

logger = logging.getLogger(__name__)

_FOLD_EVERY_STEPS = 64  # reduce the stored tensors to six numbers
_WINDOWS = 4  # windows of losses before the first decision
_CLEAR_FALL = 3.0  # standard errors
_HIGH_NORM = 1e4  # above it, no margin grows any more
_CLEARLY_LEARNED = 0.05  # as a share of log(C), below the loss of an uninformed head


class Distribution(NamedTuple):
    """Summary of many values; non-finite values are only counted.

    Attributes:
        number: number of finite values.
        mean: mean of the finite values, as are all below.
        squares: sum of the squared deviations from the mean.
        lowest: minimum; infinity if there is none.
        highest: maximum; minus infinity if there is none.
        not_finite: number of values that are infinite or NaN.
    """

    number: float
    mean: float
    squares: float
    lowest: float
    highest: float
    not_finite: float

    @property
    def std(self) -> float:
        """Standard deviation (of a whole population); NaN if there is no value."""
        return math.sqrt(self.squares / self.number) if self.number else math.nan

    @classmethod
    def merged(cls, parts: Sequence[Sequence[float]]) -> "Distribution":
        """Merge several distributions into one of all their values.

        Args:
            parts: the numbers of at least one ``Distribution``.

        Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
        """
        table = np.asarray(parts, float)  # (P, 6)
        counts, means, squares = table[:, 0], table[:, 1], table[:, 2]
        count = counts.sum()
        mean = (counts * means).sum() / count if count else math.nan
        spread = squares.sum() + (counts * (means - mean) ** 2).sum() if count else 0.0
        lowest, highest, not_finite = table[:, 3].min(), table[:, 4].max(), table[:, 5].sum()
        return cls(*(float(number) for number in (count, mean, spread, lowest, highest, not_finite)))


def summarize(values: Tensor) -> Tensor:
    """Compute the numbers of a ``Distribution`` without waiting for the device.

    Args:
        values: (N,), N at least 1.

    Returns:
        (6,) float32 on the same device.
    """
    values = values.float()
    finite = torch.isfinite(values)
    count = finite.sum()
    mean = torch.where(finite, values, 0.0).sum() / count.clamp_min(1)
    squares = torch.where(finite, values - mean, 0.0).square().sum()
    lowest, highest = torch.where(finite, values, math.inf).min(), torch.where(finite, values, -math.inf).max()
    return torch.stack([count.float(), mean, squares, lowest, highest, (~finite).sum().float()])


class HealthMonitor(pl.Callback):
    """Log after each epoch: gradient norm, target cosine, feature norms and the margin's statistics.

    Metrics: ``gradient_norm`` and ``gradient_norm_max`` (mean and maximum over the optimizer steps, before clipping;
    steps that the 16-bit loss scaler skips because of non-finite gradients are excluded, and counted on the screen),
    ``target_cosine`` (mean, before the margin), ``feature_norm`` with ``_std``, ``_min`` and ``_max``, and the running
    statistics at the end of the epoch, ``adaface_mean`` and ``adaface_std`` or ``curricularface_t``. All cover all
    images of all processes; after a resume inside an epoch, those of its remaining batches, from
    ``health_first_batch`` on, which is logged then only.
    """

    _names = ("gradient_norm", "target_cosine", "feature_norm")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._noted: dict[str, list[Tensor]] = {name: [] for name in self._names}
        self._folded: dict[str, list[Tensor]] = {name: [] for name in self._names}
        self._first_batch: int | None = None

    def on_train_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Reset the numbers."""
        self._begin()

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: torch.optim.Optimizer
    ) -> None:
        """Record the norm of all gradients: one pass over them, 0.5 % of a small network's step on a CPU."""
        norm = gradient_norm(pl_module.parameters(), pl_module.shards)
        # a fused optimizer unscales the gradients itself, inside its step
        if trainer.scaler is not None and unscales_in_its_step(optimizer):
            norm = norm / trainer.scaler.scale(torch.ones_like(norm))
        pl_module.gradient_norm = norm  # clipping comes next, and needs it too
        self._noted["gradient_norm"].append(norm.reshape(1))

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the numbers of the batch."""
        if self._first_batch is None:
            self._first_batch = batch_idx
        self._noted["target_cosine"].append(pl_module.head.last_target_cosine)
        self._noted["feature_norm"].append(pl_module.last_norms.squeeze(1))
        if len(self._noted["feature_norm"]) >= _FOLD_EVERY_STEPS:
            self._fold()

    def _fold(self) -> None:
        for name, values in self._noted.items():
            if values:
                self._folded[name].append(summarize(torch.cat(values)))
                values.clear()

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Log the epoch's numbers, for plots and as one line."""
        self._fold()
        if not all(self._folded.values()):
            return  # resumed at the end of the epoch, without batches
        own = [Distribution.merged(torch.stack(parts).tolist()) for parts in self._folded.values()]
        distributions = dict(zip(self._names, _over_all_processes(own, pl_module.device), strict=True))
        values = _metrics(distributions, pl_module.head)
        if self._first_batch:
            values["health_first_batch"] = self._first_batch
        # logged at once, not through the module: a stop between two epochs would lose them
        for metrics in trainer.loggers:
            metrics.log_metrics({**values, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        if trainer.is_global_zero:
            not_finite = int(distributions["gradient_norm"].not_finite) // trainer.world_size
            line = _line(values, not_finite, skipped=trainer.scaler is not None)
            rest = f", only its batches from {self._first_batch + 1:,} on" if self._first_batch else ""
            logger.info(f"epoch {trainer.current_epoch + 1}{rest}: {line}")


def _over_all_processes(own: list[Distribution], device: torch.device) -> list[Distribution]:
    """Return each distribution over the values of all processes; call it in all of them."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own
    numbers = torch.tensor(own, dtype=torch.float64, device=device)  # (Q, 6)
    gathered = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, numbers)
    parts = torch.stack(gathered, 1).tolist()  # (Q, W, 6)
    return [Distribution.merged(part) for part in parts]


def _metrics(distributions: dict[str, Distribution], head: Head) -> dict[str, float]:
    gradient, cosine, norm = (distributions[name] for name in ("gradient_norm", "target_cosine", "feature_norm"))
    values = {
        "gradient_norm": gradient.mean,
        "gradient_norm_max": gradient.highest if gradient.number else math.nan,
        "target_cosine": cosine.mean,
        "feature_norm": norm.mean,
        "feature_norm_std": norm.std,
        "feature_norm_min": norm.lowest,
        "feature_norm_max": norm.highest,
    }
    if isinstance(head, AdaFace):
        values |= {"adaface_mean": float(head.batch_mean), "adaface_std": float(head.batch_std)}
    if isinstance(head, CurricularFace):
        values["curricularface_t"] = float(head.t)
    return values


def _line(values: dict[str, float], not_finite: int, *, skipped: bool) -> str:
    """Format the epoch's numbers; only a loss scaler skips steps with non-finite gradients."""
    line = (
        f"gradient norm {values['gradient_norm']:.3g} (highest {values['gradient_norm_max']:.3g}), "
        f"target cosine {values['target_cosine']:.3f}, feature norm {values['feature_norm']:.1f}, std "
        f"{values['feature_norm_std']:.1f} ({values['feature_norm_min']:.1f} to {values['feature_norm_max']:.1f})"
    )
    if "adaface_mean" in values:
        line += f", AdaFace's running mean {values['adaface_mean']:.1f}, std {values['adaface_std']:.1f}"
    if "curricularface_t" in values:
        line += f", CurricularFace's t {values['curricularface_t']:.3f}"
    done = "steps skipped, their gradients" if skipped else "steps taken whose gradients were"
    return f"{line}; {not_finite} {done} not finite" if not_finite else line


def uninformed_loss(head: Head) -> float:
    """Return the loss of an uninformed head: all cosines equal (0, if it depends on that), average norms.

    For C classes and the cosine margin m it is log(C - 1 + exp(-s m)) + s m, about log(C) + s m. With a margin that
    rewards high norms (MagFace), the reward is included, because it can be reached without learning faces.

    Args:
        head: a head with at least two classes.
    """
    device = head.kernel.device
    norm = (head.batch_mean if isinstance(head, AdaFace) else torch.full((1,), _HIGH_NORM, device=device)).unsqueeze(1)
    classes = max(2.0, head.class_num * getattr(head, "sample_rate", 1.0))  # in a step
    target = head.s * float(head.margin(torch.zeros(1, device=device), norm))
    penalty = head.penalty(norm)
    softmax = float(F.softplus(torch.tensor(math.log(classes - 1) - target, dtype=torch.float64)))
    return softmax + (0.0 if penalty is None else float(penalty))


class StalledLossWarning(pl.Callback):
    """Warn once when the loss shows no learning, with the usual causes.

    The loss is checked after ``after_steps`` batches, and then after each further quarter of these. Learning means that
    the mean loss of the latest quarter is clearly below that of an uninformed head (``uninformed_loss``); checking then
    ends. Otherwise, the warning is printed unless the latest quarter is clearly below all earlier ones, given the
    spread of the losses. A decrease from the first quarter proves nothing: an untrained network starts some units above
    the uninformed loss and falls to it with any labels. Rank 0 checks its own losses. The state is stored in
    checkpoints.

    Args:
        after_steps: number of batches, at least four.
    """

    def __init__(self, after_steps: int) -> None:
        self.after_steps = after_steps
        self.decided = False
        self._window = after_steps // _WINDOWS
        self._losses: list[Tensor] = []
        self._steps = self._images = 0
        self._lowest: list[float] | None = None  # the Distribution of the window with the lowest mean

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as plain values."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        return {"decided": self.decided, "steps": self._steps, "lowest": self._lowest, "losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state before the resume."""
        self.decided, self._steps = state_dict["decided"], state_dict["steps"]
        self._lowest = state_dict["lowest"]
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Move the losses of a checkpoint to the device."""
        self._losses = [loss.to(pl_module.device) for loss in self._losses]

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss; check at the end of a window."""
        if self.decided or not trainer.is_global_zero or pl_module.head.class_num < 2:
            return
        self._losses.append(outputs["loss"].detach().float() * trainer.accumulate_grad_batches)  # Lightning divided it
        self._images = max(self._images, len(batch[1]))  # an epoch's last batch may be smaller
        if len(self._losses) < self._window:
            return
        newest = Distribution.merged([summarize(torch.stack(self._losses)).tolist()])
        lowest = Distribution(*self._lowest) if self._lowest else newest
        self._steps += len(self._losses)
        self._losses.clear()
        if self._steps >= self.after_steps:
            images = self._images * trainer.world_size * trainer.accumulate_grad_batches
            lr = float(trainer.optimizers[0].param_groups[0]["lr"])
            self._judge(pl_module.head, lowest, newest, f"{lr:.3g} for {images:,} images per update")
        self._lowest = list(newest if newest.mean < lowest.mean else lowest)

    def _judge(self, head: Head, lowest: Distribution, newest: Distribution, setting: str) -> None:
        uninformed = uninformed_loss(head)
        if newest.mean < uninformed - _CLEARLY_LEARNED * math.log(head.class_num):
            self.decided = True
            return
        error = math.hypot(*(part.std / math.sqrt(max(part.number, 1)) for part in (lowest, newest)))
        if lowest.mean - newest.mean > _CLEAR_FALL * error:
            return  # not below it yet, but decreasing
        self.decided = True
        logger.warning(
            f"warning: after {self._steps:,} batches the loss shows no learning: its mean over the latest "
            f"{self._window:,} is {newest.mean:.2f}, the lowest before was {lowest.mean:.2f}, and an uninformed head "
            f"has {uninformed:.2f}. Usual causes: a learning rate too low or too high for the batch size ({setting}; "
            "--lr, --lr_base_batch_size, --warmup_epochs), labels that do not belong to their images, too few "
            "images or classes sampled, a margin too hard to start with (--m; --h 0 disables AdaFace's adaptation "
            "to image quality). --stalled_after_steps 0 disables this warning"
        )
