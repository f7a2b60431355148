"""Ctrl-C in a notebook that calls `rj.train`: the library leaves signals to it (FAULTS B4)."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

# Three cells: two that train for long until they are interrupted, and one that stops by itself.
SCRIPT = """
import json, signal, sys
import resnet_jax as rj
config = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(60, 20, 20)),
    batch_size=20, epochs=10_000, log_every=1, eval_every=20,
)
handler = signal.getsignal(signal.SIGINT)
for cell in range(2):
    try:
        rj.train(config, sys.argv[1], quiet=True)
    except KeyboardInterrupt:
        assert signal.getsignal(signal.SIGINT) is handler
        print("interrupted", flush=True)
try:
    rj.train(config, sys.argv[1], quiet=True, should_stop=lambda: "enough")
except rj.ResNetJaxError as error:
    print(json.dumps([str(error), error.exit_code]))
"""


def test_interrupts_reach_the_notebook_and_the_run_goes_on_after(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def trains(start: int) -> bool:
        log = run_dir / "run.log"
        began = log.read_text().count("trains from step") if log.exists() else 0
        return began == start and any((run_dir / "checkpoints").glob("[0-9]*"))

    command = [sys.executable, "-c", SCRIPT, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for start in (1, 2):
            end = time.monotonic() + 100
            while not trains(start):
                assert time.monotonic() < end
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == b"interrupted\n"
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    # The folder was free again each time, and the last start went on from a checkpoint.
    said, code = json.loads(output)
    step = max(int(path.name) for path in (run_dir / "checkpoints").glob("[0-9]*"))
    assert said.startswith(f"enough: saved step {step} of 30000 in {run_dir}")
    assert (step % 20, code) == (1, 75)
