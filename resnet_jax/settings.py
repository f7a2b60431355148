"""Settings: options with a type, bounds, and the effect of changing them."""

import dataclasses
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from operator import ge, gt, le, lt
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from resnet_jax.errors import ResNetJaxError

COMPARE = {"at least": ge, "more than": gt, "at most": le, "below": lt}


@dataclass(frozen=True)
class Within:
    """The bounds of a number, such as ``at least 0 and below 1``; infinity is never within them."""

    bounds: str

    def __contains__(self, value: float) -> bool:
        bounds = (bound.rsplit(" ", 1) for bound in self.bounds.split(" and "))
        return value < math.inf and all(COMPARE[how](value, float(end)) for how, end in bounds)


class Effect(Enum):
    """What a setting changes; it decides how runs resume and compare, and how processes agree."""

    LEARNING = "what is learnt: a run continues with the same value only"
    SELECTION = "when a run evaluates and ends, and so which parameters are its best"
    EXECUTION = "speed, memory, what is shown, and how `predict` reads pictures, not what is learnt"
    LOCAL = "how one process reads its data: processes of one run may differ in it"


class Setting(NamedTuple):
    """A setting of a configuration as the command line names it."""

    option: str
    value: Any
    type: Any
    within: Within | None = None
    effect: Effect = Effect.LEARNING


def settings(config: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a configuration, those of nested configurations included."""
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        value, option = getattr(config, name), prefix + name.replace("_", "-")
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, kind):
                raise ResNetJaxError(f"{option} must be of type {kind.__name__}, got {value!r}")
            yield from settings(value, f"{option}.")
            continue
        kind, *notes = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        marks = {type(note): note for note in notes}
        yield Setting(option, value, kind, marks.get(Within), marks.get(Effect, Effect.LEARNING))


def as_argument(value: Any) -> str:
    """Return a setting's value in the form that the command line takes."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check(config: Any) -> None:
    """Raise `ResNetJaxError`, with the option, for a value of the wrong type or out of bounds."""
    for option, value, kind, within, _ in settings(config):
        if not has_type(value, kind):
            name = kind.__name__ if isinstance(kind, type) else str(kind)
            for choice in (kind, *get_args(kind)):
                if get_origin(choice) is Literal:
                    name = f"one of {', '.join(map(str, get_args(choice)))}"
            raise ResNetJaxError(f"--{option} must be {name}, got {value!r}")
        for number in value if isinstance(value, tuple) else (value,):
            if within is not None and number is not None and number not in within:
                finite = " and finite" * (number == math.inf)
                raise ResNetJaxError(f"--{option} must be {within.bounds}{finite}, got {number}")


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a value has a setting's type; an int passes as a float, a bool as neither."""
    origin, kinds = get_origin(kind), get_args(kind)
    if types.NoneType in kinds:
        return any(has_type(value, one) for one in kinds)
    if origin is Literal:
        return value in kinds
    if origin is tuple:
        if kinds[-1] is Ellipsis and isinstance(value, tuple):
            kinds = kinds[:1] * max(1, len(value))
        fits = isinstance(value, tuple) and len(value) == len(kinds)
        return fits and all(map(has_type, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    # NumPy's numbers pass too, such as those of `np.logspace`.
    return isinstance(value, {int: Integral, float: Real}.get(kind, kind))
