"""What a person sees, in a terminal and in a pipe."""

import io

from rich.console import Console

from resnet_jax import display
from resnet_jax.display import Display

TRAIN = {
    "kind": "train", "step": 4, "epoch": 0.5, "loss": 1.23456, "accuracy": 0.5, "seconds": 1.0,
    "learning_rate": 0.1, "images_per_s": 1234.5,
}  # fmt: skip
VALIDATION = {"kind": "validation", "step": 4, "epoch": 0.5, "loss": 0.5, "accuracy": 0.75}
TEST = {
    "kind": "test", "step": 4, "epoch": 0.5, "split": "test", "checkpoint": "best", "loss": 0.25,
    "accuracy": 0.9,
}  # fmt: skip


def show(*, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=terminal, width=width)) as shown:
        shown.on_start(0, 8)
        for step in range(1, 5):
            shown.on_step(step)
        for row in (TRAIN, VALIDATION, TEST):
            shown.on_metrics(row)
        shown._bar.refresh()
    return file.getvalue()


def test_a_terminal_shows_a_bar_with_loss_accuracy_speed_and_time_left():
    shown = show(terminal=True)
    for part in ("4/8", "loss 1.235", "accuracy 50.0%", "1,234 images/s", "left", "━"):
        assert part in shown


def test_a_pipe_gets_plain_lines(monkeypatch):
    lines = show(terminal=False).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines == [
        "epoch   0.50  step     4  train 1.2346 50.00%  val 0.5000 75.00%  1,234 img/s",
        "test, best parameters (step 4): loss 0.2500  accuracy 90.00%",
    ]
    # After a silence, training metrics are shown too.
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LINES", 0.0)
    assert show(terminal=False).splitlines()[0] == (
        "epoch   0.50  step     4  loss 1.235  accuracy 50.0%  1,234 images/s"
    )
