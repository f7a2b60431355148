"""A checkpoint counts only if it is whole; the tests damage every file of one."""

import errno
import json
import os
import random
import re
import shutil
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from flax.linen import Dense
from make_datasets import flip, refused

import resnet_jax as rj
from resnet_jax import storage
from resnet_jax.training import run_folder
from resnet_jax.training.checkpoint import Checkpoints, DamagedCheckpointError, Manifest
from resnet_jax.training.run_folder import RunFolder

FLIPS = 40  # in each file


def tiny_state() -> rj.TrainState:
    variables = {"params": {"kernel": np.ones((1, 1), np.float32)}}
    return jax.device_put(rj.TrainState.of_variables(Dense(1), variables))


def files_of(checkpoints: Checkpoints, step: int) -> list[Path]:
    folder = checkpoints.directory / str(step)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_two_newest_and_the_best_are_kept(finished_run):
    checkpoints = Checkpoints(finished_run.path / "checkpoints")
    assert set(checkpoints.steps()) == {10, 12, checkpoints.best_of(checkpoints.steps())}
    assert list(checkpoints.good_steps()) == checkpoints.steps()[::-1]


def test_the_best_has_the_highest_accuracy_then_the_smallest_loss_then_comes_first(monkeypatch):
    found = {5: (0.9, 0.5), 10: (0.95, 0.4), 15: (0.95, 0.2), 20: (0.95, 0.2), 25: (0.8, 0.1)}
    checkpoints = Checkpoints("none")
    known = {step: Manifest(step, {"accuracy": a, "loss": b}, {}) for step, (a, b) in found.items()}
    monkeypatch.setattr(checkpoints, "manifest", known.get)
    for steps in (list(found), list(found)[::-1]):
        assert checkpoints.best_of(steps) == 15
    assert checkpoints.best_of([5, 10, 25]) == 10
    assert checkpoints.best_of([]) is None


def test_every_flipped_cut_or_missing_byte_is_noticed_and_its_file_named(checkpoints):
    rng = random.Random(0)
    for path in files_of(checkpoints, 12):
        whole = path.read_bytes()
        bits = [(rng.randrange(len(whole)), 1 << rng.randrange(8)) for _ in range(FLIPS)]
        cuts = [partial(path.write_bytes, whole[:size]) for size in (len(whole) // 2, 0)]
        for damage in (*(partial(flip, path, *bit) for bit in bits), *cuts, path.unlink):
            damage()
            with pytest.raises(DamagedCheckpointError, match=path.name):
                checkpoints.verify(12)
            path.write_bytes(whole)
    checkpoints.verify(12)


@pytest.mark.parametrize(
    ("module", "reads", "code"),
    [
        (storage, "file_sha256", errno.ENOENT),
        (storage, "file_sha256", errno.EIO),
        (os, "scandir", errno.ESTALE),
    ],
)
def test_what_goes_or_cannot_be_read_is_passed_over_and_not_left_out_of_a_save(
    module, reads, code, checkpoints, monkeypatch
):
    """A training run removes a file, a sector goes bad (EIO), or a server loses the file (ESTALE).

    Since Python 3.13 `Path.rglob` skips an unreadable folder: its files would have no checksum.
    """
    usual = getattr(module, reads)

    def fails(path):
        if re.search("12/state(/|$)", str(path)):
            raise OSError(code, os.strerror(code))
        return usual(path)

    monkeypatch.setattr(module, reads, fails)
    assert list(checkpoints.good_steps()) == [10]
    said = refused(checkpoints.save, tiny_state().replace(step=np.int32(12)), None)
    assert os.strerror(code) in said
    assert checkpoints.steps() == [10, 12]


def test_what_others_leave_in_a_folder_damages_nothing(checkpoints):
    """Files of macOS, Windows, notebooks or network drives made a run begin anew and drop steps."""
    for name in (
        *(".DS_Store", "state/._manifest.json", "desktop.ini", "state/Thumbs.db"),
        *(".ipynb_checkpoints/manifest-checkpoint.json", "state/@eaDir/manifest.json"),
    ):
        path = checkpoints.directory / "12" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"Bud1")
    assert next(checkpoints.good_steps()) == 12


def test_a_step_that_somebody_reads_is_discarded_all_the_same(checkpoints, monkeypatch):
    """On NFS a file that is being read stays in its folder, which then cannot be removed."""
    busy = mock.Mock(side_effect=OSError(errno.ENOTEMPTY, "Directory not empty"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", busy)
        checkpoints._discard(10)
        shutil.copytree(checkpoints.directory / "12", checkpoints.directory / "10")
        checkpoints._discard(10)  # again, beside the remains of the first
        storage.remove_unfinished(checkpoints.directory)
    assert checkpoints.steps() == [12]


def test_a_step_that_cannot_be_renamed_is_discarded(checkpoints, monkeypatch):
    """In a container a folder of its image: every save ended the run."""
    rename = Path.rename

    def renamed(path, target):
        if "discarded" in str(target):
            raise OSError(errno.EXDEV, "another disk")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    checkpoints.save(tiny_state().replace(step=np.int32(12)), None)
    assert checkpoints.verify(12)
    with mock.patch.object(shutil, "rmtree"):  # killed before it
        checkpoints._discard(10)
    assert list(checkpoints.good_steps()) == [12]
    checkpoints._discard(10)
    assert checkpoints.steps() == [12]


def test_what_is_no_step_is_no_step(checkpoints):
    (checkpoints.directory / "30").mkdir()  # Orbax would call this the newest step
    shutil.copytree(checkpoints.directory / "12", checkpoints.directory / "40")
    (checkpoints.directory / ".unfinished-50").mkdir()
    (checkpoints.directory / "12" / "state" / "stranger").write_text("")
    assert next(checkpoints.good_steps()) == 10
    assert "it is that of step 12" in refused(checkpoints.verify, 40)
    assert "does not belong" in refused(checkpoints.verify, 12)


def test_what_a_killed_save_left_is_in_no_ones_way(tmp_path, monkeypatch):
    """In a custom loop only `save` removes it; a `._` file may vanish with the one beside it."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.directory.mkdir()
    (checkpoints.directory / "._x.unfinished").touch()
    unlink = Path.unlink
    with monkeypatch.context() as patched:  # macOS removes a `._` file with the one beside it
        patched.setattr(Path, "unlink", lambda p, **how: (os.remove(p), unlink(p, **how)))
        storage.remove_unfinished(checkpoints.directory)
    (checkpoints.directory / ".unfinished-0" / "state").mkdir(parents=True)
    checkpoints.save(tiny_state(), None)
    assert list(checkpoints.good_steps()) == [0]
    assert [path.name for path in checkpoints.directory.iterdir()] == ["0"]


def test_a_loop_of_ones_own_may_save_its_arrays_and_restores_what_met_nothing_bad(tmp_path):
    """The state passed to `restore` is often the one that diverged, or its arrays were donated."""
    checkpoints, state = Checkpoints(tmp_path), tiny_state()
    measured = {"accuracy": np.float32(0.5), "loss": jax.device_put(1.0), "top5": 0.75}
    checkpoints.save(state, measured)
    assert checkpoints.manifest(0).validation == {"accuracy": 0.5, "loss": 1.0, "top5": 0.75}
    state.first_bad_step.delete()
    assert int(checkpoints.restore(state, 0).first_bad_step) == -1


def test_what_a_loop_of_ones_own_must_not_save_leaves_nothing(tmp_path):
    """A state that met nan pushed out the good steps; without the loss no later save succeeded."""
    checkpoints, state = Checkpoints(tmp_path), tiny_state()
    met_nan = state.replace(first_bad_step=np.int32(3))
    assert "step 3 was not finite" in refused(checkpoints.save, met_nan, None)
    with pytest.raises(KeyError, match="loss"):
        checkpoints.save(state, {"accuracy": 0.5})
    assert checkpoints.steps() == []


@pytest.mark.slow
def test_training_goes_on_from_the_older_good_step_and_says_so(
    finished_run, checkpoints, own_run, tiny_config, caplog
):
    largest = max(files_of(checkpoints, 12), key=lambda path: path.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
    run = rj.train(tiny_config, own_run, quiet=True)
    assert largest.name in caplog.text
    assert "step 12 is not used" in caplog.text
    for name in ("latest", "best"):
        chex.assert_trees_all_equal(run.variables(name), finished_run.variables(name))


def test_steps_after_the_one_resumed_from_do_not_push_out_new_ones(finished_run, checkpoints):
    """When both newest steps are damaged, a run goes on from an older one."""
    state = finished_run._state("latest")
    assert checkpoints.steps() == [10, 12]
    checkpoints.save(state.replace(step=np.int32(7)), None)
    checkpoints.save(state.replace(step=np.int32(9)), None)
    assert checkpoints.steps() == [7, 9]
    assert list(checkpoints.good_steps()) == [9, 7]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line_and_a_log_that_it_takes_not_loses_nothing_else(
    tmp_path, monkeypatch, capfd
):
    """/dev/full takes no data, as a full disk; unless patched, a run's folder refuses the link."""
    monkeypatch.setattr(storage, "refuse_links", lambda path: None)
    folder = RunFolder(tmp_path)
    (tmp_path / "run.log").symlink_to("/dev/full")
    with folder.opened_for_writing():
        run_folder.events_log.info("begins")
    assert "Traceback" not in capfd.readouterr().err
    (tmp_path / ".lock").unlink()
    for name, write in (
        (".lock", folder.opened_for_writing().__enter__),
        ("metrics.jsonl", partial(folder.append_metrics, {"step": 1})),
    ):
        (tmp_path / name).symlink_to("/dev/full")
        line = refused(write)
        assert f"{tmp_path}" in line
        assert re.search(r"cannot be written \(.* free space", line)


def test_too_little_space_for_a_checkpoint_is_noticed_before_it_is_written(
    finished_run, checkpoints, monkeypatch
):
    later = finished_run._state("latest").replace(step=np.int32(13))
    usual = {"f_bavail": 10**6, "f_frsize": 1000, "f_files": 10**6, "f_favail": 10**6}

    def describe(**disk: int) -> None:
        described = SimpleNamespace(**{**usual, "f_blocks": 9, **disk})
        monkeypatch.setattr(os, "statvfs", lambda path: described)

    describe(f_bavail=1)
    assert "MB are needed and 0.0 MB are free): free space" in refused(
        checkpoints.save, later, None
    )
    describe(f_favail=9)
    assert "needed and there is room for 9): free space" in refused(checkpoints.save, later, None)
    assert list(checkpoints.good_steps()) == [12, 10]
    # As macOS reports an exFAT disk, which takes any number of files, and FUSE an unknown size.
    for untold in ({"f_files": 1, "f_favail": 0}, dict.fromkeys((*usual, "f_blocks"), 0)):
        describe(**untold)
        checkpoints.save(later, None)
    assert next(checkpoints.good_steps()) == 13


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_of_which_no_step_verifies_is_not_begun_anew(lost, checkpoints, own_run, tiny_config):
    """Its first save would remove them all; a run with test results but no steps is refused too."""
    before = (own_run / "metrics.jsonl").read_text()
    for step in checkpoints.steps():
        (checkpoints.directory / str(step) / "state" / ".directory").touch()
    if lost:
        shutil.rmtree(checkpoints.directory)
    assert "no checkpoint that verifies" in refused(rj.train, tiny_config, own_run, quiet=True)
    assert (own_run / "metrics.jsonl").read_text() == before
    assert checkpoints.steps() == ([] if lost else [10, 12])


def make_the_best(checkpoints: Checkpoints, step: int) -> Path:
    """Make a step the best by far; return its folder."""
    folder = checkpoints.directory / str(step)
    best = Manifest(step, {"accuracy": 1.0, "loss": 0.0}, checkpoints.manifest(step).files)
    (folder / "manifest.json").write_text(best.to_json())
    return folder


def damage_as_the_best(checkpoints: Checkpoints, step: int) -> None:
    """Make a step the best by far, then delete one of its files."""
    next((make_the_best(checkpoints, step) / "state").rglob("_METADATA")).unlink()


def without_tests(run_dir: Path) -> Path:
    """Remove the lines of the final tests from a run's metrics."""
    rows = [row for row in RunFolder(run_dir).read_metrics() if row["kind"] != "test"]
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return run_dir


def test_the_best_step_is_not_the_latest(own_run, checkpoints, tiny_config):
    make_the_best(checkpoints, 10)
    run = rj.train(tiny_config, without_tests(own_run), quiet=True)
    tests, found = run.metrics().query("split == 'test'").set_index("checkpoint"), []
    for checkpoint, step in (("best", 10), ("latest", 12)):
        found.append(run.variables(checkpoint))
        chex.assert_trees_all_equal(found[-1], checkpoints.restore_variables(step))
        assert tests["step"][checkpoint] == step
        measured = run.evaluate("test", checkpoint).loss
        assert tests["loss"][checkpoint] == pytest.approx(measured, rel=1e-6)
    best, latest = (variables["params"]["head"]["kernel"] for variables in found)
    assert (best != latest).any()


def test_a_damaged_step_that_was_passed_over_takes_no_place(finished_run, checkpoints):
    """The older good step, from which the run had gone on, was removed for the damaged one."""
    damage_as_the_best(checkpoints, 12)
    assert next(checkpoints.good_steps()) == 10
    checkpoints.save(finished_run._state("latest").replace(step=np.int32(15)), None)
    assert list(checkpoints.good_steps()) == [15, 10]


@pytest.mark.parametrize("place", ["state", "manifest.json"])
def test_a_link_out_of_a_checkpoint_is_no_part_of_it(place, own_run, tmp_path, checkpoints):
    """Orbax followed a link to a folder, whose files no manifest lists; a device has no end."""
    step = checkpoints.directory / "12"
    if place == "state":
        (step / "state").rename(tmp_path / "state")
        (step / "state").symlink_to(tmp_path / "state")
        (step / "manifest.json").write_text(Manifest(12, None, {}).to_json())
    else:
        (step / "manifest.json").unlink()
        (step / "manifest.json").symlink_to("/dev/zero")
    assert list(checkpoints.good_steps()) == [10]


def test_a_log_is_that_of_one_run(tmp_path):
    """Another thread of the process may carry out another run."""
    with RunFolder(tmp_path).opened_for_writing():
        run_folder.events_log.info("begins")
        other = threading.Thread(target=run_folder.events_log.info, args=["another"])
        other.start()
        other.join()
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith("begins")


def test_a_damaged_best_checkpoint_does_not_keep_a_run_from_its_end(
    checkpoints, own_run, tiny_config, caplog
):
    """The test splits remain to be evaluated, with the best checkpoint too."""
    damage_as_the_best(checkpoints, 10)
    run = rj.train(tiny_config, without_tests(own_run), quiet=True)
    tests = run.metrics().query("kind == 'test'")
    assert "step 10 is not used" in caplog.text
    assert set(tests["checkpoint"]) == {"latest", "best"}
    assert 10 not in set(tests["step"])
