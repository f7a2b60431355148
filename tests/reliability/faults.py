"""Starting small runs, doing harm to them, and looking at what is left."""

import multiprocessing
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pandas as pd
import pytest
import worker

import resnet_jax as rj
from resnet_jax.training.checkpoint import SAVED
from resnet_jax.training.folder import RunFolder
from resnet_jax.training.program import Program

# Children are forked from a process that has imported everything and computed nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["worker", "resnet_jax.training.loop", "orbax.checkpoint"])


@dataclass
class Undisturbed:
    """A run that nothing happened to, and its state after every step."""

    run: rj.Run
    states: list[Any]


def start(run_dir: Path, config: rj.TrainConfig = worker.CONFIG, **more: Any) -> Any:
    """Begins or continues a run in another process."""
    process = PROCESSES.Process(target=worker.train, args=(config, run_dir), kwargs=more)
    process.start()
    return process


def ended(process: Any, seconds: float = 60) -> int:
    """The exit code of a process that must end by itself within that time."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"still running after {seconds} s")
    code: int = process.exitcode
    process.close()
    return code


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def program_of(config: rj.TrainConfig = worker.CONFIG) -> Program:
    return Program(config, tuple("0123456789"), (28, 28, 1), worker.STEPS)


def saved(state: Any) -> dict[str, Any]:
    """The part of a state that is kept, on the host."""
    part: dict[str, Any] = jax.device_get({name: getattr(state, name) for name in SAVED})
    return part


def assert_good_bits(run_dir: Path, program: Program, undisturbed: Undisturbed) -> int:
    """Every step in place is whole, and to the last bit what it would have been without faults.

    Returns the newest one, 0 if there is none.
    """
    checkpoints = RunFolder(run_dir).checkpoints
    steps = checkpoints.steps()
    assert list(checkpoints.good_steps()) == steps[::-1]
    template = program.init() if steps else None
    for step in steps:
        found = saved(checkpoints.restore(template, step))
        chex.assert_trees_all_equal(found, undisturbed.states[step])
    return max(steps, default=0)


def assert_same_run(run_dir: Path, undisturbed: Undisturbed) -> None:
    """The finished run is the undisturbed one: parameters and every measured number."""
    run, other = rj.Run.open(run_dir), undisturbed.run
    for checkpoint in ("latest", "best"):
        chex.assert_trees_all_equal(run.variables(checkpoint), other.variables(checkpoint))
    timeless = [
        metrics.query("kind != 'train'")
        .drop(columns=["seconds", "images_per_s"])
        .reset_index(drop=True)
        for metrics in (run.metrics(), other.metrics())
    ]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)


def no_orphans(run_dir: Path) -> bool:
    """Whether a folder holds what a finished run holds and nothing else."""
    names = {"config.yaml", "metrics.jsonl", "run.log", "checkpoints", ".lock"}
    return {path.name for path in run_dir.iterdir()} == names and all(
        path.name.isdigit() for path in (run_dir / "checkpoints").iterdir()
    )


def expected_ids(step: int) -> list[int]:
    """The examples of a step, worked out anew from the definition of the stream."""
    from resnet_jax.data.stream import permutation

    config = worker.CONFIG
    images = config.data.subset[0] if config.data.subset else 0
    order = np.concatenate([permutation(images, config.seed, epoch) for epoch in range(4)])
    ids: list[int] = order[step * config.batch_size :][: config.batch_size].tolist()
    return ids


def in_namespace(script: str, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a shell script with mounts of its own, as root of a user namespace.

    In the script ``$PYTHON`` is this interpreter and ``$TRAIN`` the command on a small network.
    """
    isolated = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip(f"namespaces are not allowed here: `{' '.join(isolated)} true` fails")
    python, options = sys.executable, " ".join(command_options())
    preamble = (
        f"set -u; PYTHON={python}; TRAIN='{python} {worker.__file__} train {options} --no-report'\n"
    )
    command = [*isolated, "sh", "-c", preamble + script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def command_options(config: rj.TrainConfig = worker.CONFIG) -> list[str]:
    """A configuration as the command's options."""
    from resnet_jax.config import differences, preset

    options = []
    for option, (_, value) in differences(preset("quickstart"), config).items():
        if isinstance(value, bool):
            head, _, name = f"--{option}".rpartition(".") if "." in option else ("--", "", option)
            no = "" if value else "no-"
            options.append(f"{head}.{no}{name}" if "." in option else f"--{no}{name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            options += [f"--{option}", *map(str, values)]
    return options
