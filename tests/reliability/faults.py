"""Starting small runs, doing harm to them, and looking at what is left in their folders."""

import functools
import multiprocessing
import os
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
import orbax.checkpoint as ocp
import pandas as pd
import pytest
import worker
from PIL import Image

import resnet_jax as rj

# Children are forked from a process that has imported everything and computed nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["preloaded"])
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # as `--distributed` says it before JAX is imported

# The command in a process of its own from the first moment on.
TRAIN = [sys.executable, worker.__file__, "train", *worker.OPTIONS]


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to, and what it is after every step."""

    run: rj.Run
    kept: Path  # a saved step for each step


def forked(call: Callable[..., None], *arguments: Any, **keywords: Any) -> Any:
    """Begin a call in another process, which ends with this one."""
    process = PROCESSES.Process(target=call, args=arguments, kwargs=keywords, daemon=True)
    process.start()
    return process


def start(run_dir: Path, *options: str, **harm: Any) -> Any:
    """Begin or continue a run in another process; see `worker.command`."""
    return forked(worker.command, ["train", *worker.OPTIONS, *options], run_dir, **harm)


def ended(process: Any, seconds: float = 300) -> int:
    """The exit code of a process that must end by itself within that time."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"still running after {seconds} s")
    code: int = process.exitcode
    process.close()
    return code


def errors_of(run_dir: Path, name: str = "") -> str:
    return (run_dir.parent / f"{name}errors.txt").read_text()


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def steps_of(run_dir: Path) -> list[int]:
    """Steps in place, oldest first."""
    return sorted(int(path.name) for path in run_dir.glob("checkpoints/[0-9]*"))


@functools.cache
def saved(step: Path, manifest: str) -> Any:
    """Every array of a saved step: parameters, statistics, averages, the optimiser's state."""
    folder = step.absolute() / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=numpy))


def assert_good_bits(run_dir: Path, kept: Path) -> int:
    """Every step in place is whole, and to the last bit the one in ``kept``.

    Returns the newest one, 0 if there is none.
    """
    steps = steps_of(run_dir)
    if steps:
        assert rj.Run.open(run_dir).verify().ok
    for step in steps:
        found, expected = (
            saved(folder / str(step), (folder / str(step) / "manifest.json").read_text())
            for folder in (run_dir / "checkpoints", kept)
        )
        assert {"step", "params", "batch_stats", "opt_state", "ema"} <= found.keys()
        assert int(found["step"]) == step
        chex.assert_trees_all_equal(found, expected)
    return max(steps, default=0)


def assert_same_run(run_dir: Path, undisturbed: Undisturbed) -> None:
    """The finished run is the undisturbed one: parameters and every measured number."""
    run, other = rj.Run.open(run_dir), undisturbed.run
    for checkpoint in ("latest", "best"):
        chex.assert_trees_all_equal(run.variables(checkpoint), other.variables(checkpoint))
    timeless = [each.metrics().drop(columns=["seconds", "images_per_s"]) for each in (run, other)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)


def digits(folder: Path, **splits: range) -> Path:
    """Digits of mnist_5k as files: those of each split, by their places among the training ones."""
    data = rj.load_dataset("mnist_5k").train
    for split, chosen in splits.items():
        for index in chosen:
            path = folder / split / str(data.labels[index]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[index, :, :, 0]).save(path)
    return folder


def no_orphans(run_dir: Path) -> bool:
    """Whether a folder holds what a finished run holds and nothing else."""
    names = {path.name for path in run_dir.iterdir()}
    return names - {".lock"} == {"config.yaml", "metrics.jsonl", "run.log", "checkpoints"} and all(
        path.name.isdigit() for path in (run_dir / "checkpoints").iterdir()
    )


def in_namespace(script: str, *arguments: Any) -> "subprocess.CompletedProcess[str]":
    """Run a shell script with its own mounts, as root of a user namespace.

    In the script ``$PYTHON`` is this interpreter and ``$TRAIN`` the command on a small network.
    """
    isolated = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"]).returncode:
        pytest.skip(f"namespaces are not allowed here: `{' '.join(isolated)} true` fails")
    preamble = f"set -u; PYTHON={sys.executable}; TRAIN='{' '.join(TRAIN)}'\n"
    command = [*isolated, "sh", "-c", preamble + script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
