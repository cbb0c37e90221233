"""Batches on a GPU before they are needed: each is copied while the step before it is computed.

The copies have a stream of their own. Source: the CUDA C++ Programming Guide, "Asynchronous Concurrent Execution".
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


def copied_ahead(batches: Iterable[Sequence[Tensor]], device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches on a device, one behind those that are taken.

    Args:
        batches: tensors in pinned memory; from other memory, a copy waits for the step before.
        device: the current device of its kind.

    Yields:
        Each batch, when the current stream waits for its copy, and for no other.
    """
    streams = torch.get_device_module(device)  # torch.cpu has the same functions, which do nothing
    side = streams.Stream()
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
