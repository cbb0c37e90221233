"""Options as fields of frozen dataclasses, with help, unit and range as metadata."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from adaface.system.command_line import nearest


@dataclass(frozen=True)
class About:
    """Metadata of an option: everything except its name, type and default.

    Attributes:
        help: text for ``--help``, without unit, range and default, which are appended.
        unit: unit of a number, such as "seconds".
        choices: allowed values of a string.
        removed: choices of earlier versions of PyTorch Lightning.
        minimum: inclusive lower bound.
        above: exclusive lower bound.
        maximum: inclusive upper bound.
        below: exclusive upper bound.
        off: a number outside of the range that disables the option.
        only_with: another option and its value that this option requires.
        changes_training: a different value changes the results of a resumed run, so it is reported on resuming.
        host_specific: the value may differ between the machines of a run.
        at_resume: ``kept``: a resumed run takes the value from its checkpoint unless the user gives one; ``fixed``: a
            different value is an error; ``own``: the value is not restored from the checkpoint.
    """

    help: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    off: int | None = None
    only_with: tuple[str, str] | None = None
    changes_training: bool = True
    host_specific: bool = False
    at_resume: Literal["kept", "fixed", "own"] = "kept"

    @property
    def range(self) -> str:
        """The range in words, such as "at least 0", "between 0 and 1" or "0 or at least 20"; empty if unbounded."""
        if self.minimum is not None and self.maximum is not None:
            return f"between {self.minimum} and {self.maximum}"
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return words if self.off is None else f"{self.off} or {words}"

    def allows(self, number: float) -> bool:
        """Return whether a number is in the range; NaN never is."""
        return number == self.off or (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.maximum is None or number <= self.maximum)
            and (self.below is None or number < self.below)
        )


def option(default: Any, text: str, **about: Any) -> Any:
    """Return the dataclass field of an option.

    Args:
        default: default value.
        text: text for ``--help``.
        about: further fields of ``About``.
    """
    return field(default=default, metadata={"about": About(text, **about)})


@dataclass(frozen=True)
class Group:
    """A group of options; a value outside of its range or choices raises ValueError."""

    def __post_init__(self) -> None:
        """Check each value."""
        for one in dataclasses.fields(self):
            _check(one.name, getattr(self, one.name), one.metadata["about"])


def _check(name: str, value: Any, about: About) -> None:
    if value in about.removed:
        raise ValueError(f"--{name} {value} no longer exists in PyTorch Lightning: use {about.choices[0]}")
    if about.choices and value not in about.choices:
        choices = ", ".join(about.choices)
        raise ValueError(f"--{name} takes one of {choices}, got {value!r}; {nearest(str(value), about.choices)}")
    if value in (math.inf, -math.inf):
        raise ValueError(f"--{name} must be a finite number, got {value}")
    if about.range and not about.allows(value):
        raise ValueError(f"--{name} must be {about.range}, got {value}")
