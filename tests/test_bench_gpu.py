import json
import weakref

import pytest
import torch

from bench import gpu, timing
from bench._gpu_steps import OurStep, PlainLoop, Work, backbone_operations
from tests.support import meta_device

CPU = torch.device("cpu")
WORK = Work(None, 4, 100, "bf16")


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """Leave out what takes seconds beside the objects of all modules, and matters for memory only."""
    monkeypatch.setattr(timing, "_reset_peak", lambda: None)
    monkeypatch.setattr(gpu.gc, "collect", lambda: 0)


class Sides:
    """Sides of a pretended device that has room for a number of units."""

    def __init__(self, room: float, **sizes: float) -> None:
        self.room, self.there = room, weakref.WeakSet()
        self.makers = {name: self._maker(size) for name, size in zip(gpu._NAMES, sizes.values(), strict=True)}

    def _maker(self, size):
        def make(work, device):
            side = Side(size)
            if sum(other.size for other in self.there) + size > self.room:
                raise torch.OutOfMemoryError("no room")
            self.there.add(side)
            return side

        return make


class Side:
    def __init__(self, size: float) -> None:
        self.size = size

    def __call__(self) -> torch.Tensor:
        return torch.tensor(2.0)


@pytest.fixture
def of_room(monkeypatch):
    def measure(room: float, **sizes: float) -> dict:
        monkeypatch.setattr(gpu, "_MAKERS", Sides(room, **sizes).makers)
        return gpu.measure(WORK, CPU, "a row", 1e12, repeats=3)

    return measure


def test_sides_that_fit_take_turns(of_room):
    result = of_room(3, loop=2, here=1)
    assert result["ratio"] > 0
    assert result["repeats"] == 3
    assert result["candidate"]["shown"].startswith(f"{result['candidate']['per_sec']:,.0f} images/s, MFU ")


def test_sides_that_do_not_fit_at_once_are_built_anew_for_their_turn(of_room):
    result = of_room(2, loop=2, here=1)
    assert result["ratio"] > 0
    assert result["repeats"] == 1


@pytest.mark.parametrize("room", [1, 0.5])
def test_a_side_that_does_not_fit_is_named(of_room, room, tmp_path, capsys):
    result = of_room(room, loop=2, here=1)
    assert result["baseline"]["shown"] == "does not fit in memory"
    assert ("images/s" in result["candidate"]["shown"]) == (room == 1)
    timing.report(result, "gpu.py", tmp_path)
    assert "a row: not compared" in capsys.readouterr().out
    line = timing.table([json.loads((tmp_path / "gpu.jsonl").read_text())])[-1]
    assert line == f"| a row | does not fit in memory | {result['candidate']['shown']} | - | 1x |"


@pytest.fixture
def small_run(monkeypatch, capsys):
    """The command with rows of a head; returns exit status and the table's rows."""

    def run() -> tuple[int, list[str]]:
        monkeypatch.setattr(gpu, "works", lambda quick: [WORK])
        monkeypatch.setattr(gpu, "measure_input", lambda *_: [])
        monkeypatch.setattr("sys.argv", ["bench.gpu", "--quick", "--repeats", "1"])
        status = gpu.main()
        return status, [line for line in capsys.readouterr().out.splitlines() if line.startswith("| CPU")]

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_figures_of_a_cpu_are_not_kept(small_run, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    status, rows = small_run()
    assert status == 0
    assert [row.split(" | ")[0] for row in rows] == ["| CPU, no claim: head alone, B=4, C=100, bf16"]
    assert not list(tmp_path.iterdir())


def test_a_row_without_time_is_left_out_and_named(small_run, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "_BUDGET_SEC", 1.0)
    status, rows = small_run()
    assert status == 0
    assert rows[0].count("left out: no time") == 2


def test_a_row_that_fails_is_told_at_the_end(small_run, monkeypatch):
    def fail(work, device):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(gpu, "_MAKERS", dict.fromkeys(gpu._NAMES, fail))
    status, rows = small_run()
    assert status == 1
    assert rows[0].count("failed: RuntimeError: no compiler |") == 2


def test_rows_are_expected_to_take_what_those_of_their_kind_took():
    times = gpu.RowTimes()
    times.note(Work("ir_50", 128, 1000, "16"), 10.0)
    assert times.expected(Work("ir_101", 128, 1000, "bf16")) == pytest.approx(20.2)
    compiled = times.expected(Work("ir_101", 128, 1000, "bf16", compile=True))
    assert compiled > 60  # nothing measured yet


def test_operations_are_those_of_the_layers():
    # 6.3 billion multiplications and additions forward (docs/models.md), twice as many backward
    assert backbone_operations("ir_50") == pytest.approx(6 * 6.3e9, rel=0.01)
    assert Work(None, 2, 10, "16", sample_rate=0.5).operations == 6 * 2 * 512 * 5


@pytest.mark.parametrize("rate", [None, 1.0])
def test_both_sides_compute_the_same_loss_and_the_same_gradient(rate, monkeypatch):
    monkeypatch.setattr("bench._gpu_steps._MARGIN", 0.0)  # with one, the loop's gradient is not that of its loss
    monkeypatch.setattr("bench._gpu_steps._LR", 1.0)
    monkeypatch.setattr("bench._gpu_steps._LARGEST_NORM", 1e9)
    work = Work(None, 4, 100, "bf16", sample_rate=rate)
    plain, ours = PlainLoop(work, CPU), OurStep(work, CPU)
    start = plain.weight.detach().clone()
    assert float(ours()) == pytest.approx(float(plain()), rel=1e-3)
    kernel = ours.module.head.kernel.detach()
    moved = (kernel if rate else kernel.t()) - start
    expected = plain.weight.detach() - start
    assert (moved - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("work", [WORK, Work("ir_mini", 4, 100, "bf16"), Work(None, 4, 100, "bf16", sample_rate=0.1)])
def test_our_side_does_not_wait_for_the_device_and_the_loop_reads_its_loss(work, monkeypatch):
    meta_device.as_a_gpu(monkeypatch)
    device = torch.device("meta")
    ours = OurStep(work, device)
    assert ours().device == device
    if work.sample_rate is None:  # the loop counts the classes of the batch, which meta does not know
        loop = PlainLoop(work, device)
        with pytest.raises(RuntimeError, match=r"item\(\)"):
            loop()
        assert {weight.device for weight in (loop.weight, *loop.backbone)} == {device}
