"""What calls of the library leave behind in the process of who calls them."""

import subprocess
import sys

# Each call once to import what it needs, which is not ours to undo, then again between two looks.
LEAVES = """
import functools, logging, os, resource, signal, sys, threading, warnings
import jax, numpy as np
import resnet_jax as rj
from resnet_jax.models import VARIANTS
VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=(1,), unit=rj.BasicUnit)
jax.config.update("jax_compilation_cache_dir", None)
config = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference", dtype="float64"), matmul_precision="high",
    data=rj.DataConfig(name="mnist_5k", subset=(40, 20, 20), mean=(0.1307,), std=(0.3081,)),
    optim=rj.OptimConfig(learning_rate=0.05), epochs=1, batch_size=20,
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
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
def kept():  # of a quarter of a GiB that its user has freed: settings of malloc
    before = resident()
    for side in (2**20, 2**22):
        arrays = [np.ones(side, np.uint8) for _ in range(2**28 // side)]
        del arrays
    return resident() - before
folder = sys.argv[1]
calls = {
    "train": lambda n: rj.train(config, f"{folder}/{n}", quiet=True),
    "predict": lambda n: rj.Run.open(f"{folder}/{n}").predict(np.zeros((2, 28, 28, 1), np.uint8)),
    "load_dataset": lambda n: rj.load_dataset("mnist_5k"),
    "export": lambda n: rj.Run.open(f"{folder}/{n}").export("stablehlo", f"{folder}/{n}.exported"),
}
begun = dict(jax.config.values)
for name, call in calls.items():
    call(0)
    if changed := [key for key in begun if jax.config.values[key] != begun[key]]:
        print(name, "changes", changed)
    before = state()
    call(1)
    for part, value in state().items():
        if value != before[part]:
            print(name, "changes", part)
if sys.platform == "linux" and (mebibytes := kept()) > 64:
    print("malloc keeps", mebibytes)
"""


def test_calls_of_the_library_leave_the_process_as_it_was(tmp_path):
    """JAX's settings, warnings, loggers, signals, hooks, the environment and malloc."""
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# In the middle of tracing: two signals, two hundredths of a second apart. Then the run again.
TWICE = """
import functools, os, signal, sys, threading, time
import resnet_jax as rj
from resnet_jax.models import VARIANTS
pressed = []
def press():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        pressed.append(1)
        time.sleep(0.02)
class Unit(rj.BasicUnit):
    def __call__(self, x, *, train):
        if train and not pressed:
            threading.Thread(target=press).start()
            time.sleep(5)
        return super().__call__(x, train=train)
VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=(1,), unit=Unit)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
config = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(40, 20, 20)), batch_size=20, epochs=1,
)
try:
    rj.train(config, sys.argv[1], quiet=True)
    print("nothing heard")
except KeyboardInterrupt:
    try:
        time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    print("interrupted", len(pressed))
print(len(rj.train(config, sys.argv[1], quiet=True).metrics()) > 0)
"""


def test_two_interrupts_while_a_network_is_traced_reach_the_caller(tmp_path):
    command = [sys.executable, "-c", TWICE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "interrupted 2\nTrue\n"), done.stderr
