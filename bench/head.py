"""Forward and backward of the AdaFace head, against the formula written out over the whole (B, C) matrix.

    python -m bench.head

The baseline normalises the kernel, takes acos and cos of every cosine and adds both margins through one-hot matrices,
as the paper's equations read; PyTorch differentiates it. B = 512, D = 512, C = 85,742 (MS1MV2), float32.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adaface.heads.margins import build_head
from bench.timing import Side, compare, options, report

D = 512
_M, _H, _S, _T_ALPHA, _EPS = 0.4, 0.333, 64.0, 0.01, 1e-3
_TOLERANCE = 1e-5


class WrittenOutHead(torch.nn.Module):
    """AdaFace with one-hot margins (equations 14 to 16 of the paper)."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(kernel.clone())  # (D, C)
        self.mean, self.std = torch.tensor(20.0), torch.tensor(100.0)

    def loss(self, embeddings: Tensor, norms: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy; the statistics move as in training."""
        cosine = (embeddings @ F.normalize(self.kernel, dim=0)).clamp(-1 + _EPS, 1 - _EPS)  # (B, C)
        safe = norms.clamp(0.001, 100).detach()  # (B, 1)
        self.mean = _T_ALPHA * safe.mean() + (1 - _T_ALPHA) * self.mean
        self.std = _T_ALPHA * safe.std() + (1 - _T_ALPHA) * self.std
        z = (_H * (safe - self.mean) / (self.std + _EPS)).clamp(-1, 1)  # (B, 1)
        one_hot = torch.zeros_like(cosine).scatter_(1, labels.unsqueeze(1), 1.0)  # (B, C)
        theta = (cosine.acos() - one_hot * _M * z).clamp(_EPS, math.pi - _EPS)
        logits = _S * (theta.cos() - one_hot * (_M + _M * z))
        return F.cross_entropy(logits, labels)


def step(head: Any, embeddings: Tensor, norms: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients for embeddings (B, D) and kernel (D, C)."""
    loss = head.loss(embeddings, norms, labels)
    loss.backward()
    return loss.detach(), embeddings.grad, head.kernel.grad


def same_numbers(baseline: tuple[Tensor, ...], candidate: tuple[Tensor, ...]) -> dict[str, Any]:
    """Raise unless loss and gradients agree; a gradient's tolerance is a share of its largest number."""
    differences = {}
    for name, was, now in zip(
        ("loss", "gradient of embeddings", "gradient of kernel"), baseline, candidate, strict=True
    ):
        difference = float((now - was).abs().max() / was.abs().max())
        if not difference < _TOLERANCE:
            raise AssertionError(f"{name}: the sides differ by {difference:.1e} of the largest number")
        differences[f"difference of {name}"] = f"{difference:.1e}"
    return differences


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    B, C = (32, 2_000) if chosen.quick else (512, 85_742)
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(B, D)).requires_grad_()
    norms, labels = torch.rand(B, 1) * 30 + 5, torch.randint(0, C, (B,))
    for row, keep, target in (
        (f"head forward + backward, AdaFace, B={B}, D={D}, C={C:,}", True, 3),
        (f"the same, exponentials computed twice, B={B}, D={D}, C={C:,}", False, 2),
    ):
        head = build_head("adaface", D, C, _M, _T_ALPHA, _H, _S)
        head.keep_exponentials = keep
        written_out = WrittenOutHead(head.kernel.detach())

        def side(name: str, head: Any) -> Side:
            def forget_gradients() -> None:
                head.kernel.grad = embeddings.grad = None

            return Side(name, lambda: step(head, embeddings, norms, labels), before=forget_gradients)

        result = compare(
            row,
            side("written-out formula", written_out),
            side("Head.loss", head),
            count=B,
            unit="samples",
            target=target,
            check=same_numbers,
            repeats=chosen.repeats,
        )
        slow, fast = (result[name]["peak_mb"] for name in ("baseline", "candidate"))
        if slow:
            result["details"]["extra memory"] = f"{fast / slow:.2f} of the baseline's"
        report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
