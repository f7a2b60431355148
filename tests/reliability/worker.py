"""The command on a small network, in processes of their own that can be harmed at a chosen moment.

The network is a ResNet with one unit: what is tested is what a run
keeps, not what it learns. ``python worker.py ARGUMENTS`` is the command ``resnet-jax`` with it.
"""

import functools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # a library that is being imported may swallow a KeyboardInterrupt
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.models import VARIANTS

# 18 steps, each of them logged, every third of them evaluated and saved.
_OPTIONS = """
    --model.width 2 --model.lowering reference --data.subset 60 30 20 --no-report
    --augment.shift 2 --augment.rotation 0 --augment.scale 0 --augment.shear 0
    --optim.learning-rate 0.05 --optim.schedule cosine --optim.warmup 0 --optim.weight-decay 0
    --epochs 3 --batch-size 10 --ema 0.9 --label-smoothing 0 --log-every 1 --eval-every 3
"""
OPTIONS = _OPTIONS.split()
STEPS = 18


def shrink(stage_sizes: tuple[int, ...] = (1,)) -> None:
    """Make ``resnet18`` a network of one unit, in this process."""
    VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=stage_sizes, unit=rj.BasicUnit)


def read_digits_once() -> None:
    """Have this process parse `mnist_5k`, a text of four million numbers, once."""
    from resnet_jax.data import load, mnist

    parse = mnist.mnist_5k

    @functools.cache
    def parsed(path: Path) -> Any:
        arrays = parse()
        for array in arrays:
            array.flags.writeable = False
        return arrays

    load.mnist_5k = lambda: parsed(mnist.mnist_5k_file())


class Moment(NamedTuple):
    """The ``count``-th time that one of ``events`` is about to happen to a path like ``path``.

    Both are regular expressions. Events are Python's audit events (``os.rename``, ``open``, ...),
    whose paths, and the mode of ``open``, stand on a line each; or ``line``: a line of that kind
    was added to the run's ``metrics.jsonl``.
    """

    events: str
    path: str = ""
    count: int = 1
    after: float = 0  # seconds


def strike(number: int = signal.SIGKILL) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


def at(moment: Moment, run_dir: Path, act: Callable[[], None]) -> None:
    """Have this process do ``act`` at a moment, once."""
    if moment.events == "line":
        threading.Thread(target=_at_line, args=(moment, run_dir, act), daemon=True).start()
        return
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if seen < moment.count and re.fullmatch(moment.events, event):
            words = "\n".join(os.fsdecode(a) for a in arguments if isinstance(a, str | os.PathLike))
            seen += bool(re.search(moment.path, words))
            if seen == moment.count:
                seen += 1
                if moment.after:
                    threading.Timer(moment.after, act).start()
                else:
                    act()

    sys.addaudithook(hook)


def _at_line(moment: Moment, run_dir: Path, act: Callable[[], None]) -> None:
    metrics = run_dir / "metrics.jsonl"

    def lines() -> list[str]:
        return metrics.read_text().split("\n")[:-1] if metrics.exists() else []

    before = set(lines())  # also of steps that are trained again
    while True:
        new = [json.loads(line) for line in lines() if line not in before]
        if sum(row["kind"] == moment.path for row in new) >= moment.count:
            time.sleep(moment.after)
            act()
            return
        time.sleep(0.0005)


def keep(kept: Path) -> None:
    """Have this process copy every step that it saves, complete, just before it is in place."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and re.search(r"/checkpoints/\d+$", str(arguments[1])):
            shutil.copytree(arguments[0], kept / Path(arguments[1]).name)

    sys.addaudithook(hook)


def use_devices(count: int) -> None:
    """Give this process, which has computed nothing yet, that many virtual devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"


def command(
    arguments: list[str],
    run_dir: Path,
    moment: Moment | None = None,
    kept: Path | None = None,
    devices: int | None = None,
    name: str = "",
    act: Callable[[], None] = strike,
) -> None:
    """Be the command in a process of its own, and exit as it does, or ``act`` at a moment.

    Its output is in ``output.txt`` and ``errors.txt`` beside the run's folder, after a name.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    for number, kind in ((1, "output"), (2, "errors")):
        path = run_dir.parent / f"{name}{kind}.txt"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    if devices:
        use_devices(devices)
    shrink()
    if kept:
        keep(kept)
    if moment:
        at(moment, run_dir, act)
    code = main([*arguments, "--run-dir", str(run_dir)])
    import jax

    # JAX does it when Python ends, where a forked process goes on to its exit at once: then the
    # first process to end looks to the others as if it had died.
    jax.distributed.shutdown()
    sys.exit(code)


if __name__ == "__main__":
    shrink()
    sys.exit(main())
