"""The static shape of a convolution, and which of its kernel's taps ever touch the image."""

from dataclasses import dataclass
from typing import NamedTuple


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
        """The shortest range that holds every tap that touches the image at some output.

        On a 1x1 map only the centre tap of a padded 3x3 kernel does.
        """
        touching = [
            tap
            for tap in range(self.kernel)
            if any(0 <= o * self.stride + tap - self.low < self.size for o in range(self.out))
        ]
        return range(touching[0], touching[-1] + 1) if touching else range(0)

    def trimmed(self) -> "Axis":
        """The same axis for the kernel cut to :meth:`taps`; padding then may be negative."""
        taps = self.taps()
        low = self.low - taps.start
        high = (self.out - 1) * self.stride + len(taps) - self.size - low
        return Axis(self.size, len(taps), self.stride, low, high)

    def transposed(self) -> "Axis":
        """From output to input, where tap ``kernel - 1 - i`` is what tap ``i`` was; stride 1."""
        low, high = self.kernel - 1 - self.low, self.kernel - 1 - self.high
        return Axis(self.out, self.kernel, 1, low, high)


@dataclass(frozen=True)
class Geometry:
    """A two-dimensional convolution's static shape: one :class:`Axis` for rows, one for columns."""

    rows: Axis
    columns: Axis

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> "Geometry":
        """Geometry of a convolution with symmetric padding."""
        rows, columns = (
            Axis(size[d], kernel[d], stride[d], padding[d], padding[d]) for d in (0, 1)
        )
        return cls(rows, columns)

    @property
    def size(self) -> tuple[int, int]:
        """Input height and width."""
        return self.rows.size, self.columns.size

    @property
    def kernel(self) -> tuple[int, int]:
        """Kernel height and width."""
        return self.rows.kernel, self.columns.kernel

    @property
    def stride(self) -> tuple[int, int]:
        """Row and column stride."""
        return self.rows.stride, self.columns.stride

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding before and after, of rows and of columns."""
        return (self.rows.low, self.rows.high), (self.columns.low, self.columns.high)

    @property
    def out(self) -> tuple[int, int]:
        """Output height and width."""
        return self.rows.out, self.columns.out

    def trimmed(self) -> "Geometry":
        """The same convolution for the kernel cut to the taps that touch the image."""
        return Geometry(self.rows.trimmed(), self.columns.trimmed())

    def transposed(self) -> "Geometry":
        """The convolution of the output's gradient with the flipped kernel: the input's gradient.

        Only for stride 1.
        """
        return Geometry(self.rows.transposed(), self.columns.transposed())
