"""What a look through files on disk found."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What is whole and what is damaged of a dataset, a run, or a folder of images.

    Attributes:
        name: the dataset, or the run.
        folder: where it is.
        good: the names of the files that are whole.
        damaged: what is wrong, one line for each bad file, which the line names.
        usable: what can be done with it as it is.
        images: whether it is a folder of images; then ``good`` has a line for each class.
        left_out: a line for each kind of thing in a folder of images that is not used.
    """

    name: str
    folder: Path
    good: tuple[str, ...]
    damaged: tuple[str, ...]
    usable: str
    images: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged
