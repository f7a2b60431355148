"""``kill -9`` at every kind of moment: nothing is lost, and the end has the same bits."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import worker
from faults import assert_good_bits, assert_same_run, ended, no_orphans, start, steps_of, wait_until
from worker import Moment

import resnet_jax as rj

# In an order that takes a run from its start to its end: each start gets a little further.
DURING_THE_FIRST_STEPS = [
    Moment("open", "run.log"),
    Moment("os.rename", "config.yaml"),
    Moment("os.rename", "config.yaml", after=0.3),  # it traces and compiles
    Moment("line", "train", after=0.003),
    Moment("os.rename|os.truncate", "metrics.jsonl"),  # lines of steps that no checkpoint has
    Moment("line", "train", count=3, after=0.002),  # it evaluates
]
DURING_A_SAVE = [
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
]
LATER = [
    Moment("line", "train", count=4, after=0.003),
    Moment("open", r"/checkpoints/\d+/state/_METADATA", count=2),  # it restores
    Moment("line", "train", after=0.003),
    Moment("line", "train", count=2, after=0.002),
]
DURING_A_DELETION = [
    Moment("os.rename|os.remove|shutil.rmtree", r"^[^\n]*/checkpoints/\d+(\n|$)"),
    Moment("shutil.rmtree", "/checkpoints/"),
    Moment("os.remove", "_METADATA", count=3),
    Moment("os.rmdir", count=1),
    Moment("os.rmdir", count=4),
]
IN_THE_FINAL_TEST = [
    Moment("os.rename", r"\n.*/checkpoints/18$", after=0.05),
    # With nothing but the tests left to do, before their lines and after them.
    Moment("open", r"metrics\.jsonl\na"),
    Moment("line", "test"),
]


def kill_one_after_another(moments, undisturbed, tmp_path):
    """Kill the same run at each of the moments, and let it end; returns the steps it was at."""
    run_dir, newest = tmp_path / "run", []
    for moment in moments:
        code = ended(start(run_dir, moment=moment))
        assert code == -signal.SIGKILL, f"{moment} was never reached"
        newest.append(assert_good_bits(run_dir, undisturbed))
    assert newest == sorted(newest)  # nothing that was saved was lost
    assert ended(start(run_dir)) == 0
    assert_good_bits(run_dir, undisturbed)
    assert_same_run(run_dir, undisturbed)
    assert no_orphans(run_dir)
    return newest


@pytest.mark.slow
def test_killed_before_a_checkpoint_is_in_place_and_while_an_old_one_goes(undisturbed, tmp_path):
    moments = [DURING_A_SAVE[-1], DURING_A_DELETION[0]]
    assert len(kill_one_after_another(moments, undisturbed, tmp_path)) == 2


@pytest.mark.slow
def test_killed_at_every_kind_of_moment(undisturbed, tmp_path, record_property):
    moments = [
        *DURING_THE_FIRST_STEPS,
        *DURING_A_SAVE,
        *LATER,
        *DURING_A_DELETION,
        *IN_THE_FINAL_TEST,
    ]
    record_property("kills", len(kill_one_after_another(moments, undisturbed, tmp_path)))
