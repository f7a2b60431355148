"""The console's output, in a terminal and in a pipe."""

import errno
import io
import os
import pty
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from resnet_jax import display
from resnet_jax.display import Display
from resnet_jax.training.metrics import Evaluation

TRAIN = {
    "kind": "train", "step": 4, "epoch": 0.5, "loss": 1.23456, "accuracy": 0.5, "seconds": 1.0,
    "learning_rate": 0.1, "images_per_s": 1234.5,
}  # fmt: skip
VALIDATION = {"kind": "validation", "step": 4, "epoch": 0.5, "loss": 0.5, "accuracy": 0.75}
TEST = {
    "kind": "test", "step": 4, "epoch": 0.5, "split": "test", "checkpoint": "best", "loss": 0.25,
    "accuracy": 0.9,
}  # fmt: skip


def show(*rows: dict, terminal=False, environ=None, momentum=0.0, found=None, file=None) -> str:
    """Return what a console of 80 columns shows of a run; ``found`` is its evaluation."""
    file = file or io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, _environ=environ or {})
    with mock.patch.object(display, "console", console), (shown := Display(momentum)).bar:
        shown.on_start(0, 8)
        for row in rows:
            shown.on_step(row["step"])
            if found:
                shown.on_evaluate(row["step"], "validation", found)
            shown.on_metrics(row)
        shown.bar.refresh()
    return getattr(file, "buffer", file).getvalue()


def test_a_terminal_shows_a_bar_with_loss_accuracy_speed_and_time_left():
    shown = show(TRAIN, VALIDATION, TEST, terminal=True)
    for part in ("4/8", "loss 1.235", "accuracy 50.0%", "1,234 images/s", "left", "━"):
        assert part in shown
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1", "backslashreplace", write_through=True)
    assert b"\\u" not in show(TRAIN, terminal=True, file=latin)  # made lines of 85 columns


GONE = """
import sys
from resnet_jax import display
print(display.console.is_interactive, file=sys.stderr, flush=True)
with display.Display().bar:
    sys.stdin.read()  # until the terminal is gone
    display.print_line("a line")
"""


def test_a_run_goes_on_when_its_terminal_is_gone():
    """The next line that it printed ended it, before its step was saved."""
    master, slave = pty.openpty()
    pipes = {"stdin": subprocess.PIPE, "stdout": slave, "stderr": subprocess.PIPE}
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", GONE], env=environment, **pipes) as process:
        os.close(slave)
        assert process.stderr.readline() == b"True\n"
        os.close(master)
        errors = process.communicate()[1]
    assert (process.returncode, errors) == (0, b"")


def test_a_file_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    """A network disk reports EIO too."""
    with (tmp_path / "output.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        lost = mock.Mock(wraps=file, write=mock.Mock(side_effect=OSError(errno.EIO, "lost")))
        with pytest.raises(OSError, match="lost"):
            display.PipeSafeConsole(file=lost).print("a line")


def test_a_pipe_gets_plain_lines(monkeypatch):
    lines = show(TRAIN, VALIDATION, TEST).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines == [
        "epoch  0.50  step     4  train 1.2346 50.00%  val 0.5000 75.00%  1,234 img/s",
        "test, best parameters (step 4): loss 0.2500  accuracy 90.00%",
    ]
    # After a silence, training metrics are shown too; a dumb terminal cannot show a bar.
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
    for dumb in ({}, {"terminal": True, "environ": {"TERM": "dumb"}}):
        assert show(TRAIN, **dumb).splitlines() == [
            "epoch  0.50  step     4  loss 1.235  accuracy 50.0%  1,234 images/s"
        ]


def test_a_file_and_how_its_digit_was_found_stand_beside_the_first_class(capsys):
    row = {"path": "a.png", "topk": [("7", 0.9), ("1", 0.1)]}
    for found, told in (({}, []), ({"found": "on paper"}, ["on", "paper"])):
        display.print_predictions([row | found])
        head, _, *lines = capsys.readouterr().out.split("\n")[1:-2]
        assert head.split()[3:] == ["the", "digit"][: len(told)]
        assert [*map(str.split, lines)] == [["a.png", "7", "90.00%", *told], ["1", "10.00%"]]


def test_an_evaluation_is_one_line_of_80_columns():
    late = {"step": 450_000, "epoch": 90.0, "accuracy": 1.0}
    train, validation = {**TRAIN, **late, "images_per_s": 98_765.4}, {**VALIDATION, **late}
    lines = show(train, validation, {**validation, "top5": 0.9876}).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert "98,765 img/s" in lines[0]
    assert "top-5 98.76%" in lines[1]


@pytest.mark.parametrize(
    ("momentum", "step", "right", "note"),
    [
        (0.9, 3, 10, "BN 73% initial"),  # 0.9^3 = 0.729
        (0.9, 3, 14, "BN 73% initial"),
        (0.9, 3, 15, "1,234 img/s"),  # 1.5 times as often as by one answer to all
        (0.9, 43, 10, "BN 1% initial"),  # 0.0108
        (0.9, 44, 10, "1,234 img/s"),  # 0.0097
        (0.0, 3, 10, "1,234 img/s"),  # weights from elsewhere, or a custom network
    ],
)
def test_young_running_statistics_are_said_beside_an_accuracy_near_chance(
    momentum, step, right, note
):
    """Of a hundred images in ten classes, all but a few are classified as class 0."""
    confusion = np.zeros((10, 10), int)
    confusion[:, 0] = 10
    confusion[1, :2] = [20 - right, right - 10]
    found = Evaluation(2.3, confusion, tuple("0123456789"))
    shown = show(TRAIN, {**VALIDATION, "step": step}, momentum=momentum, found=found)
    (line,) = shown.splitlines()
    assert line.endswith(f"  {note}")
    assert len(line) <= 80


def test_where_one_class_is_most_all_right_is_not_near_chance():
    found = Evaluation(0.1, np.diag([90, 10]), ("a", "b"))
    assert "initial" not in show(TRAIN, {**VALIDATION, "step": 3}, momentum=0.9, found=found)


@pytest.mark.parametrize(
    ("names", "width", "shown"),
    [
        ([f"水果{chr(0x4E00 + k)}" for k in range(20)], 80, 20),  # the counts
        ([f"fruit {chr(97 + k)}" for k in range(20)], 80, 40),  # the confusion matrix as well
        ("abcdefghij", 40, 10),
        ("abcdefghij", 60, 20),
    ],
)
def test_a_confusion_matrix_is_shown_whole_or_not_at_all(names, width, shown, monkeypatch):
    """Its last classes were cut off without a word; of twenty Chinese ones none showed its name."""
    monkeypatch.setattr(display, "console", Console(file=io.StringIO(), width=width))
    display.print_evaluation(Evaluation(0.5, np.eye(len(names), dtype=int) * 7, tuple(names)), "")
    table, _ = display.console.file.getvalue().split("accuracy")
    assert table.count("7") == shown
    assert {*"".join(names)} <= {*table}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_comparison_of_any_number_of_settings_fits_80_columns(count, monkeypatch):
    names = [f"fast-{'x' * k}-seed*" for k in range(count)]
    rows = [
        {"data.subset": (120, 50, 30), "optim.learning-rate": 0.1, "runs": 3, "seeds": "0 1 2",
         "test accuracy": 0.9, "test accuracy sd": 0.0283, "test loss": 0.3, "test loss sd": None}
        for _ in names
    ]  # fmt: skip
    file = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=file, width=80))
    display.print_comparison(pd.DataFrame(rows, index=names))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    words = file.getvalue().split()
    for name in names:
        assert words.count(name) == 1
    for label, value in (("data.subset", "120 50 30"), ("test accuracy", "90.00% ± 2.83%")):
        found = [line for line in lines if line.strip().startswith(label)]
        assert sum(line.count(value) for line in found) == count
    display.print_comparison(pd.DataFrame(rows[:1], index=["q" * 99]))  # wider than the console
    assert file.getvalue().count("q") == 99


THREADS = """
import threading
from resnet_jax.display import Display, console
gate, failed = threading.Barrier(4), []
def begin():
    gate.wait()
    try: Display()
    except Exception as error: failed.append(error)
threads = [threading.Thread(target=begin) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed, console.is_terminal, console.is_interactive)
"""


def test_runs_may_begin_in_several_threads_and_a_pipe_is_no_terminal_whatever_is_set(python):
    """The lazy import of a module had no lock, so that the second thread found it empty.

    On systems that set these variables, ten redraws a second went to the log files.
    """
    assert python("-c", THREADS, FORCE_COLOR="1", TTY_INTERACTIVE="1").stdout == "[] False False\n"
