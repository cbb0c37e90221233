import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adaface.config.options import DeviceOptions, OptimizerOptions
from adaface.models.input_format import normalize_images
from adaface.models.registry import build_model
from adaface.training import memory_plan
from adaface.training.execution import configure_backbone
from adaface.training.memory_plan import (
    Activations,
    StepMemory,
    count_activations,
    expected_activations,
    step_memory,
    what_takes_less,
)
from train_val import FaceRecognitionModule

ROOT = Path(__file__).resolve().parents[2]
MEMORY = StepMemory(
    backbone_parameters=1_000_000,
    embedding_size=500,
    class_num=1000,
    sub_centers=1,
    sharded=False,
    sample_rate=1.0,
    accumulated=1,
    optimizer_numbers=1,
    bytes_per_number=4,
    processes=1,
    activations=Activations(kept=1e6, kept_checkpointing=4e5, largest=1e5, fixed=5e3),
    gradient_checkpointing=False,
    keep_exponentials=True,
    batch_size=8,
)


def test_the_sums_by_hand():
    assert MEMORY.weights_bytes == 1_500_000 * 3 * 4  # weights, gradients, momentum
    assert replace(MEMORY, processes=2).weights_bytes == 1_500_000 * 4 * 3  # the gradients are in DDP's buckets
    assert MEMORY.activations_bytes == 5e3 + 8 * 1.2e6
    assert replace(MEMORY, gradient_checkpointing=True).activations_bytes == pytest.approx(5e3 + 8 * 6e5)
    assert replace(MEMORY, averaged=True).weights_bytes == 18_000_000 + 4_000_000
    assert MEMORY.head_bytes == 8 * 1000 * 4
    assert replace(MEMORY, keep_exponentials=False).head_bytes == 0
    centers = replace(MEMORY, sub_centers=3)
    assert centers.head_parameters == 3 * 1000 * 500
    assert centers.head_bytes == 8 * 1000 * 5  # and which center is nearest
    sharded = replace(MEMORY, processes=3, sharded=True)
    assert sharded.head_parameters == 334 * 500
    assert sharded.weights_bytes == (1_000_000 * 3 + 334 * 500 * 3) * 4
    assert sharded.head_bytes == 3 * 8 * 334 * 4
    sampled = replace(MEMORY, sharded=True, sample_rate=0.1)
    assert sampled.weights_bytes == pytest.approx((1_000_000 * 3 + 500_000 * (2 + 0.3)) * 4)
    assert sampled.head_bytes == pytest.approx(8 * 100 * 4)
    summed = replace(sampled, accumulated=3).weights_bytes  # 0.271 of the classes are in one of the three
    assert summed == pytest.approx((1_000_000 * 3 + 500_000 * (2 + 3 * 0.271)) * 4)
    assert MEMORY.total_bytes == 18_000_000 + 9_605_000 + 32_000 + 8 * 3 * 112 * 112


def saved_by_the_graph(output: torch.Tensor, stay: set[int]) -> dict[int, int]:
    """Address -> bytes of everything that the nodes of an autograd graph hold: another way to see the same."""
    found, seen, todo = {}, set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        held = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        held += list(getattr(node, "saved_tensors", ()))
        for tensor in held:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in {0, *stay}:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def test_activations_are_what_the_autograd_graph_holds():
    torch.manual_seed(0)
    model = build_model("ir_mini")
    counted = count_activations(model, "32-true")
    images = normalize_images(torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8))
    embeddings, norms = model(images)
    stay = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    held = saved_by_the_graph(embeddings.sum() + norms.sum(), stay)
    assert counted.fixed + 2 * counted.kept == pytest.approx(sum(held.values()), rel=1e-3)
    assert counted.largest == max(held.values()) / 2 == 24 * 56 * 56 * 4
    assert counted.kept_checkpointing < counted.kept


@pytest.mark.parametrize("arch", ["ir_mini", "mobilefacenet"])
def test_activations_are_known_without_computing_them(arch):
    model = build_model(arch)
    assert expected_activations(model, "32-true") == count_activations(model, "32-true")
    assert expected_activations(model, "64-true").kept == 2 * count_activations(model, "32-true").kept
    halves, counted = (count(model, "bf16-mixed") for count in (expected_activations, count_activations))
    assert 0.8 * counted.kept < halves.kept <= counted.kept, "never more than a step needs"


def test_counting_leaves_the_model_as_it_was():
    model = build_model("ir_mini").eval()
    model.gradient_checkpointing = True
    with_checkpointing = count_activations(model, "32-true")
    assert model.gradient_checkpointing
    assert not model.training
    model.gradient_checkpointing = False
    assert count_activations(model, "32-true") == with_checkpointing
    assert not any(model.body[0]._forward_pre_hooks.values())


def test_16_bits_keep_less_and_64_bits_twice():
    model = build_model("ir_mini")
    plain = count_activations(model, "32-true")
    halves = count_activations(model, "bf16-mixed")
    assert halves.kept < 0.75 * plain.kept
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert halves.fixed == pytest.approx(2 * weights, rel=0.01)
    assert plain.fixed < 0.01 * weights
    assert count_activations(model, "64-true").kept == 2 * plain.kept


def test_a_step_is_described_by_its_module():
    module = FaceRecognitionModule("ir_mini", 7, optimizer=OptimizerOptions(momentum=0.0))
    options = DeviceOptions(gradient_checkpointing=True, head_memory="small")
    configure_backbone(module, options, accelerator="cpu", processes=1, batch_size=4)
    activations = count_activations(module.model, "32-true")
    memory = step_memory(module, activations, processes=2, batch_size=4, accumulated=3, precision="32-true")
    assert (memory.optimizer_numbers, memory.class_num, memory.head_parameters) == (0, 7, 7 * 512)
    assert memory.accumulated == 3
    assert (memory.gradient_checkpointing, memory.keep_exponentials, memory.processes) == (True, False, 2)
    assert memory.backbone_parameters == sum(p.numel() for p in module.model.parameters())


def test_what_takes_less_is_told_with_its_size():
    memory = replace(MEMORY, embedding_size=5, class_num=100_000)  # 31.1 MB
    found = what_takes_less(memory, 2.7e7, batch_size=16, devices=2)
    assert found[0] == "--gradient_checkpointing: 0.03 GB"
    assert found[1] == "--head_memory small: 0.03 GB, still too much"
    assert found[2] == "--batch_size 8 --accumulate_grad_batches 2 (times the current value): 0.02 GB"
    assert found[3] == "all of these: 0.02 GB"
    several = what_takes_less(replace(memory, processes=2), 2.7e7, batch_size=16, devices=2)
    assert several[2] == "--head_sharding on: 0.03 GB, still too much"
    assert not any("--head_memory" in line for line in what_takes_less(MEMORY, 1.0, batch_size=16, devices=2)), "0.1 %"
    nothing = replace(MEMORY, gradient_checkpointing=True, keep_exponentials=False)
    assert what_takes_less(nothing, 1.0, batch_size=16, devices=2) == []


STEP = """
import threading, time, torch
from adaface.training.memory_plan import expected_activations, step_memory
from train_val import FaceRecognitionModule

def anonymous():  # pages of libraries come and go as the system likes
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) * 1024

module = FaceRecognitionModule("ir_mini", 20_000)
activations = expected_activations(module.model, "32-true")
memory = step_memory(module, activations, processes=1, batch_size=256, accumulated=1, precision="32-true")
assert memory.least_bytes < memory.total_bytes
images = torch.randint(0, 256, (256, 112, 112, 3), dtype=torch.uint8)
optimizer = module.configure_optimizers()["optimizer"]
before, peak, done = anonymous(), 0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
for _ in range(2):
    loss = module.head.loss(*module(images), torch.zeros(256, dtype=torch.long))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
done = True
thread.join()
weights = 4 * (memory.backbone_parameters + memory.head_parameters)
print((peak - before) / (memory.total_bytes - weights))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory as Linux tells it")
def test_the_prediction_is_near_the_resident_memory_of_real_steps():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # measured 1.28: libraries work with some memory of their own
    assert 0.8 < float(done.stdout) < 1.7


def test_adam_keeps_two_numbers_for_each_weight():
    weight = torch.nn.Parameter(torch.zeros(2))
    assert memory_plan._numbers_per_weight(torch.optim.AdamW([weight])) == 2
    assert memory_plan._numbers_per_weight(torch.optim.SGD([weight], momentum=0.9)) == 1
