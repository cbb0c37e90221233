"""The Triton kernels of the softmax against PyTorch's operations, in Triton's interpreter, for test_softmax_kernel.py.

    TRITON_INTERPRET=1 python -m tests.support.kernel_worker

Prints the largest relative differences of loss and gradients, by case, as JSON.
"""

import copy
import itertools
import json
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from adaface.heads import fused_softmax, softmax_kernel
from adaface.heads.base import Head
from adaface.heads.margins import HEADS, build_head

B, D, C = 10, 16, 37
HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def results(head: Head, embeddings: Tensor, labels: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    norms = torch.linspace(1, 60, B).unsqueeze(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = head.loss(embeddings, norms, labels)
    return [loss.detach(), *torch.autograd.grad(loss, (embeddings, head.kernel))]


def difference(name: str, dtype: str, keep: bool, clamped: bool) -> list[float]:
    """Largest relative differences of loss, and of the gradients of embeddings and kernel."""
    torch.manual_seed(0)
    head = build_head(name, D, C)
    head.keep_exponentials = keep
    labels = torch.randint(0, C, (B,))
    embeddings = F.normalize(torch.randn(B, D))
    if clamped:  # cosines of 1 and -1 to their own and to other classes
        columns = F.normalize(head.kernel.detach(), dim=0).T[:: head.sub_centers]
        embeddings = torch.cat((columns[labels[:3]], -columns[labels[3:5]], columns[(labels[5:8] + 1) % C]))
        embeddings = torch.cat((embeddings, -columns[(labels[8:] + 1) % C]))
    embeddings.requires_grad_()
    sides = []
    for kernels in (None, softmax_kernel):
        fused_softmax._kernels_for = lambda z, kernels=kernels: kernels
        sides.append(results(copy.deepcopy(head), embeddings, labels, HALF[dtype]))
    return [float((now - was).abs().max() / was.abs().max()) for was, now in zip(*sides, strict=True)]


def main() -> None:
    softmax_kernel._COLUMNS = 16  # several programs for each row
    fused_softmax._BLOCK_NUMBERS_CPU = 20 * D  # and several blocks, of 20 and 17 classes
    softmax_kernel.try_out(torch.device("cpu"))
    differences = {}
    of_16_bits = itertools.product(HEADS, ("bfloat16", "float16"), (True,), (True,))
    for case in (*itertools.product(HEADS, ("float32",), (True, False), (False, True)), *of_16_bits):
        differences["-".join(map(str, case))] = difference(*case)
    # what is not a number stays so
    z = torch.randn(3, 40)
    z[1, 30] = torch.nan
    sums = softmax_kernel.maxima_and_sums(z, torch.tensor([-1, -1, 50]), 5.0)[1]
    json.dump({"differences": differences, "nan": sums.isnan().tolist()}, sys.stdout)


if __name__ == "__main__":
    main()
