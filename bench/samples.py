"""Measured values, and what is said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Samples:
    """Values of one figure, one a round, all in the same unit."""

    unit: str = "ms"
    values: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, values: Iterable[float], unit: str = "ms") -> Samples:
        """Make them from values that are there already."""
        return cls(unit=unit, values=list(values))

    def add(self, value: float) -> None:
        """Enter one."""
        self.values.append(value)

    @property
    def median(self) -> float:
        """The median; NaN without values."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def worst(self) -> float:
        """The largest; NaN without values."""
        return max(self.values, default=math.nan)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the values is below the first, a quarter above the second."""
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    def __str__(self) -> str:
        """Median, the quartiles and the worst, and how many."""
        low, high = (number(value) for value in self.quartiles)
        unit = f" {self.unit}" if self.unit else ""
        spread = f"quartiles {low}–{high}, worst {number(self.worst)}"
        return f"{number(self.median)}{unit} ({spread}), n={len(self.values)}"

    def short(self) -> str:
        """Median and worst, for a cell of a table."""
        return f"{number(self.median)} ({number(self.worst)})"

    def ratio(self, peer: Samples) -> str:
        """The ratio of the medians."""
        return f"{self.median / peer.median:.2f}x"

    def as_json(self) -> dict[str, Any]:
        """All values, and the median and worst for those who look things up."""
        values = [round(value, 3) for value in self.values]
        return {
            "unit": self.unit,
            "n": len(values),
            "median": round(self.median, 3) if values else None,
            "worst": round(self.worst, 3) if values else None,
            "values": values,
        }


def number(value: float) -> str:
    """As many digits as mean something."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
