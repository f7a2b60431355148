"""The result of verifying files on disk."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What is whole and what is damaged of a dataset, a run, or a folder of images."""

    folder: Path
    good: tuple[str, ...]  # files; of a folder of images a line for each class
    damaged: tuple[str, ...]  # a line for each bad file: its name and what is wrong
    usable: str  # what can be done with it as it is
    left_out: tuple[str, ...] = ()  # a line for each kind of thing among images that is not used

    @property
    def ok(self) -> bool:
        return not self.damaged
