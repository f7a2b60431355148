"""Settings and fixtures of all tests: private folders, and programs that compile in a hurry."""

import atexit
import dataclasses
import fcntl
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from unittest import mock

# Set before JAX is imported. The tests check the mathematics, not LLVM's optimisation of it, which
# takes most of the time on tiny networks: without it they compile in a third of the time.
_IN_A_HURRY = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jax").startswith("0.10."):  # later versions end the process at an unknown flag
    _IN_A_HURRY.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_IN_A_HURRY])
# Virtual devices and equal bits need a CPU, and pytest's workers would fill a GPU's memory.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two workers share the cores, and torch's threads would only burn time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The package writes nothing to the user's home. The folder is set in the environment, so that
# pytest's workers and the processes that tests start share the programs that one has compiled.
if "RESNET_JAX_TESTS_DIR" not in os.environ:
    os.environ["RESNET_JAX_TESTS_DIR"] = tempfile.mkdtemp(prefix="resnet-jax-tests-")
    atexit.register(shutil.rmtree, os.environ["RESNET_JAX_TESTS_DIR"], ignore_errors=True)
_cache = os.environ["RESNET_JAX_TESTS_DIR"]
os.environ["RESNET_JAX_CACHE_DIR"] = _cache
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_cache, "compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# Another process may be writing an entry, or was killed while it did.
_warned = [
    f"ignore:Error {verb} persistent compilation cache entry" for verb in ("reading", "writing")
]
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), *_warned]))

# Processes that tests start may import `worker`, with its network of one unit.
_path = [os.path.join(os.path.dirname(__file__), "reliability"), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _path))

# Prepared datasets: yours, those beside the checkout, or an empty folder to prepare into.
_beside = pathlib.Path(__file__).parents[2] / "shared/data/tfds"
if "TFDS_DATA_DIR" not in os.environ:
    _empty = pathlib.Path(_cache, "tfds")
    _empty.mkdir(exist_ok=True)
    os.environ["TFDS_DATA_DIR"] = str(_beside if _beside.is_dir() else _empty)

gc.disable()  # until everything is imported; see `pytest_collection_finish`

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from flax import linen as nn  # noqa: E402

# Every call, in tests alone, checks the shapes that the signatures state.
_CHECKED = ("data.augment", "data.randaugment", "models.resnet", "training.step")
jaxtyping.install_import_hook([f"resnet_jax.{name}" for name in _CHECKED], "type_checker.check")

import worker  # noqa: E402

import resnet_jax as rj  # noqa: E402
from resnet_jax.cli import main  # noqa: E402
from resnet_jax.models import VARIANTS  # noqa: E402
from resnet_jax.training.checkpoint import Checkpoints  # noqa: E402

worker.read_digits_once()

# A run that trains in a second or two: four channels wide, 120 digits, six steps an epoch.
TINY = rj.TrainConfig(
    model=rj.ModelConfig(width=4, lowering="reference"),  # compiles three times as fast
    data=rj.DataConfig(  # on this sample the last step is the best
        "mnist_5k", subset=(120, 50, 30), subset_seed=24, mean=(0.1307,), std=(0.3081,)
    ),
    augment=rj.AugmentConfig(flip=True),  # resampling takes three times as long to compile
    optim=rj.OptimConfig(learning_rate=0.05, schedule="cosine", warmup=0.2),
    epochs=2,
    batch_size=20,
    ema=0.9,
    log_every=4,
    eval_every=5,
)
# The same for the command, except for the schedule and the average: its programs do not depend on
# `--epochs`, and with one unit most of them are those of `finished_run`.
_OPTIONS = """
    --model.width 4 --model.lowering reference --data.subset 120 50 30 --data.subset-seed 24
    --augment.flip --augment.shift 0 --augment.rotation 0 --augment.scale 0 --augment.shear 0
    --optim.learning-rate 0.05 --optim.schedule constant --optim.warmup 0 --optim.no-nesterov
    --optim.weight-decay 0 --label-smoothing 0 --epochs 2 --batch-size 20 --ema 0.9 --no-report
"""


def pytest_collection_finish() -> None:
    """Collect garbage less often, and never what was imported: a tenth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Have `resnet18` be a network of one unit in tests that depend on `one_unit`."""
    if "one_unit" not in item.fixturenames:
        return (yield)
    with mock.patch.dict(VARIANTS):
        worker.shrink()
        return (yield)


@pytest.fixture(scope="session")
def one_unit() -> None:
    """Requested by tests that look at a run, not at its network: see `pytest_runtest_protocol`."""


@pytest.fixture(scope="session")
def tiny_config() -> rj.TrainConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_options() -> list[str]:
    return _OPTIONS.split()


@pytest.fixture(scope="session")
def shared():
    """A folder that is made once for all of pytest's workers: ``shared(name, make)``."""

    def folder(name: str, make: Callable[[pathlib.Path], object]) -> pathlib.Path:
        path = pathlib.Path(_cache, "shared", name)
        path.parent.mkdir(exist_ok=True)
        made = path.with_suffix(".made")
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                make(path)
                made.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def finished_run(one_unit, shared) -> rj.Run:
    """A whole run, for tests that only read."""
    return rj.Run.open(shared("one-unit", lambda folder: rj.train(TINY, folder, quiet=True)))


class Linear(nn.Module):
    """A network that is no `ResNet`, and compiles at once."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(10)(images.mean((1, 2)))


@pytest.fixture(scope="session")
def linear() -> Linear:
    """For tests that look at what trains a network, and not at the network."""
    return Linear()


@pytest.fixture
def own_run(finished_run, tmp_path) -> pathlib.Path:
    """A copy of the folder of `finished_run`, to be damaged or written to."""
    return shutil.copytree(finished_run.path, tmp_path / "run")


@pytest.fixture
def checkpoints(own_run) -> Checkpoints:
    return Checkpoints(own_run / "checkpoints")


@pytest.fixture(scope="session")
def stop_after():
    """Makes a `should_stop` that says "enough" after so many steps."""
    return lambda steps: iter([*[None] * (steps - 1), "enough"]).__next__


@pytest.fixture
def command(capsys):
    """Runs the command; returns its exit code, its output and its errors."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except Exception:  # a bug: a process would end in this way
            return 1, capsys.readouterr().out, traceback.format_exc()
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refusal(command):
    """Runs the command, which must end with 1; returns the one line of its error."""

    def run(*words: object) -> str:
        code, _, errors = command(*words)
        assert (code, errors[:12], errors.count("\n")) == (1, "resnet-jax: ", 1), errors
        return errors.rstrip("\n")

    return run


@pytest.fixture(scope="session")
def python():
    """Runs Python in another process, which must end with ``code``; returns what it printed."""

    def run(*words: object, code: int = 0, cwd: object = None, **environment: str | None):
        command = [sys.executable, *map(str, words)]
        changed = (os.environ | environment).items()  # None removes a variable
        env = {name: value for name, value in changed if value is not None}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=cwd, env=env, timeout=1200
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def client_of():
    """Makes a client of the demo's server for a run; gradio is imported only where it is used."""
    pytest.importorskip("gradio", reason="needs the extra demo")
    from starlette.testclient import TestClient

    from resnet_jax.demo.app import make_server

    return lambda run: TestClient(make_server(run).config.app, base_url="http://127.0.0.1:7860")


@pytest.fixture(scope="session")
def unaveraged_config() -> rj.TrainConfig:
    return dataclasses.replace(TINY, ema=None, optim=rj.OptimConfig(learning_rate=0.05))


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def serious():
    """Lists the faults that axe finds in a page and calls serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra dev")

    def serious(page) -> list[str]:
        found = axe.Axe().run(page).response["violations"]
        return [v["id"] for v in found if v["impact"] in ("serious", "critical")]

    return serious
