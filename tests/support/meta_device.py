"""The meta device in the place of a GPU: it has shapes but no values, so that whatever reads a value raises."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from adaface.heads import base, partial_fc


def as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it have what it lacks: autocast, to float16 in the head, and generators of random numbers."""
    autocast, new_generator, normal = torch.autocast, torch.Generator, torch.Tensor.normal_

    def autocast_elsewhere(device: str, *words, **more):
        return contextlib.nullcontext() if device == "meta" else autocast(device, *words, **more)

    def generator(device="cpu"):
        if torch.device(device).type == "cpu":
            return new_generator(device)
        none = SimpleNamespace()
        none.manual_seed = lambda seed: none
        return none

    for module in (base, partial_fc):
        monkeypatch.setattr(module, "dtype_of_products", lambda embeddings: torch.float16)
    monkeypatch.setattr(torch, "autocast", autocast_elsewhere)
    monkeypatch.setattr(torch, "Generator", generator)
    monkeypatch.setattr(torch.Tensor, "normal_", _on_meta_without_generator(normal))
    for name in ("rand", "randint", "randn"):
        monkeypatch.setattr(torch, name, _on_meta_without_generator(getattr(torch, name)))


def _on_meta_without_generator(function):
    def call(*words, generator=None, **more):
        if isinstance(generator, SimpleNamespace):
            return function(*words, **more)
        return function(*words, generator=generator, **more)

    return call
