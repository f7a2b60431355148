"""A full disk, a limit on files and a read-only disk, all of them real."""

import re

import pytest
import worker
from faults import assert_same_run, in_namespace, no_orphans

from resnet_jax.training.folder import RunFolder

# $1 is a folder outside, where results are left; the disk is mounted on $1/disk.
DISK = """
mkdir -p $1/disk
mount -t tmpfs -o size={size} tmpfs $1/disk
run() {{ $TRAIN --run-dir $1/disk/run >$1/output.txt 2>>$1/errors.txt; echo $?; }}
"""


def trained_steps(run_dir):
    return list(RunFolder(run_dir).checkpoints.good_steps())


@pytest.mark.slow
def test_a_full_disk_is_reported_at_its_step_and_the_run_goes_on_after(undisturbed, tmp_path):
    script = (
        DISK.format(size="4m")
        + """
head -c $2 /dev/zero >$1/disk/ballast
run $1
cp -r $1/disk/run $1/full
rm $1/disk/ballast
run $1
cp -r $1/disk/run $1/freed
"""
    )
    # The next checkpoint's arrays would fit, and its other files do not.
    checkpoint = sum(f.stat().st_size for f in (undisturbed.run.path / "checkpoints/18").rglob("*"))
    done = in_namespace(script, tmp_path, 4 * 2**20 - int(2.7 * checkpoint))
    assert done.stdout.split() == ["1", "0"], (tmp_path / "errors.txt").read_text()
    (line,) = (tmp_path / "errors.txt").read_text().splitlines()
    found = re.search(r"step (\d+) could not be written to .*: free space or permissions", line)
    assert found, line
    failed = int(found[1])
    assert failed > 3
    assert trained_steps(tmp_path / "full")[0] == failed - 3
    assert no_orphans(tmp_path / "full")
    assert_same_run(tmp_path / "freed", undisturbed)
    assert no_orphans(tmp_path / "freed")


@pytest.mark.slow
def test_a_disk_without_free_inodes(undisturbed, tmp_path):
    """There is room for the bytes and none for the files: what writes them fails, not a check."""
    script = (
        DISK.format(size="16m,nr_inodes=60")
        + """
run $1
cp -r $1/disk/run $1/full
mount -o remount,nr_inodes=10000 $1/disk
run $1
cp -r $1/disk/run $1/freed
"""
    )
    done = in_namespace(script, tmp_path)
    errors = (tmp_path / "errors.txt").read_text()
    assert done.stdout.split() == ["1", "0"], errors
    assert re.search(r"resnet-jax: checkpoint of step \d+ could not be written", errors)
    good = trained_steps(tmp_path / "full")
    assert good
    assert max(good) < worker.STEPS
    assert_same_run(tmp_path / "freed", undisturbed)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(undisturbed, tmp_path):
    """``ulimit -f``, in blocks of 512 bytes: no checkpoint fits, metrics do.

    Nor does a compiled program, half of which would be left for others to stumble over.
    """
    script = """
run() { $TRAIN --run-dir $1/run >$1/output.txt 2>>$1/errors.txt; echo $?; }
(ulimit -f 16; export JAX_ENABLE_COMPILATION_CACHE=false; run $1)
run $1
"""
    done = in_namespace(script, tmp_path)
    errors = (tmp_path / "errors.txt").read_text()
    assert done.stdout.split() == ["1", "0"], errors
    assert "resnet-jax: checkpoint of step 3 could not be written" in errors
    assert "Traceback" not in errors
    assert_same_run(tmp_path / "run", undisturbed)
    assert no_orphans(tmp_path / "run")


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(undisturbed, tmp_path):
    script = (
        DISK.format(size="16m")
        + """
$TRAIN --epochs 3 --run-dir $1/disk/run >$1/output.txt 2>$1/log.txt &
until [ -d $1/disk/run/checkpoints/6 ]; do sleep 0.05; done
until mount -o remount,ro $1/disk 2>/dev/null; do sleep 0.01; done
wait $!; echo $?
$PYTHON $2 evaluate $1/disk/run --json >$1/evaluated.json; echo $?
cp -r $1/disk/run $1/before
run $1
mount -o remount,rw $1/disk
run $1
cp -r $1/disk/run $1/after
"""
    )
    done = in_namespace(script, tmp_path, worker.__file__)
    assert done.stdout.split()[-1] == "0", done.stderr
    assert trained_steps(tmp_path / "before")
    assert_same_run(tmp_path / "after", undisturbed)


@pytest.mark.slow
def test_a_read_only_folder_at_the_start_and_reading_from_it(undisturbed, tmp_path):
    script = """
mount --bind $2 $2
mount -o remount,ro,bind $2
$PYTHON $3 evaluate $2 --json >$1/evaluated.json; echo $?
$TRAIN --run-dir $2 2>$1/errors.txt >$1/output.txt; echo $?
"""
    done = in_namespace(script, tmp_path, undisturbed.run.path, worker.__file__)
    assert done.stdout.split() == ["0", "1"], done.stderr
    (line,) = (tmp_path / "errors.txt").read_text().splitlines()
    assert "cannot be written (Read-only file system)" in line
