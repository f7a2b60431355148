"""The first seconds of the command: its first line at once, and nothing compiled twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A run of the command with JAX's own counts of what the compilation cache had and had not.
COUNTING = """
import collections, json, sys
import jax, worker

worker.shrink()
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))
code = worker.main(sys.argv[1:])
known = ("compile_requests_use_cache", "cache_hits", "cache_misses")
found = {name: counts[f"/jax/compilation_cache/{name}"] for name in known}
print(json.dumps({"code": code, **found}))
"""
OPTIONS = "--model.width 4 --data.subset 60 20 20 --batch-size 20 --epochs 1 --no-report"


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_without_the_cache_nothing_is_kept(tmp_path, python):
    """Of a tiny network, lowered as the command does by default."""
    cache = tmp_path / "cache"
    caches = {"JAX_COMPILATION_CACHE_DIR": None, "RESNET_JAX_CACHE_DIR": str(cache)}

    def start(name: str, *options: str) -> dict[str, int]:
        words = ["train", "quickstart", "--run-dir", tmp_path / name, *OPTIONS.split(), *options]
        found = json.loads(python("-c", COUNTING, *words, **caches).stdout.splitlines()[-1])
        assert found.pop("code") == 0
        return found

    bare = start("bare", "--no-compilation-cache", "--model.lowering=reference")
    assert bare["cache_hits"] == bare["cache_misses"] == 0
    assert not (cache / "compiled").exists()
    assert start("first")["cache_misses"] > 10
    assert any((cache / "compiled").iterdir())
    second = start("second")
    assert second["cache_misses"] == 0
    assert second["cache_hits"] == second["compile_requests_use_cache"] > 10


def test_help_imports_nothing_heavy_and_is_quick(python) -> None:
    code = """
import sys
from resnet_jax.cli import main
try:
    main(["train", "--help"])
finally:
    print({"jax", "numpy", "pandas", "tensorflow_datasets"} & set(sys.modules))
"""
    assert python("-c", code).stdout.splitlines()[-1] == "set()"
    # By the processor's clock, the better of two: the one on the wall measures what else the
    # machine does. On a machine that is slow, importing the parser's library is the measure.
    ours, library = (
        min(_processor_seconds([sys.executable, *arguments]) for _ in range(2))
        for arguments in (["-m", "resnet_jax", "--help"], ["-c", "import tyro"])
    )
    assert ours < max(0.5, 6 * library)


def _processor_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, capture_output=True, check=True)
    return sum(os.times()[2:4]) - sum(before[2:4])  # of children: the user's and the system's


# The command, which says after its first line what it took of the processor and had imported.
FIRST_LINE = """
import os, sys
from resnet_jax import display
from resnet_jax.__main__ import main
say = display.print_line
def told(text):
    say(text)
    print(sum(os.times()[:2]), {"jax", "numpy", "pandas"} & set(sys.modules))
display.print_line = told
sys.exit(main())
"""


def test_the_first_line_comes_before_anything_slow(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-c", FIRST_LINE, "train", "--run-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds, imported = process.stdout.readline().decode().split(maxsplit=1)
        # And a signal at this moment, when JAX is being imported, ends it in good order.
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert line.startswith(b"resnet18 on mnist_5k")
    assert (float(seconds) < 3, imported) == (True, "set()\n")
    assert process.returncode == 75, errors
    assert len(errors.splitlines()) == 1
