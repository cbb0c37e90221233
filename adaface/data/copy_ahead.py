"""Batches on a GPU before they are needed: each is copied while the step before it is computed.

The copies have a stream of their own. Source: the CUDA C++ Programming Guide, "Asynchronous Concurrent Execution".
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


@functools.cache
def _stream_of_copies(device: torch.device) -> Any:
    """Return a device's stream of copies; freed memory stays with its stream, so that each further one would cost."""
    return torch.get_device_module(device).Stream()


def copied_ahead(batches: Iterable[Sequence[Tensor]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches on a device, one behind those that are taken.

    Args:
        batches: tensors in pinned memory; from other memory, a copy waits for the step before.
        device: the current device of its kind.

    Yields:
        Each batch, when the current stream waits for its copy, and for no other.
    """
    streams = torch.get_device_module(device)  # torch.cpu has the same functions, which do nothing
    side = _stream_of_copies(device)
    ready = None
    for batch in batches:
        # its memory may be that of a batch that a step which is queued still reads
        side.wait_stream(streams.current_stream())
        with streams.stream(side):
            copy = tuple(part.to(device, non_blocking=True) for part in batch)
        event = side.record_event()
        if ready is not None:
            streams.current_stream().wait_event(ready[1])
            yield ready[0]
        ready = copy, event
    if ready is not None:
        streams.current_stream().wait_event(ready[1])
        yield ready[0]
