"""What the figures share: the colours of a run's own, and axes with plain numbers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator

from resnet_jax.inspection.plots import OKABE_ITO

# Told apart by everyone; lines and markers should differ as well.
BLUE, ORANGE, GREEN, PINK, _, SKY = OKABE_ITO
BLACK = "#000000"


def logarithmic(axis: Axis, ticks: tuple[float, ...] = (), subs: tuple[int, ...] = (1,)) -> None:
    """Scale an axis by the logarithm, with plain numbers at these ticks or multiples of powers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set_minor_formatter(NullFormatter())
    if ticks:
        axis.set_minor_locator(NullLocator())


def panels(
    size: tuple[float, float], titles: Iterable[str], rows: int = 1, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of ``rows`` rows of axes with a column for each title."""
    titles = list(titles)
    figure = Figure(size, layout="constrained")
    grid = figure.subplots(rows, len(titles), squeeze=False, **shared)
    for axes in grid.flat:
        axes.grid(alpha=0.3, lw=0.5)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return figure, grid
