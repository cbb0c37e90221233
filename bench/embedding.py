"""Embedding 112x112 images by ir_50 in evaluation mode, against the eager module in PyTorch's own layout.

    python -m bench.embedding

What a validation does: batch norms folded into the convolutions, channels last, shortcuts without pooling.
"""

from typing import Any

import torch
from torch import Tensor

from adaface.models.input_format import normalize_images
from adaface.models.layers import fold_batch_norms
from adaface.models.registry import build_model
from bench._textbook_net import textbook
from bench.timing import Side, compare, options, report

_TOLERANCE = 1e-5  # of a unit embedding


def same_embeddings(baseline: Tensor, candidate: Tensor) -> dict[str, Any]:
    """Raise unless the embeddings (B, 512) agree."""
    difference = float((candidate - baseline).abs().max())
    if not difference < _TOLERANCE:
        raise AssertionError(f"the embeddings differ by {difference:.1e}")
    return {"largest difference": f"{difference:.1e}"}


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    arch, count = ("ir_mini", 2) if chosen.quick else ("ir_50", 32)
    torch.manual_seed(0)
    model = build_model(arch)
    images = torch.randint(0, 256, (count, 112, 112, 3), dtype=torch.uint8)
    with torch.no_grad():
        model.train()(normalize_images(images))  # batch norms that are not the identity
    model.eval()
    plain = textbook(model)
    folded = fold_batch_norms(model).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def embed_plain() -> Tensor:
        return plain(normalize_images(images, channels_last=False))[0]

    @torch.inference_mode()
    def embed_folded() -> Tensor:
        return folded(normalize_images(images))[0]

    result = compare(
        f"embedding, {arch}, B={count}",
        Side("eager module, NCHW", embed_plain),
        Side("folded, channels last", embed_folded),
        count=count,
        unit="images",
        target=1.2,
        check=same_embeddings,
        repeats=chosen.repeats,
    )
    report(result, __file__, chosen.output)


if __name__ == "__main__":
    main()
