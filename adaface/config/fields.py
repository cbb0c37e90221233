"""What an option is: a field of a frozen dataclass, with help, unit and range as its metadata."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from adaface.system.command_line import nearest


@dataclass(frozen=True)
class About:
    """What is known about an option beside its name, type and default.

    Attributes:
        help: its line of ``--help``, without unit, range and default, which are appended.
        unit: of a number, such as "seconds".
        choices: of a text.
        removed: choices of earlier versions of PyTorch Lightning.
        minimum: the smallest number allowed.
        above: an exclusive lower bound.
        maximum: the largest number allowed.
        below: an exclusive upper bound.
        off: a number outside of the range that switches the option off.
        only_with: an option and the choice of it that this one belongs to; with another it is refused.
        changes_training: another value changes what a resumed run computes, so the change is shown when it is resumed.
        host_specific: the value may differ between the machines of a run.
        at_resume: ``kept``: a resumed run takes the value from its checkpoint unless it is given; ``fixed``: another
            value is refused; ``own``: the value belongs to one start, not to the run.
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
        """The range in words, such as "at least 0" or "in (0, 1]"; empty if every number is allowed."""
        low, high = (
            (self.minimum if self.above is None else self.above),
            (self.maximum if self.below is None else self.below),
        )
        if low is not None and high is not None:
            return f"in {'[' if self.above is None else '('}{low}, {high}{']' if self.below is None else ')'}"
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return words if self.off is None else f"{self.off} (off) or {words}"

    def allows(self, number: float) -> bool:
        """Whether a number is in the range; not a number never is."""
        return number == self.off or (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.maximum is None or number <= self.maximum)
            and (self.below is None or number < self.below)
        )


def option(default: Any, text: str, **about: Any) -> Any:
    """Return the field of an option.

    Args:
        default: the value of a run that does not give it.
        text: its help.
        about: further fields of ``About``.
    """
    return field(default=default, metadata={"about": About(text, **about)})


@dataclass(frozen=True)
class Group:
    """Options that travel together; values outside of their ranges or choices are refused."""

    def __post_init__(self) -> None:
        """Check each value by itself."""
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
