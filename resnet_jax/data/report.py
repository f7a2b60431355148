"""The result of verifying files on disk."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What is whole and what is damaged of a dataset, a run, or a folder of images.

    Attributes:
        name: the dataset, or the run.
        folder: where it is.
        good: the files that are whole; of a folder of images a line for each class.
        damaged: a line for each bad file, which says its name and what is wrong.
        usable: what can be done with it as it is.
        images: whether it is a folder of images.
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
        return not self.damaged
