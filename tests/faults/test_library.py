"""Effects of the library's calls on the caller's process, and of that process on the calls."""

import contextlib
import errno
import fcntl
import json
import os
import pickle
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from faults import ended, forked
from flax import linen as nn
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.training import jax_settings
from resnet_jax.training.run_folder import RunFolder
from resnet_jax.training.setup import _qualified

# Each program here starts so; one unit has all operations that a dtype or precision may change.
PRELUDE = """
import contextlib, dataclasses, functools, hashlib, json, logging, os, resource, signal, sys
import threading, time, warnings
import jax, numpy as np
import worker
from worker import VARIANTS, rj
worker.shrink()
worker.read_digits_once()
BASE = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(40, 20, 20), mean=(0.1307,), std=(0.3081,)),
    augment=rj.AugmentConfig(shift=2, rotation=10, erase=0.5),
    optim=rj.OptimConfig(learning_rate=0.05), epochs=1, batch_size=20,
)
DOUBLE = dataclasses.replace(BASE.model, dtype="float64")
folder = sys.argv[1]
def digest(config, name):
    run = rj.train(config, f"{folder}/{name}", quiet=True)
    leaves = jax.tree.leaves(run.variables("latest"))
    content = b"".join(np.asarray(a).tobytes() for a in leaves)
    return hashlib.sha256(content).hexdigest() + str(leaves[0].dtype)
"""

# The state is compared before and after each call, once a first call has imported its modules.
LEAVES = """
jax.config.update("jax_compilation_cache_dir", None)
config = dataclasses.replace(
    BASE, model=DOUBLE, augment=rj.AugmentConfig(), matmul_precision="high", log_every=1,
    optim=rj.OptimConfig(learning_rate=0.05, schedule="cosine", warmup=0.5),
)
def state():
    loggers = map(logging.getLogger, (None, "resnet_jax", "asyncio", "absl", "orbax", "PIL"))
    return {
        "jax": dict(jax.config.values),
        "warnings": list(warnings.filters),
        "loggers": [(l.level, l.propagate, l.filters[:], l.handlers[:]) for l in loggers],
        "signals": [signal.getsignal(n) for n in signal.valid_signals()],
        "wakeup": signal.set_wakeup_fd(signal.set_wakeup_fd(-1)),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "environment": dict(os.environ), "place": os.getcwd(), "floats": np.geterr(),
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)],
    }
run = f"{folder}/run"
calls = {
    "train": lambda: rj.train(config, run, quiet=True),
    "predict": lambda: rj.Run.open(run).predict(np.zeros((2, 28, 28, 1), np.uint8)),
    "evaluate": lambda: rj.Run.open(run).evaluate("test"),
    "load_dataset": lambda: rj.load_dataset("mnist_5k"),
    "export": lambda: rj.Run.open(run).export("stablehlo", f"{folder}/exported"),
}
begun, alone = dict(jax.config.values), digest(BASE, "alone")
for name, call in calls.items():
    try:
        if name != "train":  # which was called above
            call()
    except Exception as error:
        print(name, "ends in", repr(error))
        continue
    if changed := [key for key in begun if jax.config.values[key] != begun[key]]:
        print(name, "changes", changed)
    before = state()
    call()
    for part, value in state().items():
        if value != before[part]:
            print(name, "changes", part)
jax.config.update("jax_enable_x64", True)
if alone != digest(BASE, "after") or not alone.endswith("float32"):
    print("a run after them, where x64 is set, is another")
"""


@pytest.mark.slow
def test_calls_of_the_library_leave_the_process_as_it_was(tmp_path, python):
    """No call changes JAX's or malloc's settings, warnings, loggers, signals, hooks or environment.

    And a float32 run after a float64 run, with x64 set by the user, equals the same run alone.
    """
    done = python("-c", PRELUDE + LEAVES, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    assert "trains from step 0" in (tmp_path / "run/run.log").read_text()


# Three cells of a notebook: one that is interrupted twice, a fiftieth of a second apart, while JAX
# traces; one that is interrupted while it trains; and one that stops by itself.
INTERRUPTED = """
pressed, own = [], []
def press(times):
    for _ in range(times):
        pressed.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
class Unit(rj.BasicUnit):
    def __call__(self, x, *, train):
        if train and not pressed:
            threading.Thread(target=press, args=(2,)).start()
            time.sleep(5)
        return super().__call__(x, train=train)
VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=(1,), unit=Unit)
handler = signal.default_int_handler
signal.signal(signal.SIGINT, handler)  # which a shell's background ignores
config = dataclasses.replace(
    BASE, augment=rj.AugmentConfig(), ema=None, epochs=10_000, log_every=1, eval_every=20
)
def at_work():
    own.append(signal.getsignal(signal.SIGINT) is handler)
    if len(own) == 25:
        threading.Thread(target=press, args=(1,)).start()
for more in ({}, {"should_stop": at_work}, {"should_stop": lambda: "enough"}):
    try:
        rj.train(config, folder, quiet=True, **more)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(0.2)
        print("interrupted", len(pressed), signal.getsignal(signal.SIGINT) is handler)
    except rj.ResNetJaxError as error:
        print(json.dumps([str(error), error.exit_code]))
print(all(own))
"""


def notebook(folder):
    sys.argv[1:] = [str(folder)]
    with (folder / "output.txt").open("w") as file, contextlib.redirect_stdout(file):
        exec(PRELUDE + INTERRUPTED, {})


def test_interrupts_reach_the_notebook_and_the_run_goes_on_after(tmp_path):
    assert ended(forked(notebook, tmp_path)) == 0
    tracing, working, stopped, own = (tmp_path / "output.txt").read_text().splitlines()
    assert (tracing, working) == ("interrupted 2 True", "interrupted 3 True")
    assert own == "True"  # at each step the signal handler was the notebook's
    # The folder was unlocked each time, and the last start resumed from a checkpoint, which is
    # saved every 20 steps, and did a single step more.
    said, code = json.loads(stopped)
    saved = max(int(path.name) for path in tmp_path.glob("checkpoints/[0-9]*"))
    assert said.startswith(f"enough: saved step {saved} of 20000 in {tmp_path}")
    assert (saved % 20, code) == (1, 75)


@pytest.mark.usefixtures("own_cache", "no_programs")
def test_the_compilation_cache_does_not_grow_without_bound(tmp_path, monkeypatch):
    """Over 2 GiB the oldest programs are removed, only once: 2,000 took 28 ms of each prediction.

    Empty files, left by a full disk, go too: JAX replaces none, and warned of each at every start.
    """
    looked, iterdir = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: looked.append(path) or iterdir(path))
    programs = tmp_path / "own-cache/compiled"
    (programs / "old-of-xla").mkdir(parents=True)
    os.utime(programs / "old-of-xla", (0, 0))
    for number in range(4):
        with (programs / f"old-{number}").open("wb") as file:
            file.truncate(2**30)  # takes no room on the disk
        os.utime(file.name, (1000 + number, 1000 + number))
    for name in ("old-empty", "being written"):
        (programs / name).touch()
    os.utime(programs / "old-empty", (2000, 2000))
    for _ in range(3):
        with jax_settings.configured_jax(rj.TrainConfig()):
            pass
    assert looked.count(programs) == 1
    left = {path.name for path in programs.iterdir()}
    assert left == {"old-of-xla", "old-2", "old-3", "being written"}


@pytest.mark.usefixtures("own_cache", "no_programs")
def test_several_processes_share_no_cache_that_one_of_them_writes(monkeypatch):
    found = []
    for count in (1, 2):
        monkeypatch.setattr(jax_settings, "process_count", lambda count=count: count)
        with jax_settings.configured_jax(rj.TrainConfig()):
            found.append(bool(jax.config.values["jax_compilation_cache_dir"]))
    assert found == [True, False]


@pytest.mark.usefixtures("own_cache", "no_programs")
def test_products_have_the_runs_precision_and_xla_keeps_no_cache_of_its_own():
    """On a GPU, a run ended where that cache could not be written."""
    with jax_settings.configured_jax(rj.TrainConfig(matmul_precision="high")):
        assert jax.config.values["jax_default_matmul_precision"] == "high"
        assert jax.config.values["jax_persistent_cache_enable_xla_caches"] == "none"


def test_what_a_run_hands_out_is_the_callers(finished_run):
    run = rj.Run.open(finished_run.path)
    images = run.split("test").images[:3]
    before = run.predict(images)
    variables = run.variables()
    jax.tree.map(lambda leaf: leaf.delete(), variables)  # as a donated buffer is
    np.testing.assert_array_equal(run.predict(images), before)
    again = pickle.loads(pickle.dumps(run))
    np.testing.assert_array_equal(again.predict(images), before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # JAX on forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_lock_ends_with_the_run_and_not_with_its_children(tmp_path):
    """A child that exits earlier does not release the lock; one that lives on does not keep it."""
    folder = RunFolder(tmp_path / "run")
    with folder.opened_for_writing():
        if leaving := os.fork():
            os.waitpid(leaving, 0)
            said = refused(folder.opened_for_writing().__enter__)
            assert f"is being written by process {os.getpid()} on" in said
            if not (staying := os.fork()):
                signal.pause()
    if not leaving:
        os._exit(0)
    try:
        with folder.opened_for_writing():
            pass
    finally:
        os.kill(staying, signal.SIGKILL)
        os.waitpid(staying, 0)


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    lacking = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", mock.Mock(side_effect=lacking))
    with RunFolder(tmp_path / "run").opened_for_writing():
        assert f"{tmp_path / 'run'} cannot be locked" in caplog.text


class Flat(nn.Module):
    """A single dense layer, whose output depends on where a pixel is."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(10)(images.reshape(len(images), -1))


def process():
    signals = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    return dict(jax.config.values), dict(os.environ), signals, np.geterr(), warnings.filters[:]


@contextlib.contextmanager
def settings_of_another():
    """Set another random number generator, a mesh with explicit axes, and JAX's strict modes."""
    with (
        jax.default_prng_impl("rbg"), jax.set_mesh(jax.make_mesh((1,), ("data",))),
        jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):  # fmt: skip
        yield


@pytest.mark.parametrize(
    "changed",
    [
        settings_of_another,
        # Without jit, each operation on each shape compiles a program of its own.
        pytest.param(jax.disable_jit, marks=pytest.mark.slow),
    ],
)
def test_a_run_depends_on_no_setting_of_the_process_and_changes_none(changed, tmp_path):
    """JAX's settings, a NumPy float as rate, and a callback that clears its rows change nothing."""

    class Taking(rj.Callback):
        def on_metrics(self, row):
            row.clear()

    digits = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)
    data = rj.Dataset.from_arrays("noise", digits, np.arange(24) % 10, validation=4)
    rate = np.logspace(-2, -1, 2)[1]  # a NumPy float64
    config = rj.TrainConfig(
        augment=rj.AugmentConfig(flip=True), optim=rj.OptimConfig(learning_rate=rate), ema=None,
        model=rj.ModelConfig(dtype="bfloat16"), epochs=1, batch_size=20,
    )  # fmt: skip
    parts = {"model": Flat(), "data": data, "callbacks": [Taking()] * 2}
    before = process()
    plain = rj.train(config, tmp_path / "plain", quiet=True, **parts)
    assert process() == before
    with changed():
        other = rj.train(config, tmp_path / "other", quiet=True, **parts)
    found, expected = (run.variables("latest")["params"] for run in (other, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    assert rj.Run.open(tmp_path / "plain").config.optim.learning_rate == pytest.approx(0.1)


@pytest.mark.usefixtures("own_cache", "no_programs")
def test_a_cache_that_may_only_be_read_is_read_and_nothing_is_said(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    programs = tmp_path / "own-cache/compiled"
    with jax_settings.configured_jax(rj.TrainConfig()):
        assert jax.config.values["jax_compilation_cache_dir"] == str(programs)
        jax.jit(lambda x: x + 41.5)(1.0)
    assert not list(programs.iterdir())
    assert not [warning for warning in recwarn if "compilation cache" in str(warning.message)]


def test_a_script_in_a_spawned_process_has_the_same_parts():
    other = type("Net", (), {"__module__": "__mp_main__"})
    assert _qualified(other) == "__main__.Net"
