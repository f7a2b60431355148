"""``kill -9`` at every kind of moment: nothing is lost, and the end has the same bits."""

import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
import worker
from faults import (
    assert_good_bits,
    assert_same_run,
    digits,
    ended,
    errors_of,
    no_orphans,
    saved,
    start,
    steps_of,
    wait_until,
)
from worker import Moment

import resnet_jax as rj
from resnet_jax.models import VARIANTS

# In an order that takes a run from its start to its end: each start gets a little further.
MOMENTS = [
    # During the first steps.
    Moment("open", "run.log"),
    Moment("os.rename", "config.yaml"),
    Moment("os.rename", "config.yaml", after=0.3),  # it traces and compiles
    Moment("line", "train", after=0.003),
    Moment("os.rename|os.truncate", "metrics.jsonl"),  # lines of steps that no checkpoint has
    Moment("line", "train", count=3, after=0.002),  # it evaluates
    # During a save.
    Moment("os.mkdir", "/checkpoints/"),
    Moment("open", "_CHECKPOINT_METADATA"),
    Moment("open", "array_metadatas"),
    Moment("open", "_METADATA", count=2),
    Moment("open", "commit_success.txt"),
    Moment("os.rename", "state.orbax-checkpoint-tmp"),
    Moment("open", "/d/", count=3),
    Moment("open", "manifest.json"),
    Moment("open", "manifest.json", count=2),
    Moment("os.rename", r"\n.*/checkpoints/\d+$"),  # into place
    # Later.
    Moment("line", "train", count=4, after=0.003),
    Moment("open", r"/checkpoints/\d+/state/_METADATA", count=2),  # it restores
    Moment("line", "train", after=0.003),
    Moment("line", "train", count=2, after=0.002),
    # During a deletion.
    Moment("os.rename|os.remove|shutil.rmtree", r"^[^\n]*/checkpoints/\d+(\n|$)"),
    Moment("shutil.rmtree", "/checkpoints/"),
    Moment("os.remove", "_METADATA", count=3),
    Moment("os.rmdir", count=1),
    Moment("os.rmdir", count=4),
    # In the final test.
    Moment("os.rename", r"\n.*/checkpoints/18$", after=0.05),
    # With nothing but the tests left to do, before their lines and after them.
    Moment("open", r"metrics\.jsonl\na"),
    Moment("line", "test"),
]


@pytest.mark.slow
def test_killed_at_every_kind_of_moment(undisturbed, tmp_path):
    """The same run at each of the moments, until it ends."""
    run_dir, newest = tmp_path / "run", []
    for moment in MOMENTS:
        code = ended(start(run_dir, moment=moment))
        assert code == -signal.SIGKILL, f"{moment} was never reached"
        newest.append(assert_good_bits(run_dir, undisturbed.kept))
    assert newest == sorted(newest)  # nothing that was saved was lost
    assert ended(start(run_dir)) == 0
    assert_good_bits(run_dir, undisturbed.kept)
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)


def test_what_a_kill_left_unfinished_is_gone_when_the_command_ran_again(tmp_path):
    """Also where the run has nothing left to save, as after a kill behind its last step."""
    run_dir = tmp_path / "run"
    behind_the_last = Moment("shutil.rmtree", "discarded-12")
    assert ended(start(run_dir, moment=behind_the_last)) == -signal.SIGKILL
    assert max(steps_of(run_dir)) == worker.STEPS
    assert not no_orphans(run_dir)
    (run_dir / "config.yaml.unfinished").write_text("config:")
    (run_dir / "metrics.jsonl.unfinished").touch()
    assert ended(start(run_dir)) == 0
    assert no_orphans(run_dir)


END = r"""
import os, sys, worker
def end():
    {end}
run_dir, kept = map(worker.Path, sys.argv[1:])
into_place = worker.Moment("os.rename", r"\n.*/checkpoints/\d+$", count=2)
worker.command(["train", *worker.OPTIONS], run_dir, into_place, kept, act=end)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        pytest.param("raise RuntimeError('after a save')", 1, marks=pytest.mark.slow),
    ],
)
def test_what_was_saved_is_there_however_the_process_ends(end, code, tmp_path):
    run_dir, kept = tmp_path / "run", tmp_path / "kept"
    command = [sys.executable, "-c", END.format(end=end), str(run_dir), str(kept)]
    with subprocess.Popen(command) as process:
        wait_until(lambda: bool(steps_of(run_dir)) or process.poll() is not None)
        assert process.wait(timeout=20) == code, errors_of(run_dir)
    assert assert_good_bits(run_dir, kept) == 3


def test_a_run_sees_every_example_once_an_epoch_in_the_order_of_its_seed(one_unit, tmp_path):
    """Its losses are those of a loop written here, which begins at its first step."""
    folder = digits(tmp_path / "digits", train=range(0, 4000, 145), val=range(70, 4000, 1000))
    options = """
        --data.name folder --data.subset None --data.mean 0.2 --data.std 0.4
        --augment.shift 0 --optim.schedule constant --optim.momentum 0 --optim.no-nesterov
        --epochs 3 --batch-size 9 --eval-every 1 --ema None --seed 5
    """
    words = [*options.split(), "--data.dir", str(folder)]
    assert ended(start(tmp_path / "run", *words, kept=tmp_path / "kept")) == 0
    metrics = rj.Run.open(tmp_path / "run").metrics()
    losses = metrics[metrics["kind"] == "train"]["loss"].to_numpy()

    data = rj.load_dataset("folder", folder).train
    assert len(data.labels) == 28
    raw = [
        np.random.Philox(np.random.SeedSequence(5, spawn_key=(epoch,))).random_raw(28)
        for epoch in range(4)
    ]
    order = np.concatenate([np.argsort(numbers, kind="stable") for numbers in raw])
    first = saved(tmp_path / "kept/1", "")
    network = {"width": 2, "num_classes": len(set(data.labels)), "lowering": "reference"}
    state = rj.TrainState.of_variables(VARIANTS["resnet18"](**network), first, optax.sgd(0.05))
    step, expected = jax.jit(rj.train_step), []
    for at in range(1, 10):  # 28 examples are three batches and a part of the fourth
        examples = order[9 * at : 9 * at + 9]
        images = (data.images[examples] / np.float32(255) - np.float32(0.2)) / np.float32(0.4)
        state, measured = step(state, rj.Batch(images, data.labels[examples]))
        expected.append(float(measured.loss))
    np.testing.assert_allclose(losses[1:], expected, rtol=1e-4)
