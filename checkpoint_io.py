"""Lightning's way to checkpoint files: that of ``checkpoints.py``."""

from pathlib import Path
from typing import Any

from checkpoints import load_checkpoint, save_checkpoint
from lightning_setup import pl


class AtomicCheckpointIO(pl.plugins.io.TorchCheckpointIO):
    """Lightning's checkpoint files, renamed into place when whole, read with ``weights_only`` alone."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` by ``checkpoints.save_checkpoint``."""
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
        """Read a checkpoint by ``checkpoints.load_checkpoint``, whatever the caller asks for."""
        return load_checkpoint(path)
