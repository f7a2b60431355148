"""A run's folder that was moved or damaged, or that comes from elsewhere."""

import dataclasses
import json
import os
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from functools import partial
from unittest import mock

import pytest
import worker
from faults import ended, errors_of, start, steps_of, wait_until
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.training import run_folder
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.engine import Engine
from resnet_jax.training.run_folder import RunFolder


def test_a_run_opened_by_a_relative_path_is_the_same_in_another_folder(own_run, monkeypatch):
    monkeypatch.chdir(own_run.parent)
    run = rj.Run.open(own_run.name)
    monkeypatch.chdir("/")
    assert len(run.metrics()) > 0
    assert run.variables("latest")["params"]


def test_a_link_in_a_runs_folder_changes_nothing_outside(own_run, tiny_config, tmp_path):
    outside, other = tmp_path / "precious.txt", dataclasses.replace(tiny_config, log_every=7)
    outside.write_text("precious")
    for name in (".lock", "run.log", "metrics.jsonl.unfinished", "checkpoints/x"):
        (own_run / name).unlink(missing_ok=True)
        (own_run / name).symlink_to(outside)
        said = refused(rj.train, other, own_run, quiet=True)
        assert re.search(rf"{name} is a link to .*remove it", said)
        assert outside.read_text() == "precious"
        (own_run / name).unlink()


def test_a_damaged_configuration_is_named_and_builds_no_object(own_run):
    evil = f"config: !!python/object/apply:os.mkdir ['{own_run}/made']"
    whole = (own_run / "config.yaml").read_text()
    texts = ["config: [", "a: 1", "", evil, "{}"]
    for more in ("parts:", "parts: 3", *(f"instructions: {i}" for i in ("sse", "[avx2]", "2"))):
        texts.append(f"{whole}\n{more}\n")
    # Impossible image shapes, and versions that are no mapping.
    changes = ("- 28", "- 0"), ("versions:", "versions: [1]\nothers:")
    changes += ("- 28", "- .inf"), ("- 28", "- 60000")
    texts += [whole.replace(*change) for change in changes]
    assert whole not in texts
    for text in (*texts, whole.replace("learning_rate:", "lookahead:")):
        (own_run / "config.yaml").write_text(text)
        line = refused(rj.Run.open, own_run)
        assert f"{own_run}/config.yaml is damaged" in line
    assert "is damaged or of another version: setting optim.lookahead" in line
    assert not (own_run / "made").exists()


# 600 bytes that aliases multiply to billions of values.
MULTIPLYING = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "make",
    [
        # An alias in the place of a text of an otherwise valid configuration.
        lambda at: at.write_text(MULTIPLYING + at.read_text().replace("mnist_5k", "*a11")),
        lambda config: os.truncate(config, 10**12),  # takes no room on the disk
        lambda config: config.write_text("[" * 2000),
        lambda config: config.write_text("a: 1" + ":1" * 400_000),  # a number to base 60
    ],
    ids=["aliases", "a terabyte", "brackets", "base 60"],
)
def test_a_configuration_that_would_fill_the_memory_is_refused_at_once(make, own_run, refusal):
    make(own_run / "config.yaml")
    began = time.monotonic()
    line = refusal("evaluate", own_run)
    assert time.monotonic() - began < 10
    assert "config.yaml is damaged" in line
    assert len(line) < 500


def test_checkpoints_without_their_configuration_are_not_continued(own_run, tiny_config, refusal):
    """After a folder was copied in part, any other settings could continue its checkpoints."""
    (own_run / "config.yaml").unlink()
    other = dataclasses.replace(tiny_config, batch_size=10)
    assert "it has checkpoints; put that" in refused(rj.train, other, own_run, quiet=True)
    assert not (own_run / "config.yaml").exists()
    assert "it has checkpoints; put that file back" in refused(rj.Run.open, own_run)
    # Taken for a folder of images, it held "no image file but 12 without, 2 .ocdbt".
    assert "it has checkpoints; put that file back" in refusal("verify", own_run)


def test_a_place_that_is_no_run_is_answered_with_the_run_that_was_meant(
    own_run, tiny_config, tmp_path, monkeypatch
):
    """The advice to train in a checkpoint's folder, once followed, made the run of no use."""
    monkeypatch.chdir(shutil.copytree(own_run, tmp_path / "runs" / "mine").parents[1])
    (tmp_path / "file").touch()
    for path, said in (
        (own_run / "checkpoints" / "12", f"did you mean {own_run}?"),
        (own_run / "metrics.jsonl", f"did you mean {own_run}?"),
        (tmp_path / "runs", f"did you mean {tmp_path}/runs/mine?"),
        ("mine", "did you mean runs/mine?"),
        ("file", "give a run's folder, which `resnet-jax train` makes"),
        ("nowhere", "give a run's folder, which `resnet-jax train` makes"),
    ):
        assert said in refused(rj.Run.open, path)
    for part in ("checkpoints", "checkpoints/12", "report/new"):
        said = refused(rj.train, tiny_config, own_run / part, quiet=True)
        assert said.endswith(f"is part of the run in {own_run}: give another --run-dir")
    assert rj.Run.open(own_run).verify().ok


def test_a_locale_of_other_bytes_is_refused(tmp_path, monkeypatch):
    """With a name in GBK, a checkpoint's arrays went to another folder than the rest of it."""
    monkeypatch.setattr(os, "fsencode", lambda path: str(path).encode("gbk"))
    assert "or a locale of UTF-8" in refused(RunFolder, tmp_path / "猫")
    RunFolder(tmp_path / "cat")


@pytest.mark.parametrize("lost", ["", "12"])
def test_a_finished_run_without_its_checkpoints_is_not_whole(lost, own_run, command):
    """A folder that was copied in part was not called damaged."""
    shutil.rmtree(own_run / "checkpoints" / lost)
    code, out, _ = command("verify", own_run)
    assert (code, "checkpoints/12 is missing" in out) == (1, True)


TEXTS = ("}", "null", "{}", "[" * 100_000 + "]" * 100_000)  # lines that are no row
CHANGES = (  # each makes a row invalid
    *({"step": value} for value in (None, 1e999)),
    {"epoch": 10**400},  # no float
    {"another": 1.0},
    *({"loss": value} for value in ("0.5", float("nan"), 1e999)),
    *({"last": value} for value in (None, [1], 8)),  # only tests have this key
    *({"kind": value} for value in ("test", "guess")),  # a test must have a split
    {"learning_rate": []},
    {"step": 0, "kind": "train"},  # earlier than the row before
)


def test_a_line_that_is_no_row_is_named(own_run, command, tiny_config):
    """Both `verify` and a training that would continue name the line."""
    path = own_run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    for damaged in (*TEXTS, *(json.dumps(json.loads(lines[2]) | change) for change in CHANGES)):
        path.write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
        code, out, _ = command("verify", own_run)
        assert (code, "line 3" in out) == (1, True), damaged[:200]
    assert "line 3" in refused(rj.train, tiny_config, own_run, quiet=True)


def test_a_line_cut_short_is_noticed_and_read_over(own_run, command):
    """A kill may cut the last line short."""
    path = own_run / "metrics.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])
    lines = len(text.splitlines())
    code, out, _ = command("verify", own_run)
    assert (code, f"line {lines}" in out) == (1, True)
    assert len(rj.Run.open(own_run).metrics()) == lines - 1


def test_tests_of_which_lines_are_missing_are_made_again(own_run, tiny_config):
    """A disk that was full at the end may have lost the last lines."""

    path = own_run / "metrics.jsonl"
    columns = ["split", "checkpoint", "accuracy"]
    before = rj.Run.open(own_run).metrics().query("kind == 'test'")[columns]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    after = rj.train(tiny_config, own_run, quiet=True).metrics().query("kind == 'test'")[columns]
    assert set(after.itertuples(index=False)) == set(before.itertuples(index=False))


def test_without_a_reader_of_its_output_a_run_trains_on(tmp_path):
    """`| head` closes the pipe early."""
    os.mkfifo(tmp_path / "output.txt")  # becomes its standard output
    pipe = os.open(tmp_path / "output.txt", os.O_RDONLY | os.O_NONBLOCK)
    process = start(tmp_path / "run", "--eval-every", "9")
    wait_until(lambda: select.select([pipe], [], [], 0)[0] or not process.is_alive())
    os.close(pipe)
    code, shown = ended(process), errors_of(tmp_path / "run")
    assert (code, "Traceback" in shown) == (0, False), shown
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["kind"] == "test"
    assert "finished at step" in (tmp_path / "run/run.log").read_text()


def test_a_terminal_that_goes_away_stops_the_run_saved(tmp_path):
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("under `nohup` the command ignores SIGHUP")
    run_dir = tmp_path / "run"
    goes_away = partial(worker.strike, signal.SIGHUP)
    process = start(run_dir, moment=worker.Moment("line", "train", count=3), act=goes_away)
    code, shown = ended(process), errors_of(run_dir)
    assert code == 75, shown
    acknowledged, saved = shown.splitlines()
    assert acknowledged == "resnet-jax: SIGHUP: stopping after this step; again to end now"
    assert saved.startswith("resnet-jax: SIGHUP: saved step")
    assert steps_of(run_dir)


@pytest.mark.parametrize("change", ["a value", "one fewer", "one more"])
def test_changed_lines_are_noticed_and_a_run_goes_on_with_them(
    change, own_run, tiny_config, command, caplog
):
    path = own_run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    changed = {
        "a value": [rows[0] | {"loss": rows[0]["loss"] / 2}, *rows[1:]],
        "one fewer": rows[1:],
        "one more": [rows[0], *rows],
    }[change]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    rj.train(tiny_config, own_run, quiet=True)
    assert "metrics.jsonl was changed: its lines up to step 12 are not" in caplog.text
    assert [json.loads(line) for line in path.read_text().splitlines()] == changed
    code, out, _ = command("verify", own_run)
    assert (code, "metrics.jsonl was changed" in out) == (1, True)


def test_a_checkpoint_of_another_optimiser_is_refused_in_one_line(
    own_run, tiny_config, monkeypatch
):
    """A configuration was edited by hand, or its name now stands for a user's own network."""
    monkeypatch.setattr(Engine, "compile_ahead", lambda *_: None)
    other = dataclasses.replace(tiny_config, epochs=3, optim=rj.OptimConfig(name="adam"))
    folder = RunFolder(own_run)
    folder.write_record(dataclasses.replace(folder.read_record(), config=other))
    said = refused(rj.train, other, own_run, quiet=True)
    assert re.search(r"step 12 in .* cannot be read", said)


def test_a_thousand_other_classes_are_a_line_that_can_be_read(own_run):
    folder = RunFolder(own_run)
    other = tuple(f"class {number}" for number in range(1000))
    with pytest.raises(rj.ResNetJaxError, match=r"class names .*'0', '1'.* -> .*'class 0'") as said:
        folder.check_same(dataclasses.replace(folder.read_record(), class_names=other))
    assert len(str(said.value)) < 1000


def test_what_could_not_be_read_again_is_not_written(own_run, monkeypatch):
    """A run with a megabyte of class names was trained to its end and could not be opened."""
    monkeypatch.setattr(run_folder, "MAX_CONFIG_BYTES", 10_000)
    folder = RunFolder(own_run)
    record = dataclasses.replace(folder.read_record(), class_names=("x" * 10_000, "y"))
    with pytest.raises(rj.ResNetJaxError, match=r"2 class names .* more than 10,000 bytes"):
        folder.write_record(record)
    assert len(folder.read_record().class_names) == 10


def test_a_failure_is_not_kept_back_by_the_compiler(one_unit, tiny_config, tmp_path, monkeypatch):
    compiled, waiting = threading.Event(), []

    def compile_ahead(engine, pool, *arguments):
        waiting.append(pool.submit(compiled.wait, 60))

    failure = mock.Mock(side_effect=rj.ResNetJaxError("no parameters"))
    monkeypatch.setattr(Engine, "compile_ahead", compile_ahead)
    monkeypatch.setattr(Engine, "replicate", failure)
    assert "no parameters" in refused(rj.train, tiny_config, tmp_path, quiet=True)
    assert not waiting[0].done()
    compiled.set()


def test_the_commit_is_one_beside_a_tag_too(tmp_path, monkeypatch):
    """`git describe` returned the tag's name."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a git hook sets some
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").touch()
    for words in ("init -q", "add a", "commit -qm b", "tag -am c v1"):
        subprocess.run([*git, *words.split()], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "resnet_jax/training/run_folder.py"))
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "of a hook"))
    assert re.fullmatch("[0-9a-f]{40}", run_folder._commit())


@pytest.mark.parametrize(
    ("reads", "owner", "name"),
    [
        (
            lambda folder: folder.read_variables("latest")["params"],
            Checkpoints,
            "restore_variables",
        ),
        (lambda folder: folder.read_variables("latest")["params"], Checkpoints, "verify"),
        (lambda folder: folder.verify().ok, Checkpoints, "verify"),
        (lambda folder: folder.verify().ok, RunFolder, "metrics_digest"),
    ],
)
def test_a_step_that_the_run_removes_under_its_reader_is_no_fault(
    reads, owner, name, own_run, monkeypatch, caplog
):
    """A run that is still training may remove a step that a method is about to read."""
    method = getattr(owner, name)

    def late(self, step):
        monkeypatch.setattr(owner, name, method)
        shutil.rmtree(own_run / "checkpoints" / "12")
        return method(self, step)

    monkeypatch.setattr(owner, name, late)
    assert reads(RunFolder(own_run))
    assert "is not used" not in caplog.text


def test_steps_that_are_all_replaced_while_they_are_verified_are_looked_for_again(
    own_run, monkeypatch
):
    """A run that saves often may replace all its steps; its reader found no usable checkpoint."""
    good_steps = Checkpoints.good_steps

    def replaced(self):
        monkeypatch.setattr(Checkpoints, "good_steps", good_steps)
        shutil.copytree(self.directory / "12", self.directory / "13")
        return iter(())

    monkeypatch.setattr(Checkpoints, "good_steps", replaced)
    assert RunFolder(own_run).read_variables("latest")["params"]
