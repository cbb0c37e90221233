"""The names of the networks, without PyTorch, so that a misspelled one is told at once."""

from adaface.system.command_line import nearest

TIMM_PREFIX = "timm:"
ARCHITECTURE_NAMES = (
    "ir_18", "ir_34", "ir_50", "ir_101", "ir_152", "ir_200", "ir_se_50", "ir_se_101", "ir_se_152", "ir_se_200",
    "ir_mini", "mobilefacenet",
)  # fmt: skip


def unknown_architecture(name: str, known: tuple[str, ...] = ARCHITECTURE_NAMES) -> ValueError:
    """Return the error for an unknown name; the message has the nearest one, and lists all.

    Args:
        name: not known.
        known: names of networks.
    """
    names = f"choose from: {', '.join(known)}; and {TIMM_PREFIX}<name> for a network of timm"
    return ValueError(f"unknown architecture {name!r}; {nearest(name, known, always=names)}")


def check_name(name: str) -> None:
    """Raise ValueError for a name that is neither in ``ARCHITECTURE_NAMES`` nor of timm.

    Args:
        name: name of an architecture.
    """
    if not name.startswith(TIMM_PREFIX) and name not in ARCHITECTURE_NAMES:
        raise unknown_architecture(name)
