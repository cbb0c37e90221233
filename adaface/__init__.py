"""AdaFace: Quality Adaptive Margin for Face Recognition (Kim, Jain, Liu, CVPR 2022): training, evaluation, inference.

    from adaface import Embedder, build_head, build_model, load_model

The names are loaded on first use, so that ``import adaface`` takes milliseconds and does not import PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaface.heads.margins import build_head as build_head
    from adaface.inference.embedder import Embedder as Embedder
    from adaface.inference.embedder import load_model as load_model
    from adaface.models.registry import build_model as build_model

__version__ = "0.2.0"

_HOMES = {
    "Embedder": "adaface.inference.embedder",
    "build_head": "adaface.heads.margins",
    "build_model": "adaface.models.registry",
    "load_model": "adaface.inference.embedder",
}
__all__ = ["Embedder", "__version__", "build_head", "build_model", "load_model"]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'adaface' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_HOMES})
