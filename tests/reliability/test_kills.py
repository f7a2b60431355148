"""``kill -9`` at every kind of moment: nothing is lost, and the end has the same bits."""

import signal
import subprocess
import sys
import time

import chex
import pytest
import worker
from faults import (
    assert_good_bits,
    assert_same_run,
    ended,
    expected_ids,
    no_orphans,
    program_of,
    saved,
    start,
    wait_until,
)
from worker import KillPoint

# In an order that takes a run from its start to its end: each start gets a little further.
DURING_THE_FIRST_STEPS = [
    KillPoint("open", "run.log"),
    KillPoint("os.rename", "config.yaml.unfinished"),
    KillPoint("step"),
    KillPoint("step", count=2),
    KillPoint("os.rename", "metrics.jsonl.unfinished"),  # lines of steps that no checkpoint has
    KillPoint("evaluate"),
]
DURING_A_SAVE = [
    KillPoint("os.mkdir", "/.unfinished-"),
    KillPoint("open", "_CHECKPOINT_METADATA"),
    KillPoint("open", "array_metadatas"),
    KillPoint("open", "_METADATA", count=2),
    KillPoint("open", "commit_success.txt"),
    KillPoint("os.rename", "state.orbax-checkpoint-tmp"),
    KillPoint("open", "/d/", count=3),
    KillPoint("open", "manifest.json"),
    KillPoint("open", "manifest.json", count=2),
    KillPoint("pathlib.Path.rglob", "/.unfinished-", count=2),
    KillPoint("os.rename", "checkpoints/.unfinished-"),
]
LATER = [
    KillPoint("step", count=4),
    KillPoint("restore"),
    KillPoint("step", count=1),
    KillPoint("evaluate", count=1),
]
DURING_A_DELETION = [
    KillPoint("os.rename", ".unfinished-discarded-"),
    KillPoint("shutil.rmtree", ".unfinished-discarded-"),
    KillPoint("os.remove", "_METADATA", count=3),
    KillPoint("os.rmdir", "", count=1),
    KillPoint("os.rmdir", "", count=4),
]
# After the evaluations at steps 15 and 18, and then with nothing but the tests left to do.
IN_THE_FINAL_TEST = [KillPoint("evaluate", count=3), KillPoint("evaluate", count=2)]


def kill_one_after_another(points, undisturbed, tmp_path):
    """Kills the same run at each of the points, and lets it end; returns the steps it was at."""
    program, run_dir, ids = program_of(), tmp_path / "run", tmp_path / "ids.txt"
    newest = []
    for point in points:
        code = ended(start(run_dir, point=point, ids=ids))
        assert code == -signal.SIGKILL, f"{point} was never reached"
        newest.append(assert_good_bits(run_dir, program, undisturbed))
    assert newest == sorted(newest)  # nothing that was saved was lost
    assert ended(start(run_dir, ids=ids)) == 0
    assert_good_bits(run_dir, program, undisturbed)
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)
    # Of every step the examples that were its last: those of the parameters at the end.
    seen = dict(line.split(" ", 1) for line in ids.read_text().splitlines())
    assert list(map(int, seen)) == list(range(worker.STEPS))
    for step, examples in seen.items():
        assert list(map(int, examples.split())) == expected_ids(int(step))
    epoch = worker.STEPS // 3
    for first in range(0, worker.STEPS, epoch):
        of_epoch = [i for step in range(first, first + epoch) for i in expected_ids(step)]
        assert sorted(of_epoch) == list(range(60))
    return newest


@pytest.mark.slow
def test_killed_before_a_checkpoint_is_in_place_and_while_an_old_one_goes(undisturbed, tmp_path):
    points = [
        KillPoint("os.rename", "checkpoints/.unfinished-"),
        KillPoint("os.rename", ".unfinished-discarded-"),
    ]
    assert len(kill_one_after_another(points, undisturbed, tmp_path)) == 2


@pytest.mark.slow
def test_killed_at_every_kind_of_moment(undisturbed, tmp_path, record_property):
    points = [
        *DURING_THE_FIRST_STEPS,
        *DURING_A_SAVE,
        *LATER,
        *DURING_A_DELETION,
        *IN_THE_FINAL_TEST,
    ]
    record_property("kills", len(kill_one_after_another(points, undisturbed, tmp_path)))


END = """
import sys, threading
sys.path.insert(0, {folder!r})
import worker; worker.shrink()
from pathlib import Path
from faults import program_of
from resnet_jax.training.checkpoint import Checkpoints
Checkpoints(Path(sys.argv[1])).save(program_of().init(), None)
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        pytest.param("raise RuntimeError('after the save')", 1, marks=pytest.mark.slow),
        pytest.param("import os; os._exit(4)", 4, marks=pytest.mark.slow),
        pytest.param("", 0, marks=pytest.mark.slow),
    ],
)
def test_what_was_saved_is_there_however_the_process_ends(end, code, program, tmp_path):
    script = END.format(folder=str(worker.Path(worker.__file__).parent), end=end)
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: (tmp_path / "0").exists() or process.poll() is not None)
        began = time.monotonic()
        _, errors = process.communicate(timeout=20)
        assert time.monotonic() - began < 20
    assert process.returncode == code, errors
    from resnet_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path)
    assert list(checkpoints.good_steps()) == [0]
    fresh = program.init()
    chex.assert_trees_all_equal(saved(checkpoints.restore(fresh, 0)), saved(fresh))
