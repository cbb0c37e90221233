"""The base class of all backbones: faces of 112x112 pixels to unit embeddings and their norms.

A network subclasses ``Backbone`` and defines its features and its stages (CONTRIBUTING.md, "How to add a
backbone"). The input is that of the official code: BGR, ``x / 127.5 - 1``.

Gradient checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) is implemented here for all
of them: only the input of each block is kept for the backward pass, which recomputes the activations inside.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

EMBEDDING_SIZE = 512
IMAGE_SIZE = 112

Stage = tuple[nn.Module, ...]


class Backbone(nn.Module):
    """Base of all backbones; a subclass defines ``features`` and ``stages``.

    Attributes:
        side: size of the network's input in pixels; differs from 112 if it resizes the images.
        gradient_checkpointing: keep only the blocks' inputs for the backward pass and recompute the activations inside:
            about a third more time, a fraction of the memory, the same bits (on a GPU with ``--deterministic``).
    """

    side = IMAGE_SIZE
    random_blocks = False  # whether a block draws random numbers, such as for dropout

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False

    def features(self, images: Tensor) -> Tensor:
        """Map (B, 3, 112, 112) to the embeddings before normalization, (B, 512)."""
        raise NotImplementedError(f"{type(self).__name__} must define features(images) -> (B, {EMBEDDING_SIZE})")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The network's modules from the input to the output, in groups: first the input layer, last the output layer.

        The groups between them list their blocks. No module is in two groups, or inside of another one. A parameter
        that is in none (a position embedding that the network itself holds) belongs to the first group.
        """
        raise NotImplementedError(f"{type(self).__name__} must define stages, groups of modules from input to output")

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The modules of the middle stages, to which gradient checkpointing applies, in order."""
        return tuple(module for stage in self.stages[1:-1] for module in stage if list(module.children()))

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """Return every parameter of the network, once, by its stage."""
        groups = [[p for module in stage for p in module.parameters()] for stage in self.stages]
        placed = {p for group in groups for p in group}
        groups[0] = [p for p in self.parameters() if p not in placed] + groups[0]
        return groups

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Embed faces.

        Args:
            images: (B, 3, 112, 112) BGR, ``x / 127.5 - 1`` (see ``models.input_format.normalize_images``).

        Returns:
            Unit embeddings (B, 512) and their L2 norms before normalization (B, 1); float32 under autocast.

        Raises:
            ValueError: images of another shape.
        """
        if images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(
                f"expected images (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}), aligned faces channels first, "
                f"got {tuple(images.shape)}; normalize_images turns (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3) uint8 into them"
            )
        if self.gradient_checkpointing and torch.is_grad_enabled():
            with _checkpointed(self.blocks, self.random_blocks):
                x = self.features(images)
        else:
            x = self.features(images)  # (B, 512)
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()  # under autocast: squares of 512 numbers need more than 16 bits
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # (B, 1)
        return x / norm, norm


@contextlib.contextmanager
def _checkpointed(blocks: tuple[nn.Module, ...], random: bool) -> Iterator[None]:
    """Apply gradient checkpointing to the blocks during a ``with`` block."""
    for block in blocks:
        contexts = functools.partial(_recomputation_contexts, block)
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=random, context_fn=contexts
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own method is visible again


def _recomputation_contexts(block: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _StatisticsKept(block)


class _StatisticsKept:
    """Freezes the running statistics of batch norms, which the first forward pass has updated already.

    Entered for each recomputation.
    """

    def __init__(self, block: nn.Module) -> None:
        self._norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self._states = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()  # None is no choice for SyncBatchNorm

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self._norms, self._states, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
