import contextlib
from types import SimpleNamespace

import pytest
import torch

from adaface.data import copy_ahead, datasets
from adaface.data.copy_ahead import copied_ahead
from adaface.data.datasets import WaitingLoader

CPU = torch.device("cpu")


def batches_of(count):
    return [(torch.full((2, 3), number), torch.tensor([number, -number])) for number in range(count)]


class Recorder:
    """Stands for torch.cuda: one stream that computes, one that is made, and everything that is asked of them."""

    def __init__(self):
        self.calls = []
        self.main = self.Stream()
        self.main.name = "main"
        self.active = self.main

    def Stream(self):  # noqa: N802 - the name in torch.cuda
        stream = SimpleNamespace(name="side", events=0)

        def record_event():
            stream.events += 1
            self.calls.append(f"{stream.name} records {stream.events - 1}")
            return stream.events - 1

        stream.record_event = record_event
        stream.wait_stream = lambda other: self.calls.append(f"{stream.name} waits for {other.name}")
        stream.wait_event = lambda event: self.calls.append(f"{stream.name} waits for {event}")
        return stream

    def current_stream(self):
        return self.active

    @contextlib.contextmanager
    def stream(self, stream):
        self.active = stream
        yield
        self.active = self.main


class Part:
    """Stands for a tensor: records on which stream it is copied."""

    def __init__(self, recorder, number):
        self.recorder, self.number = recorder, number

    def to(self, device, non_blocking):
        assert non_blocking
        self.recorder.calls.append(f"{self.recorder.active.name} copies {self.number}")
        return self


@pytest.fixture(autouse=True)
def no_stream_of_another_test():
    copy_ahead._stream_of_copies.cache_clear()
    yield
    copy_ahead._stream_of_copies.cache_clear()


def test_one_stream_serves_all_epochs(monkeypatch):
    """PyTorch keeps the freed memory of each stream for itself."""
    recorder, made = Recorder(), []
    stream = recorder.Stream
    recorder.Stream = lambda: made.append(1) or stream()
    monkeypatch.setattr(torch, "get_device_module", lambda device: recorder)
    for _ in range(3):
        assert len(list(copied_ahead([[Part(recorder, 0)]], CPU))) == 1
    assert len(made) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_batches_are_those_of_the_loader_in_their_order(count):
    copied = list(copied_ahead(batches_of(count), CPU))
    assert len(copied) == count
    for ours, theirs in zip(copied, batches_of(count), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_copy_begins_before_its_step_and_waits_for_the_step_before_it_alone(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(torch, "get_device_module", lambda device: recorder)
    for (part,) in copied_ahead([[Part(recorder, number)] for number in range(3)], CPU):
        recorder.calls.append(f"step {part.number}")
    assert recorder.calls == [
        "side waits for main", "side copies 0", "side records 0",
        "side waits for main", "side copies 1", "side records 1",
        "main waits for 0", "step 0",
        "side waits for main", "side copies 2", "side records 2",  # waits for step 0, beside step 1
        "main waits for 1", "step 1",
        "main waits for 2", "step 2",
    ]  # fmt: skip


def test_an_error_of_the_loader_is_told_one_batch_early():
    def broken():
        yield from batches_of(3)
        raise OSError("the disk is gone")

    numbers = []
    with pytest.raises(OSError, match="the disk is gone"):
        for _, labels in copied_ahead(broken(), CPU):
            numbers.append(int(labels[0]))
    assert numbers == [0, 1]


@pytest.mark.parametrize("device", [None, CPU])
def test_a_loader_copies_where_it_is_told_to(device, monkeypatch):
    copied = []
    monkeypatch.setattr(datasets, "copied_ahead", lambda batches, to: copied.append(to) or copied_ahead(batches, to))
    loader = WaitingLoader(batches_of(4), batch_size=None)
    loader.copies_to = device
    for _ in range(2):  # epochs
        assert [int(labels[0]) for _, labels in loader] == [0, 1, 2, 3]
    assert copied == ([] if device is None else [CPU, CPU])
