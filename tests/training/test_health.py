import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from adaface.config.options import HeadOptions, OptimizerOptions
from adaface.heads.margins import build_head
from adaface.system.lightning_setup import pl
from adaface.training import health
from adaface.training.health import Distribution, HealthMonitor, StalledLossWarning, summarize, uninformed_loss
from tests.support import health_worker, oracles
from tests.support.forked import run_processes
from train_val import FaceRecognitionModule

pytestmark = pytest.mark.usefixtures("training_screen")


class NoLooking(TorchDispatchMode):
    """Refuses what makes a device's host wait: reading a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_parts_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    values = rng.normal(20, 5, 1000).astype(np.float32)
    values[[3, 500]] = np.inf, np.nan
    pieces = np.split(values, [1, 70, 300])
    whole = Distribution.merged([summarize(torch.from_numpy(piece)).tolist() for piece in pieces])
    finite = values[np.isfinite(values)].astype(float)
    assert (whole.number, whole.not_finite) == (998, 2)
    expected = (finite.mean(), finite.std(), finite.min(), finite.max())
    assert (whole.mean, whole.std, whole.lowest, whole.highest) == pytest.approx(expected, rel=1e-6)


def test_nothing_finite():
    none = Distribution.merged([summarize(torch.tensor([math.inf, math.nan])).tolist()])
    assert (none.number, none.not_finite) == (0, 2)
    assert math.isnan(none.mean)
    assert math.isnan(none.std)


class Watched(FaceRecognitionModule):
    """Keeps what the health monitor should have seen."""

    def on_fit_start(self) -> None:
        self.seen: dict[str, list[np.ndarray]] = {"norms": [], "cosines": [], "gradients": [], "adaface": []}

    def training_step(self, batch, batch_idx):
        embeddings, norms = self(batch[0])
        classes = torch.nn.functional.normalize(self.head.kernel.detach(), dim=0)
        self.seen["norms"].append(norms.detach().flatten().double().numpy())
        self.seen["cosines"].append((embeddings.detach() * classes[:, batch[1]].T).sum(1).double().numpy())
        self.last_norms = norms.detach()
        return self.head.loss(embeddings, norms, batch[1])

    def on_before_optimizer_step(self, optimizer):
        squares = [float((p.grad.double() ** 2).sum()) for p in self.parameters() if p.grad is not None]
        self.seen["gradients"].append(np.array([math.sqrt(sum(squares))]))

    def on_train_epoch_end(self):
        self.seen["adaface"].append(np.array([self.head.batch_mean.item(), self.head.batch_std.item()]))


def fit(module, batches, tmp_path, *callbacks, epochs=1, **options):
    """Train on given batches; return the logged metrics."""
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), logger=pl.loggers.CSVLogger(tmp_path),
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return pd.read_csv(trainer.logger.log_dir + "/metrics.csv")


def image_batches(count, classes, size=4):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (size, 112, 112, 3), dtype=torch.uint8, generator=generator),
            torch.randint(0, classes, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def test_an_epochs_numbers_are_those_of_its_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "_FOLD_EVERY_STEPS", 2)
    torch.manual_seed(0)
    module = Watched("ir_mini", 7, HeadOptions(m=0.4, h=0.333), OptimizerOptions(lr=0.01))
    table = fit(module, image_batches(5, 7), tmp_path, HealthMonitor(), epochs=2, accumulate_grad_batches=2)
    rows = table.dropna(subset=["feature_norm"]).reset_index()
    assert rows["epoch"].tolist() == [0, 1]
    assert rows["step"].tolist() == [2, 5], "of each epoch's last step"
    parts = {name: [np.concatenate(seen) for seen in (module.seen[name][:n], module.seen[name][n:])]
             for name, n in {"norms": 5, "cosines": 5, "gradients": 3, "adaface": 1}.items()}  # fmt: skip
    for epoch in range(2):
        norms, gradients = parts["norms"][epoch], parts["gradients"][epoch]
        expected = {
            "gradient_norm": gradients.mean(), "gradient_norm_max": gradients.max(),
            "target_cosine": parts["cosines"][epoch].mean(), "feature_norm": norms.mean(),
            "feature_norm_std": norms.std(), "feature_norm_min": norms.min(), "feature_norm_max": norms.max(),
            "adaface_mean": parts["adaface"][epoch][0], "adaface_std": parts["adaface"][epoch][1],
        }  # fmt: skip
        assert rows.loc[epoch, list(expected)].to_dict() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    shown = [line for line in capsys.readouterr().out.splitlines() if "gradient norm" in line]
    assert [line.partition(":")[0] for line in shown] == ["epoch 1", "epoch 2"]
    assert f"feature norm {parts['norms'][0].mean():.1f}" in shown[0]
    assert ", AdaFace's running mean " in shown[0]


@pytest.mark.parametrize("fused", [True, False])
def test_the_gradient_norm_is_without_the_loss_scale(fused):
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    parameter.grad = torch.tensor([3.0, 4.0]) * (1024 if fused else 1)  # others are unscaled before the hook
    monitor = HealthMonitor()
    monitor.on_before_optimizer_step(
        SimpleNamespace(scaler=scaler), SimpleNamespace(parameters=lambda: [parameter], shards=[]), optimizer
    )
    assert [norm.item() for norm in monitor._noted["gradient_norm"]] == [5.0]


def test_nothing_waits_inside_an_epoch(monkeypatch):
    monkeypatch.setattr(health, "_FOLD_EVERY_STEPS", 2)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer, monitor, stalled = torch.optim.SGD([parameter]), HealthMonitor(), StalledLossWarning(1000)
    trainer = SimpleNamespace(scaler=None, is_global_zero=True, accumulate_grad_batches=1)
    head = SimpleNamespace(last_target_cosine=torch.rand(4), class_num=9)
    module = SimpleNamespace(parameters=lambda: [parameter], shards=[], head=head, last_norms=torch.rand(4, 1))
    parameter.grad = torch.ones(2)
    with NoLooking():
        for _ in range(5):
            monitor.on_before_optimizer_step(trainer, module, optimizer)
            for callback in (monitor, stalled):
                callback.on_train_batch_end(trainer, module, {"loss": torch.ones(())}, (None, torch.zeros(4)), 0)
    assert len(monitor._folded["feature_norm"]) == 2


def test_skipped_steps_are_counted_on_the_line():
    values = dict.fromkeys(
        ("gradient_norm", "gradient_norm_max", "target_cosine", "feature_norm", "feature_norm_std", "feature_norm_min",
         "feature_norm_max"), 1.0,
    )  # fmt: skip
    assert "not finite" not in health._line(values, 0, skipped=True)
    assert health._line(values, 3, skipped=True).endswith("; 3 steps skipped, their gradients not finite")
    assert health._line(values, 1, skipped=False).endswith("; 1 steps taken whose gradients were not finite")
    assert "AdaFace" not in health._line(values, 0, skipped=False)


def test_the_line_tells_the_curriculum():
    three = (health.Distribution.merged([[2.0, 0.5, 0.1, 0.4, 0.6, 0.0]]),) * 3
    head = build_head("curricularface", 8, 5)
    head.t.fill_(0.25)
    names = ("gradient_norm", "target_cosine", "feature_norm")
    values = health._metrics(dict(zip(names, three, strict=True)), head)
    assert health._line(values, 0, skipped=False).endswith(", CurricularFace's t 0.250")
    assert "curricularface_t" not in health._metrics(dict(zip(names, three, strict=True)), build_head("arcface", 8, 5))


def test_a_head_that_knows_nothing_has_the_reward_for_high_norms():
    head = build_head("magface", 512, 50)
    assert uninformed_loss(head) == pytest.approx(np.log(50) + 35 * (110 / 110**2 + 1 / 110), rel=1e-6)


@pytest.mark.parametrize(("name", "m"), [("adaface", 0.4), ("arcface", 0.5), ("cosface", 0.35)])
def test_a_head_that_knows_nothing(name, m):
    head = build_head(name, 512, 50, m, 0.01, 0.333, 64.0)
    target = {
        "adaface": oracles.adaface_target(0.0, 20.0, 20.0, 100.0, m, 0.333),
        "arcface": oracles.arcface_target(0.0, m),
        "cosface": oracles.cosface_target(0.0, m),
    }[name]
    logits = np.zeros((1, 50))
    logits[0, 3] = 64.0 * target
    assert uninformed_loss(head) == pytest.approx(oracles.mean_cross_entropy(logits, np.array([3])), rel=1e-6)


# the warning, with losses as given


def watch(losses, callback=None, after_steps=20, class_num=1000, last_batch=16):
    """Show the callback these losses; return it."""
    callback = callback or StalledLossWarning(after_steps)
    trainer = SimpleNamespace(
        is_global_zero=True, accumulate_grad_batches=2, world_size=1,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )  # fmt: skip
    module = SimpleNamespace(
        head=build_head("cosface", 8, class_num, 0.4, 0.01, 0.333, 64.0), device=torch.device("cpu")
    )
    callback.on_train_start(trainer, module)
    for number, loss in enumerate(losses, 1):
        images = torch.zeros(last_batch if number == len(losses) else 16)
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(float(loss)) / 2}, (None, images), 0)
    return callback


START = uninformed_loss(build_head("cosface", 8, 1000, 0.4, 0.01, 0.333, 64.0))
NOISE = np.random.default_rng(0).normal(0, 0.3, 1000)


def test_a_loss_that_stands_still_is_warned_of_once(capsys):
    watch(START + 4 + NOISE[:19])
    assert not capsys.readouterr().out
    watch(START + 4 + NOISE[:200])
    message = capsys.readouterr().out
    assert message.count("warning: ") == 1
    assert "warning: after 20 batches the loss shows no learning" in message
    assert f"an uninformed head has {START:.2f}" in message
    assert "(0.1 for 32 images per update; --lr," in message
    for cause in ("learning rate", "labels", "sampled", "--h 0"):
        assert cause in message


def test_the_setting_is_that_of_a_whole_batch(capsys):
    watch(START + 4 + NOISE[:20], last_batch=3)
    assert "0.1 for 32 images per update" in capsys.readouterr().out


def test_a_fall_to_where_a_head_knows_nothing_is_no_learning(capsys):
    watch(START + 0.2 + 4 * np.exp(-np.arange(400) / 10) + NOISE[:400])
    assert "shows no learning" in capsys.readouterr().out


def test_a_rise_and_the_fall_after_it_are_no_learning(capsys):
    watch(np.concatenate([np.full(15, START + 4), np.linspace(START + 20, START + 10, 25)]) + NOISE[:40])
    assert "warning: after 20 batches" in capsys.readouterr().out


def test_a_loss_that_was_learnt_or_still_falls_is_not_warned_of(capsys):
    assert watch(START - 2 + NOISE[:200]).decided
    falling = watch(START + 40 - 0.4 * np.arange(80) + NOISE[:80])
    assert not falling.decided
    assert watch(np.full(80, START - 3) + NOISE[:80], falling).decided
    watch(np.zeros(200), class_num=1)
    assert not capsys.readouterr().out


def test_what_a_checkpoint_holds_is_not_forgotten(capsys):
    losses = START + 4 + NOISE[:30]
    first = watch(losses[:13])
    resumed = StalledLossWarning(20)
    resumed.load_state_dict(first.state_dict())
    watch(losses[13:20], resumed)
    assert "warning: after 20 batches" in capsys.readouterr().out
    again = StalledLossWarning(20)
    again.load_state_dict(resumed.state_dict())
    watch(START + NOISE, again)
    assert not capsys.readouterr().out


# the warning, in trainings


class Embedded(FaceRecognitionModule):
    """A head on a linear layer in place of the network: quick, with many classes."""

    def __init__(self, class_num, lr):
        super().__init__("ir_mini", class_num, HeadOptions(m=0.4, h=0.333), OptimizerOptions(lr=lr))
        self.model = torch.nn.Sequential(torch.nn.Linear(32, 512), torch.nn.BatchNorm1d(512))

    def forward(self, images):
        features = self.model(images)
        norms = features.norm(dim=1, keepdim=True)
        return features / norms, norms


def feature_batches(count, classes, *, shuffled, size=32):
    """Noisy features of people; with ``shuffled`` their labels are anybody's."""
    generator = torch.Generator().manual_seed(1)
    people = torch.randn(classes, 32, generator=generator)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, classes, (size,), generator=generator)
        features = people[labels] + 0.2 * torch.randn(size, 32, generator=generator)
        batches.append((features, torch.randint(0, classes, (size,), generator=generator) if shuffled else labels))
    return batches


@pytest.mark.parametrize(
    ("lr", "shuffled", "warned"), [(0.1, False, False), (1e-9, False, True), (0.1, True, True)],
    ids=["learns", "no learning rate", "shuffled labels"],
)  # fmt: skip
def test_trainings_that_learn_and_that_do_not(tmp_path, capsys, lr, shuffled, warned):
    torch.manual_seed(0)
    classes = 2000
    module = Embedded(classes, lr)
    batches = feature_batches(150, classes, shuffled=shuffled)
    fit(module, batches, tmp_path, StalledLossWarning(80))
    assert ("shows no learning" in capsys.readouterr().out) is warned


def test_shards_of_all_processes_count(tmp_path):
    world = 3
    run_processes(health_worker.main, [(rank, world, tmp_path) for rank in range(world)], tmp_path)
    for rank in range(world):
        norm, *shared = torch.load(tmp_path / f"outcome_{rank}.pt", weights_only=True)
        assert norm == pytest.approx(math.sqrt(1 + 4 + (9 + 0.25) + (16 + 0.25) + (25 + 0.25)))
        values = np.array([-1, 1, 9, 11, 19, 21])
        assert shared == pytest.approx([6, values.mean(), 6 * values.var(), -1, 21, 3])
