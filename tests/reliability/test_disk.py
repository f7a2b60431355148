"""A full disk, a limit on files and a read-only disk, all of them real."""

import json
import re

import pytest
import worker
from faults import assert_same_run, in_namespace, no_orphans, steps_of

import resnet_jax as rj

# $1 is a folder outside, where results are left; the disk is mounted on $1/disk.
DISK = """
mkdir -p $1/disk
mount -t tmpfs -o size={size} tmpfs $1/disk
"""
RUN = """
run() { $TRAIN --run-dir $1 >$2/output.txt 2>>$2/errors.txt; echo $?; }
"""


def trained_steps(run_dir):
    """The steps in place, newest first; all of them are whole."""
    assert rj.Run.open(run_dir).verify().ok
    return steps_of(run_dir)[::-1]


def one_line_each(tmp_path, count):
    """What the command said of errors, a line for each of the times that it failed."""
    lines = (tmp_path / "errors.txt").read_text().splitlines()
    assert len(lines) == count, lines
    assert all(line.startswith("resnet-jax: ") for line in lines)
    return lines


def fails_and_goes_on_after(script, undisturbed, tmp_path, *arguments):
    """The one line, with its step, of a run that fails; the next ends in $1/after."""
    done = in_namespace(script, tmp_path, *arguments)
    assert done.stdout.split() == ["1", "0"], (tmp_path / "errors.txt").read_text()
    (line,) = one_line_each(tmp_path, 1)
    assert_same_run(tmp_path / "after", undisturbed)
    assert no_orphans(tmp_path / "after")
    found = re.search(r"\bstep (\d+)\b", line)
    assert found, line
    return line, int(found[1])


@pytest.mark.slow
def test_a_full_disk_is_reported_at_its_step_and_the_run_goes_on_after(undisturbed, tmp_path):
    script = """
head -c $2 /dev/zero >$1/disk/ballast
run $1/disk/run $1
cp -r $1/disk/run $1/full
rm $1/disk/ballast
run $1/disk/run $1
cp -r $1/disk/run $1/after
"""
    # The next checkpoint's arrays would fit, and its other files do not.
    checkpoint = sum(f.stat().st_size for f in (undisturbed.run.path / "checkpoints/18").rglob("*"))
    script, ballast = DISK.format(size="4m") + RUN + script, 4 * 2**20 - int(2.7 * checkpoint)
    line, failed = fails_and_goes_on_after(script, undisturbed, tmp_path, ballast)
    assert "/disk/run/checkpoints" in line
    assert failed > 3
    assert trained_steps(tmp_path / "full")[0] == failed - 3
    assert no_orphans(tmp_path / "full")


@pytest.mark.slow
def test_a_disk_without_free_inodes(undisturbed, tmp_path):
    """There is room for the bytes and none for the files: what writes them fails, not a check."""
    script = """
run $1/disk/run $1
cp -r $1/disk/run $1/full
mount -o remount,nr_inodes=10000 $1/disk
run $1/disk/run $1
cp -r $1/disk/run $1/after
"""
    script = DISK.format(size="16m,nr_inodes=60") + RUN + script
    _, failed = fails_and_goes_on_after(script, undisturbed, tmp_path)
    assert trained_steps(tmp_path / "full")[0] == failed - 3 < worker.STEPS


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(undisturbed, tmp_path):
    """``ulimit -f``, in blocks of 512 bytes: no checkpoint fits, metrics do.

    Nor does a compiled program, half of which would be left for others to stumble over.
    """
    script = """
(ulimit -f 8; export JAX_ENABLE_COMPILATION_CACHE=false; run $1/after $1)
run $1/after $1
"""
    assert fails_and_goes_on_after(RUN + script, undisturbed, tmp_path)[1] == 3


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(undisturbed, tmp_path):
    """Under a run that is at work: from then on it finds the folder on a read-only disk.

    Linux refuses to remount a disk on which files are open for writing, so a second, read-only
    view of the folder is mounted over it; the run stands still meanwhile.
    """
    script = """
$TRAIN --run-dir $1/disk/run >$1/output.txt 2>>$1/errors.txt &
until [ -d $1/disk/run/checkpoints/6 ]; do sleep 0.01; done
kill -STOP $!
mount --bind $1/disk/run $1/disk/run
mount -o remount,ro,bind $1/disk/run
kill -CONT $!
wait $!; echo $?
$PYTHON $2 evaluate $1/disk/run --json >$1/evaluated.json; echo $?
cp -r $1/disk/run $1/before
run $1/disk/run $1
umount $1/disk/run
run $1/disk/run $1
cp -r $1/disk/run $1/after
"""
    done = in_namespace(DISK.format(size="16m") + RUN + script, tmp_path, worker.__file__)
    assert done.stdout.split() == ["1", "0", "1", "0"], (done.stderr, tmp_path)
    for line in one_line_each(tmp_path, 2):
        assert "Read-only file system" in line
    found = json.loads((tmp_path / "evaluated.json").read_text())
    expected = rj.Run.open(tmp_path / "before").evaluate("test")
    assert (found["correct"], found["count"]) == (expected.correct, 20)
    assert 6 <= trained_steps(tmp_path / "before")[0] < worker.STEPS
    assert_same_run(tmp_path / "after", undisturbed)
