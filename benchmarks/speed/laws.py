"""Lines and powers through measured seconds, and where they hold worst (the standard library alone)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import linear_regression


def line(name: str, sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """seconds = a + b size, by least squares, in words."""
    slope, start = linear_regression(sizes, seconds)
    return f"seconds = {start:.3g} + {slope:.3g} {name}; {worst(name, sizes, seconds, lambda x: start + slope * x)}"


def power(name: str, sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """seconds = c size^p, by least squares of the logarithms, in words."""
    exponent, log = linear_regression([math.log(x) for x in sizes], [math.log(s) for s in seconds])
    law = worst(name, sizes, seconds, lambda x: math.exp(log) * x**exponent)
    return f"seconds = {math.exp(log):.3g} {name}^{exponent:.2f}; {law}"


def worst(name: str, sizes: Sequence[float], seconds: Sequence[float], law: Callable[[float], float]) -> str:
    """Where a law is off the most, relative to what was measured."""
    off, size = max((abs(law(x) / s - 1), x) for x, s in zip(sizes, seconds, strict=True))
    return f"measured from {min(sizes):,g} to {max(sizes):,g}, off by at most {off:.0%}, at {name} = {size:,g}"
