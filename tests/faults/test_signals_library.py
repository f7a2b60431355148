"""Ctrl-C in a notebook that calls `rj.train`: the library leaves signals to it."""

import json
import signal
import subprocess
import sys
import threading
import time

# Three cells: two that train for long until they are interrupted, and one that stops by itself.
# At each step the handler of signals must be the notebook's.
SCRIPT = """
import json, signal, sys
import resnet_jax as rj
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
model = rj.ResNet((1,), rj.BasicUnit, width=2, stem="small", lowering="reference")
config = rj.TrainConfig(
    data=rj.DataConfig(name="mnist_5k", subset=(60, 20, 20)),
    batch_size=20, epochs=10_000, log_every=1, eval_every=20,
)
handler = signal.getsignal(signal.SIGINT)
def handled_otherwise():
    return None if signal.getsignal(signal.SIGINT) is handler else "another handler"
for should_stop in (handled_otherwise, handled_otherwise, lambda: "enough"):
    try:
        rj.train(config, sys.argv[1], quiet=True, model=model, should_stop=should_stop)
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGINT) is handler
        print("interrupted", flush=True)
    except rj.ResNetJaxError as error:
        print(json.dumps([str(error), error.exit_code]), flush=True)
"""


def test_interrupts_reach_the_notebook_and_the_run_goes_on_after(tmp_path):
    def saved():
        return max((int(path.name) for path in tmp_path.glob("checkpoints/[0-9]*")), default=0)

    command = [sys.executable, "-c", SCRIPT, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        for _ in range(2):
            # Right behind a save: Python loses an exception while JAX traces its program.
            before = saved()
            while saved() == before and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"interrupted\n"
        output, errors = process.communicate()
        watchdog.cancel()
    assert process.returncode == 0, errors
    # The folder was free again each time, and the last start went on from a checkpoint, of which
    # there is one every 20 steps: it did a single step more.
    said, code = json.loads(output)
    assert said.startswith(f"enough: saved step {saved()} of 30000 in {tmp_path}")
    assert (saved() % 20, code) == (1, 75)
