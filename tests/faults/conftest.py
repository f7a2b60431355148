"""Fixtures: separate caches, and runs that answer at once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest

import resnet_jax as rj


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """An empty cache folder for the package."""
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "own-cache"))


@pytest.fixture
def no_programs() -> Iterator[None]:
    """Take away the tests' shared compilation cache, so that runs set up their own."""
    shared = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", shared)


@pytest.fixture
def answers(monkeypatch) -> list[int]:
    """Make every run predict its first class at once; return the number of images of each call."""
    calls = []

    def predict(self: rj.Run, images: np.ndarray, checkpoint: str = "best") -> np.ndarray:
        calls.append(len(images))
        return np.eye(len(self.class_names), dtype=np.float32)[np.zeros(len(images), int)]

    monkeypatch.setattr(rj.Run, "predict", predict)
    return calls


@pytest.fixture
def unprivileged() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in a process that may not read closed files, which root may."""
    drop = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("nothing here takes root's powers away")
        powers = "-dac_override,-dac_read_search"
        drop = ["setpriv", "--bounding-set", powers, "--inh-caps", powers]
    command = [*drop, sys.executable, "-m", "resnet_jax"]
    return lambda *words: subprocess.run(
        [*command, *map(str, words)], capture_output=True, text=True, timeout=100
    )
