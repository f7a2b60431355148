"""A second start compiles nothing: every program of the first one is in the user's cache folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A run of the command with JAX's own counts of what the compilation cache had and had not.
COUNTING = """
import collections, json, sys
import jax
from resnet_jax.cli import main

counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
code = main(sys.argv[1:])
known = ("compile_requests_use_cache", "cache_hits", "cache_misses")
found = {name: counts[f"/jax/compilation_cache/{name}"] for name in known}
print(json.dumps({"code": code, **found}))
"""
OPTIONS = "--model.width 4 --data.subset 60 20 20 --batch-size 20 --epochs 1 --no-report"


def start(run_dir: Path, cache: Path, *options: str) -> dict[str, int]:
    """Trains a tiny network, lowered as the command does by default, and counts."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = ["train", "quickstart", "--run-dir", str(run_dir), *OPTIONS.split(), *options]
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *command],
        env=environment | {"RESNET_JAX_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_start_compiles_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = start(tmp_path / "first", cache)
    assert first["code"] == 0
    assert first["cache_misses"] > 10
    assert any((cache / "compiled").iterdir())

    second = start(tmp_path / "second", cache)
    assert second["code"] == 0
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] > 10


@pytest.mark.slow
def test_without_the_cache_nothing_is_kept(tmp_path: Path) -> None:
    found = start(tmp_path / "run", tmp_path / "cache", "--no-compilation-cache")
    assert found["code"] == found["cache_hits"] == found["cache_misses"] == 0
    assert not (tmp_path / "cache/compiled").exists()
