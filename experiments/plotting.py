"""Shared by the figures: the colours of a run's own plots, and axes with plain numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from resnet_jax.inspection.plots import OKABE_ITO

# Everyone can tell these apart; lines and markers should differ as well.
BLUE, ORANGE, GREEN, PINK, _, SKY = OKABE_ITO
BLACK = "#000000"


def logarithmic(axis: Axis, ticks: tuple[float, ...] = (), subs: tuple[int, ...] = (1,)) -> None:
    """Make an axis logarithmic, with plain numbers at ``ticks`` or ``subs`` times powers of ten."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
    if ticks:
        axis.set_minor_locator(NullLocator())


def panels(
    size: tuple[float, float], titles: Iterable[str], rows: int = 1, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes: ``rows`` rows, with a column for each title."""
    titles = list(titles)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(rows, len(titles), squeeze=False, **shared)
    for axes in grid.flat:
        axes.grid(alpha=0.3, lw=0.5)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return figure, grid
