"""One axis of a chart: from values to places in the drawing, linear or logarithmic, with round numbers as ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

WANTED_TICKS = 5
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, laid out from `start` to `end` in the drawing's own units."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies; what is beyond the axis lies on its end."""
        low, high, value = (map(math.log10, (self.low, self.high, max(value, self.low)))) if self.log else self._linear(value)
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def _linear(self, value: float) -> tuple[float, float, float]:
        return self.low, self.high, value

    def ticks(self) -> list[float]:
        """Round values within the axis, at least two."""
        if not self.log:
            step = round_step(self.high - self.low)
            count = math.floor((self.high - self.low) / step + 1e-9)
            return [self.low + step * number for number in range(count + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5)):
            found = [factor * 10.0**decade for decade in decades for factor in factors]
            found = [value for value in found if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
            if len(found) >= 3:
                break
        return found if len(found) >= 2 else [self.low, self.high]


def round_step(span: float, wanted: int = WANTED_TICKS) -> float:
    """The round distance (1, 2, 2.5 or 5 times a power of ten) that cuts `span` into `wanted` parts or a few less."""
    scale = 10.0 ** math.floor(math.log10(span / wanted))
    return next(step * scale for step in STEPS if step * scale * wanted >= span * (1 - 1e-9))


def fitted(values: Iterable[float], start: float, end: float, *, log: bool = False, from_zero: bool = True) -> Axis:
    """The axis that holds all `values`, ending on round numbers.

    Raises:
        ValueError: no values, one that is not finite, or one that is not above 0 on a logarithmic axis.
    """
    numbers = list(values)
    if not numbers or not all(map(math.isfinite, numbers)) or (log and min(numbers) <= 0):
        raise ValueError(f"an axis needs finite values{', all above 0' if log else ''}; got {numbers[:5]}")
    low, high = min(numbers), max(numbers)
    if log:
        return Axis(_round_down(low), _round_up(high * (1 + 1e-9)), start, end, log=True)
    low = min(0.0, low) if from_zero else low
    if high <= low:
        high = low + 1.0
    step = round_step(high - low)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end)


def _round_down(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return max(factor * decade for factor in (1, 2, 5) if factor * decade <= value * (1 + 1e-9))


def _round_up(value: float) -> float:
    decade = 10.0 ** math.floor(math.log10(value))
    return min(factor * decade for factor in (1, 2, 5, 10, 20) if factor * decade > value)


def show(value: float) -> str:
    """A tick's text: up to four significant digits, thousands in groups, no needless zeros."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
