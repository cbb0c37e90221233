import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adaface.heads import fused_softmax
from adaface.heads.margins import HEADS

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton, which comes with PyTorch for CUDA, is not installed"
)


@needs_triton
def test_the_kernels_compute_what_pytorch_computes():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.kernel_worker"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["differences"]) == len(HEADS) * 6
    for case, (loss, embeddings, kernel) in told["differences"].items():
        assert loss < 1e-6, case
        # the interpreter cuts bfloat16 numbers off, where GPUs round
        assert max(embeddings, kernel) < (1e-2 if "bfloat16" in case else 1e-5), case
    assert told["nan"] == [False, True, False]


@needs_triton
@pytest.mark.parametrize("capability", [70, 90])
def test_the_kernels_compile_for_gpus(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from adaface.heads import softmax_kernel

    scalars = {"columns": "i32", "limit": "fp32", "WIDTH": "constexpr"}
    shared = {"z": "*fp32", "labels": "*i64"}
    sources = [(softmax_kernel._maxima_and_sums_kernel, {**shared, "maxima": "*fp32", "sums": "*fp32", **scalars})]
    for dtype in ("*fp32", "*fp16", "*bf16"):
        more = {"numbers": "*fp32", "gradient": dtype}
        sources.append((softmax_kernel._gradient_kernel, {**shared, **more, **scalars}))
    for kernel, signature in sources:
        source = ASTSource(kernel, signature, constexprs={(len(signature) - 1,): softmax_kernel._COLUMNS})
        options = {"num_warps": softmax_kernel._WARPS}
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.asm["cubin"]


def test_without_triton_pytorch_computes_and_the_log_says_so(monkeypatch, caplog):
    def missing(name):
        raise ModuleNotFoundError(f"No module named 'triton'\n{name}")

    monkeypatch.setattr(fused_softmax.importlib, "import_module", missing)
    fused_softmax._kernels.cache_clear()
    with caplog.at_level("INFO"):
        assert fused_softmax._kernels(torch.device("cpu")) is None
        assert fused_softmax._kernels(torch.device("cpu")) is None
    fused_softmax._kernels.cache_clear()
    assert [r.message for r in caplog.records] == [
        "the softmax is computed without Triton: ModuleNotFoundError No module named 'triton'"
    ]


def test_on_a_cpu_pytorch_computes():
    assert fused_softmax._kernels_for(torch.ones(2, 3)) is None
