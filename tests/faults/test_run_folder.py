"""A run's folder that was moved, damaged, or comes from elsewhere (FAULTS A13, E1, E3, E4, E6)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import resnet_jax as rj
from resnet_jax.cli import main

# The command on a network of one unit.
WORKER = Path(__file__).parents[1] / "reliability/worker.py"


@pytest.fixture
def run_dir(finished_run, tmp_path):
    return shutil.copytree(finished_run.path, tmp_path / "run")


def test_a_run_opened_by_a_relative_path_is_the_same_in_another_folder(
    run_dir, tmp_path, monkeypatch
):
    """A13."""
    monkeypatch.chdir(tmp_path)
    run = rj.Run.open("run")
    monkeypatch.chdir("/")
    assert len(run.metrics()) > 0
    assert run.variables("latest")["params"]


@pytest.mark.parametrize("name", [".lock", "run.log", "metrics.jsonl.unfinished", "checkpoints/x"])
def test_a_link_in_a_runs_folder_changes_nothing_outside(name, run_dir, tiny_config, tmp_path):
    """E1."""
    outside = tmp_path / "precious.txt"
    outside.write_text("precious")
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(outside)
    longer = rj.TrainConfig(**{**vars(rj.Run.open(run_dir).config), "log_every": 7})
    with pytest.raises(rj.ResNetJaxError, match=r"is a link to .*remove it"):
        rj.train(longer, run_dir, quiet=True)
    assert outside.read_text() == "precious"


def test_a_configuration_with_aliases_that_multiply_is_refused_at_once(run_dir, capsys):
    """E3: 600 bytes that would be billions of values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    text = (run_dir / "config.yaml").read_text()
    named = text.replace("name: mnist_5k", "name: *a11")
    assert named != text
    (run_dir / "config.yaml").write_text("\n".join(lines) + "\n" + named)
    began = time.monotonic()
    assert main(["evaluate", str(run_dir)]) == 1
    assert time.monotonic() - began < 10
    shown = capsys.readouterr().err
    assert "config.yaml is damaged" in shown
    assert shown.count("\n") == 1
    assert len(shown) < 500


def test_a_giant_configuration_is_not_read(run_dir, capsys):
    """E3: 2 GB of nothing."""
    with (run_dir / "config.yaml").open("r+b") as file:
        file.truncate(2 * 10**9)  # takes no room on the disk
    began = time.monotonic()
    assert main(["evaluate", str(run_dir)]) == 1
    assert time.monotonic() - began < 1
    assert "config.yaml is damaged" in capsys.readouterr().err


DAMAGE = {
    "deep nesting": lambda row: "[" * 100_000 + "]" * 100_000,
    "null for a step": lambda row: json.dumps({**row, "step": None}),
    "text for a loss": lambda row: json.dumps({**row, "loss": "0.5"}),
    "a loss that is no number": lambda row: json.dumps({**row, "loss": float("nan")}),
    "an unknown kind": lambda row: json.dumps({**row, "kind": "guess"}),
    "a step of the past": lambda row: json.dumps({**row, "step": 0, "kind": "train"}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_line_that_is_no_row_is_named(what, run_dir, capsys):
    """E4: by `verify`, and by the command that would go on."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = DAMAGE[what](json.loads(lines[2]))
    path.write_text("\n".join(lines) + "\n")
    assert main(["verify", str(run_dir)]) == 1
    assert "line 3" in capsys.readouterr().out
    with pytest.raises(rj.ResNetJaxError, match="line 3"):
        rj.train(rj.Run.open(run_dir).config, run_dir, quiet=True)


def test_a_changed_number_and_a_line_cut_short_are_noticed(run_dir, capsys):
    """E4."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps({**row, "loss": row["loss"] / 2})
    path.write_text("\n".join(lines) + "\n")
    assert main(["verify", str(run_dir)]) == 1
    assert "metrics.jsonl was changed" in capsys.readouterr().out
    path.write_text("\n".join(lines)[:-20])
    assert main(["verify", str(run_dir)]) == 1
    assert f"line {len(lines)}" in capsys.readouterr().out


def test_tests_of_which_lines_are_missing_are_made_again(run_dir):
    """E6: the disk was full when the last lines were written."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    tests = [json.loads(line) for line in lines if json.loads(line)["kind"] == "test"]
    path.write_text("\n".join(lines[:-1]) + "\n")
    rj.train(rj.Run.open(run_dir).config, run_dir, quiet=True)
    metrics = rj.Run.open(run_dir).metrics()
    found = metrics[metrics["kind"] == "test"]
    wanted = {(row["split"], row["checkpoint"]) for row in tests}
    assert set(zip(found["split"], found["checkpoint"], strict=True)) == wanted


@pytest.fixture
def command(tiny_options, tmp_path):
    program = [sys.executable, WORKER, "train", *tiny_options]
    return [*program, "--log-every", "1", "--run-dir", str(tmp_path / "run")]


def test_without_a_reader_of_its_output_a_run_trains_on(command, tmp_path):
    """E5: `| head`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=120)
        shown = process.stderr.read().decode()
    assert process.returncode == 0, shown
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["kind"] == "test"
    assert "Traceback" not in shown
    assert "finished at step" in (tmp_path / "run/run.log").read_text()


def test_a_terminal_that_goes_away_stops_the_run_saved(command, tmp_path):
    """E5: SIGHUP as SIGTERM."""
    command += ["--epochs", "500", "--eval-every", "3000"]
    metrics = tmp_path / "run/metrics.jsonl"
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        pytest.skip("under `nohup` the command ignores SIGHUP")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 100
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=60)
        shown = process.stderr.read().decode()
    assert process.returncode == 75, shown
    acknowledged, saved = shown.splitlines()
    assert acknowledged == "resnet-jax: SIGHUP: stopping after this step; again to end now"
    assert saved.startswith("resnet-jax: SIGHUP: saved step")
    assert any((tmp_path / "run/checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("verb", ["evaluate", pytest.param("train", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_one_line(verb, finished_run, tmp_path):
    """B5."""
    place = {"evaluate": [finished_run.path], "train": ["--run-dir", tmp_path / "run"]}[verb]
    done = subprocess.run(
        [sys.executable, "-m", "resnet_jax", verb, *place],
        capture_output=True, text=True, timeout=100, env=os.environ | {"JAX_PLATFORMS": "rocm"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "JAX_PLATFORMS" in done.stderr.splitlines()[-1]
