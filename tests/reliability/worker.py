"""Small runs in processes of their own, which can be told to kill themselves at a given point.

The network is a ResNet with one unit a stage and two channels wide: what is tested is what a run
keeps, not what it learns. ``python worker.py ARGUMENTS`` is the command ``resnet-jax`` with it.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # a library that is being imported may swallow a KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import resnet_jax as rj
from resnet_jax.models import VARIANTS

CONFIG = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(60, 30, 20)),
    augment=rj.AugmentConfig(shift=2.0),
    optim=rj.OptimConfig(learning_rate=0.05, schedule="cosine"),
    epochs=3,
    batch_size=10,
    ema=0.9,
    log_every=3,
    eval_every=3,
)
STEPS = 18


def shrink() -> None:
    """Makes ``resnet18`` a network of one unit a stage, in this process."""
    VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=(1, 1, 1, 1), unit=rj.BasicUnit)


@contextlib.contextmanager
def shrunk() -> Iterator[None]:
    """The same for a while, for tests that look at such a run in their own process."""
    before = VARIANTS["resnet18"]
    shrink()
    try:
        yield
    finally:
        VARIANTS["resnet18"] = before


class KillPoint(NamedTuple):
    """The ``count``-th time that ``event`` is about to happen to a path with ``part`` in it.

    Events are Python's audit events (``os.rename``, ``open``, ...), and ``step``, ``evaluate`` and
    ``restore``, which are those of a run.
    """

    event: str
    part: str = ""
    count: int = 1


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: KillPoint) -> None:
    """From now on this process kills itself at that point."""
    from resnet_jax.training.checkpoint import Checkpoints
    from resnet_jax.training.program import Program

    seen = 0

    def happens(event: str, arguments: tuple[Any, ...] = ()) -> bool:
        nonlocal seen
        paths = [str(a) for a in arguments if isinstance(a, str | Path)]
        if event == point.event and (not point.part or any(point.part in p for p in paths)):
            seen += 1
        return event == point.event and seen == point.count

    def within(owner: Any, name: str, event: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def replacement(*args: Any) -> Any:
            if happens(event):
                threading.Timer(0.003, die).start()  # soon after it has begun
            return original(*args)

        setattr(owner, name, replacement)

    within(Program, "train", "step")
    within(Program, "evaluate", "evaluate")
    within(Checkpoints, "restore", "restore")
    sys.addaudithook(lambda event, arguments: die() if happens(event, arguments) else None)


def train(
    config: rj.TrainConfig,
    run_dir: Path,
    reached: Any = None,
    point: KillPoint | None = None,
    ids: Path | None = None,
) -> None:
    """Trains and exits as the command does.

    Args:
        config: the run's.
        run_dir: the run's folder. Errors are written to ``errors.txt`` beside it.
        reached: a shared integer that is told the steps done, and -1 when compilation begins.
        point: where to die.
        ids: a file that gets a line for each step: its number and the examples' indices.
    """
    from resnet_jax.training.loop import fit
    from resnet_jax.training.program import Program
    from resnet_jax.training.progress import Silent

    shrink()

    class Tell(Silent):
        def started(self, step: int, total_steps: int) -> None:
            tell(-1)

        def stepped(self, step: int) -> None:
            tell(step)

    def tell(value: int) -> None:
        if reached is not None:
            reached.value = value

    if ids is not None:
        original = Program.train

        def noted(self: Any, state: Any, examples: Any, indices: Any) -> Any:
            with ids.open("a") as file:
                file.write(f"{int(state.step)} {' '.join(map(str, indices))}\n")
            return original(self, state, examples, indices)

        Program.train = noted  # type: ignore[method-assign]
    if point is not None:
        arm(point)
    try:
        fit(config, run_dir, Tell())
    except rj.ResNetJaxError as error:
        (run_dir.parent / "errors.txt").write_text(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    from resnet_jax.cli import main

    shrink()
    sys.exit(main())
