"""Ctrl-C in a notebook that calls `rj.train`: the library leaves signals to it (FAULTS B4)."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

# Three cells: two that train for long until they are interrupted, and one that stops by itself.
SCRIPT = """
import json, signal, sys
import resnet_jax as rj
model = rj.ResNet((1,), rj.BasicUnit, width=2, stem="small", lowering="reference")
config = rj.TrainConfig(
    data=rj.DataConfig(name="mnist_5k", subset=(60, 20, 20)),
    batch_size=20, epochs=10_000, log_every=1, eval_every=20,
)
handler = signal.getsignal(signal.SIGINT)
for cell in range(2):
    try:
        rj.train(config, sys.argv[1], quiet=True, model=model)
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGINT) is handler
        print("interrupted", flush=True)
try:
    rj.train(config, sys.argv[1], quiet=True, model=model, should_stop=lambda: "enough")
except rj.ResNetJaxError as error:
    print(json.dumps([str(error), error.exit_code]))
"""


def test_interrupts_reach_the_notebook_and_the_run_goes_on_after(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def saved() -> int:
        return max((int(path.name) for path in (run_dir / "checkpoints").glob("[0-9]*")), default=0)

    command = [sys.executable, "-c", SCRIPT, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        for _ in range(2):
            # In the middle of its steps: Python loses an exception while JAX traces its program.
            before = saved()
            while saved() == before and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"interrupted\n"
        output, errors = process.communicate()
        watchdog.cancel()
    assert process.returncode == 0, errors
    # The folder was free again each time, and the last start went on from a checkpoint.
    said, code = json.loads(output)
    step = saved()
    assert said.startswith(f"enough: saved step {step} of 30000 in {run_dir}")
    assert (step % 20, code) == (1, 75)
