"""The first seconds of the command: its first line at once, and nothing compiled twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs the command and prints JAX's own counts of hits and misses of the compilation cache.
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
    """The network is tiny, and its convolutions use the command's default lowering."""
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


# Shows the help, and prints CPU seconds and which slow imports that took.
HELP = """
import os, sys
from resnet_jax.cli import main
try:
    main(["train", "--help"])
finally:
    heavy = {"jax", "numpy", "pandas", "tensorflow_datasets"}
    print(sum(os.times()[:2]), heavy & set(sys.modules))
"""


def test_help_imports_nothing_heavy_and_is_quick(python) -> None:
    def seconds() -> float:
        taken, imported = python("-c", HELP).stdout.splitlines()[-1].split(maxsplit=1)
        assert imported == "set()"
        return float(taken)

    # CPU time, because wall time depends on what else the machine does. On a slow machine the
    # bound is a multiple of what importing the parser's library takes.
    parser = "import os, tyro; print(sum(os.times()[:2]))"
    ours = seconds()
    assert ours < 0.5 or min(ours, seconds()) < 6 * float(python("-c", parser).stdout)


# Runs the command and prints, after its first line, CPU seconds and which slow imports it made.
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
        # A signal at this moment, while JAX is being imported, ends the command in good order.
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert line.startswith(b"resnet18 on mnist_5k")
    assert (float(seconds) < 3, imported) == (True, "set()\n")
    assert process.returncode == 75, errors
    assert len(errors.splitlines()) == 1


# As a library does that swallows the interrupt, or crashes on it (seen once in 40 such ends).
IMPORTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("swallowed")
"""


def test_a_signal_during_an_import_ends_the_command_at_once(python, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(IMPORTED)
    line = "from resnet_jax.signals import Stop\nwith Stop().handling():\n    import library"
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    ended = python("-c", line, code=75, PYTHONPATH=path)
    assert (ended.stdout, len(ended.stderr.splitlines())) == ("", 1)
