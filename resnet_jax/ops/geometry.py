"""The static shape of a convolution, and which of its kernel's taps ever touch the image."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

Pair = int | Sequence[int]  # of rows and columns, or one number for both


class Axis(NamedTuple):
    """One spatial axis of a convolution: everything that decides which input meets which tap.

    Output ``o`` reads input ``o * stride + tap - low`` for each tap in ``range(kernel)``; positions
    outside ``range(size)`` are zeros.
    """

    size: int
    kernel: int
    stride: int
    low: int
    high: int

    @property
    def out(self) -> int:
        """Number of output positions."""
        return (self.size + self.low + self.high - self.kernel) // self.stride + 1

    def taps(self) -> range:
        """Return the taps from the first to the last that touch the image (1 of 3 on one pixel)."""
        touching = [
            tap
            for tap in range(self.kernel)
            if any(0 <= o * self.stride + tap - self.low < self.size for o in range(self.out))
        ]
        return range(touching[0], touching[-1] + 1) if touching else range(0)

    def trimmed(self) -> "Axis":
        """Return this axis for the kernel cut to :meth:`taps`; its padding may be negative."""
        taps = self.taps()
        low = self.low - taps.start
        high = (self.out - 1) * self.stride + len(taps) - self.size - low
        return Axis(self.size, len(taps), self.stride, low, high)

    def transposed(self) -> "Axis":
        """Return the axis from output to input, stride 1; tap ``i`` becomes ``kernel - 1 - i``."""
        low, high = self.kernel - 1 - self.low, self.kernel - 1 - self.high
        return Axis(self.out, self.kernel, 1, low, high)


class Geometry(NamedTuple):
    """A two-dimensional convolution's static shape: one :class:`Axis` for rows, one for columns."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(cls, size: Sequence[int], window: Pair, stride: Pair, padding: Pair) -> Self:
        """Return the geometry of a kernel or a pooling window, with symmetric padding."""
        window, stride = _pair(window, "window", 1), _pair(stride, "stride", 1)
        low = high = _pair(padding, "padding", 0)
        rows, columns = map(Axis, size, window, stride, low, high)
        geometry = cls(rows, columns)
        if geometry.is_static and min(geometry.out) < 1:
            raise ValueError(
                f"a {window} window does not fit in a {tuple(size)} image padded by {low}"
            )
        return geometry

    @property
    def size(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def kernel(self) -> tuple[int, int]:
        return self.rows.kernel, self.columns.kernel

    @property
    def stride(self) -> tuple[int, int]:
        return self.rows.stride, self.columns.stride

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.rows.low, self.rows.high), (self.columns.low, self.columns.high)

    @property
    def out(self) -> tuple[int, int]:
        return self.rows.out, self.columns.out

    @property
    def is_static(self) -> bool:
        """Whether height and width are known, not symbolic."""
        return all(isinstance(n, int) for n in self.size)

    def trimmed(self) -> "Geometry":
        """Return this convolution for the kernel cut to the taps that touch the image."""
        return Geometry(self.rows.trimmed(), self.columns.trimmed())

    def transposed(self) -> "Geometry":
        """Return the convolution with the flipped kernel that is the input gradient at stride 1."""
        return Geometry(self.rows.transposed(), self.columns.transposed())


def _pair(value: Pair, name: str, least: int) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int | np.integer) else value
    if min(rows, columns) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return rows, columns
