"""Print lines, tables and a run's progress to the console."""

import csv
import errno
import itertools
import logging
import os
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resnet_jax.errors import printable
from resnet_jax.settings import as_argument
from resnet_jax.training.callbacks import Callback

if TYPE_CHECKING:
    import pandas as pd

    from resnet_jax.data.mnist import DatasetInfo
    from resnet_jax.models.summary import LayerSummary
    from resnet_jax.training.metrics import Evaluation

# Without a progress bar, a row of training is printed if nothing was printed for this long.
SECONDS_BETWEEN_LINES = 10.0
# An evaluation is marked if the initial zeros and ones still have this share of running statistics.
INITIAL_SHARE = 0.01
# A terminal has no room for the confusion matrix of more classes.
MAX_CLASSES_SHOWN = 20


class PipeSafeConsole(Console):
    """A console that goes on, silently, when the reader of its output has gone (``| head``)."""

    def on_broken_pipe(self) -> None:
        """Discard all further output; a plain `Console` ends the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        except OSError as failure:
            gone = failure.errno == errno.EIO  # if it is a terminal
            if not (gone and stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode)):
                raise
            self.on_broken_pipe()

    def finish(self) -> None:
        """Flush stdout; discard what cannot be written, which Python would try again at exit."""
        try:
            print(end="", flush=True)
        except OSError:
            self.on_broken_pipe()


# A pipe or a file has no width, so tables get what they need, and it is not a terminal, whatever
# FORCE_COLOR says.
_pipe: dict[str, Any] = {"width": 10_000, "force_terminal": False, "force_interactive": False}
_of_stdout = {} if sys.stdout and sys.stdout.isatty() else _pipe
console = PipeSafeConsole(highlight=False, emoji=False, **_of_stdout)


def print_line(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)


def print_error(text: object) -> None:
    with suppress(OSError):  # nobody reads stderr
        print(f"resnet-jax: {printable(str(text))}", file=sys.stderr)


class Warnings(logging.Handler):
    """Shows warnings as errors are shown; everything else goes to the run's log alone."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(f"warning: {record.getMessage()}")


def show_warnings() -> None:
    logger = logging.getLogger("resnet_jax")
    logger.propagate = False  # libraries put handlers of their own on the root logger
    logger.handlers = [Warnings(logging.WARNING)]
    for other in ("absl", "asyncio"):  # Orbax's threads each print a traceback of a failed save
        logging.getLogger(other).setLevel(logging.CRITICAL + 1)


def _print_table(lines: Iterable[Sequence[str]], title: str = "", left: int = 1) -> None:
    """Print headings and rows, escaped, without markup; align the first ``left`` columns left."""
    table = Table(title=_text(title) if title else None, box=box.SIMPLE, padding=(0, 1, 0, 0))
    headings, *rows = lines
    for number, column in enumerate(zip(headings, *rows, strict=True)):
        justify: Any = "left" if number < left else "right"
        least = _least_width(column)
        table.add_column(_text(column[0]), justify=justify, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(_text, row))
    console.print(table)


def _least_width(column: Iterable[str]) -> int:
    # A Chinese character takes two cells and does not fit into a column of one.
    return max(map(cell_len, "".join(column)), default=1)


def _text(text: str) -> Text:
    return Text(printable(text))  # brackets and colons are not markup here


def print_evaluation(result: "Evaluation", title: str) -> None:
    if len(result.class_names) <= MAX_CLASSES_SHOWN:
        rows = [
            (
                *(name, str(row["count"])),
                *("-" if row[k] is None else f"{row[k]:.2%}" for k in ("recall", "precision")),
                *(str(n or "") for n in counts),
            )
            for (name, row), counts in zip(result.per_class.items(), result.confusion, strict=True)
        ]
        lines = [("class", "count", "recall", "precision", *result.class_names), *rows]
        if sum(_least_width(column) + 2 for column in zip(*lines, strict=True)) >= console.width:
            lines = [line[:4] for line in lines]  # rich would cut off the last classes
        _print_table(lines, title)
    console.print(str(result))


def print_predictions(rows: list[dict[str, Any]]) -> None:
    lines = [("file", "label", "probability", "the digit")]
    for row in rows:
        for number, (label, probability) in enumerate(row["topk"]):
            path, found = ("", "") if number else (row["path"], row.get("found", ""))
            lines.append((path, label, f"{probability:.2%}", found))
    columns = 4 if any("found" in row for row in rows) else 3  # where a digit was looked for
    if rows:
        _print_table([line[:columns] for line in lines], left=2)


def print_predictions_csv(rows: Iterable[dict[str, Any]]) -> int:
    """Print rows as they come; return how many came."""
    # A name is escaped only for a terminal; bytes that are not UTF-8 are always escaped.
    shown = printable if sys.stdout.isatty() else _utf8
    writer = csv.writer(sys.stdout, lineterminator="\n")
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))  # so that a refusal comes before the heading
    writer.writerow(["path", "label", "probability"])
    count = 0
    for row in itertools.chain(first, rows):
        count += 1
        for label, probability in row["topk"]:
            writer.writerow([shown(row["path"]), shown(label), f"{probability:.6f}"])
        sys.stdout.flush()
    return count


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def print_comparison(table: "pd.DataFrame") -> None:
    """Print a `compare_runs` table: a column for each group of runs, as many in a row as fit."""
    labels = [name for name in table if not name.endswith(" sd")]
    columns = [
        (str(name), *(_result(label, row) for label in labels))
        for name, row in zip(table.index, table.to_dict("records"), strict=True)
    ]
    headings = ("", *labels)
    while columns:
        widths = [max(map(cell_len, column)) + 2 for column in (headings, *columns)]
        fit = max(1, sum(width < console.width for width in itertools.accumulate(widths)) - 1)
        _print_table(zip(headings, *columns[:fit], strict=True), left=1 + fit)
        columns = columns[fit:]


def _result(name: str, row: dict[str, Any]) -> str:
    """Return a cell of the comparison: a mean, with its spread if there are several runs."""
    value, spread = row[name], row.get(f"{name} sd")
    if value is None or value != value:
        return "-"
    style = {"accuracy": ".2%", "loss": ".4f", "seconds": ".0f"}.get(name.split()[-1])
    if style is None or not isinstance(value, float):
        return as_argument(value)
    shown = format(value, style)
    return shown if spread is None or spread != spread else f"{shown} ± {format(spread, style)}"


def print_layers(layers: "list[LayerSummary]", title: str) -> None:
    total: Any = ("total", "", (), *map(sum, [*zip(*layers, strict=True)][3:]))
    rows = [
        (name, kind, "x".join(map(str, shape)), *(f"{n:,}" if n else "" for n in counts))
        for name, kind, shape, *counts in [*layers, total]
    ]
    headings = ("layer", "kind", "output shape", "parameters", "multiply-adds")
    _print_table([headings, *rows], title, left=2)


def print_datasets(datasets: "Iterable[DatasetInfo]") -> None:
    headings = ("name", "images", "classes", "train", "validation", "test", "comes from")
    rows = [
        (
            info.name,
            f"{info.description}, {'x'.join(map(str, info.image_shape))}",
            *(f"{count:,}" for count in (info.num_classes, info.train, info.validation, info.test)),
            info.source,
        )
        for info in datasets
    ]
    _print_table([headings, *rows], left=len(headings))
    print_line(
        "also `folder`, your own images (--data.dir), and by its name in TFDS any other dataset "
        "of images and class labels: cifar10, kmnist, imagenet2012, ... (the extra `prepare` "
        "brings what prepares them)"
    )


class Display(Callback):
    """Shows a run on the console: a moving bar in a terminal, and a line for each evaluation.

    The caller enters the context of ``bar``. ``momentum`` is the share of batch norm's running
    statistics that a step keeps.
    """

    def __init__(self, momentum: float = 0.0) -> None:
        from rich import progress  # takes 25 ms, which `--help` need not spend

        self.bar = progress.Progress(
            progress.SpinnerColumn("line"),  # in any encoding
            progress.BarColumn(bar_width=16),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[metrics]}"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("left"),
            console=console,
            disable=not console.is_interactive,  # a dumb terminal shows no bar
            transient=True,
        )
        self._task = self.bar.add_task("", total=None, metrics="opening the data")
        self._last_train: dict[str, Any] = {}
        self._momentum, self._note = momentum, ""
        self._last_line_time = time.monotonic()

    def on_start(self, step: int, total_steps: int) -> None:
        self.bar.reset(self._task, total=total_steps, completed=step, metrics="compiling")

    def on_step(self, step: int) -> None:
        self.bar.update(self._task, completed=step)

    def on_evaluate(self, step: int, split: str, evaluation: "Evaluation") -> None:
        """Note the initial values' share of running statistics if the accuracy is near chance."""
        initial = self._momentum**step
        chance = evaluation.confusion.sum(1).max()  # correct if all get the commonest label
        near = min(1.5 * chance, (chance + evaluation.count) / 2)
        marked = initial >= INITIAL_SHARE and evaluation.correct < near
        self._note = f"BN {initial:.0%} initial" if marked else ""

    def on_metrics(self, row: dict[str, Any]) -> None:
        where = f"epoch {row['epoch']:5.2f}  step {row['step']:5d}"
        if row["kind"] == "train":
            self._last_train = row
            metrics = (
                f"loss {row['loss']:.3f}  accuracy {row['accuracy']:.1%}  "
                f"{row['images_per_s']:,.0f} images/s"
            )
            self.bar.update(self._task, metrics=metrics)
            silent = time.monotonic() - self._last_line_time > SECONDS_BETWEEN_LINES
            if silent and not console.is_interactive:
                self.log(f"{where}  {metrics}")
        elif row["kind"] == "validation":  # loss and accuracy, in 80 columns
            train = self._last_train
            more = self._note or _top5(row) or f"{train['images_per_s']:,.0f} img/s"
            self.log(
                f"{where}  train {train['loss']:.4f} {train['accuracy']:6.2%}  "
                f"val {row['loss']:.4f} {row['accuracy']:6.2%}  {more}"
            )
        else:
            self.log(test_result(row))

    def log(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._last_line_time = time.monotonic()
        print_line(text)


def test_result(row: dict[str, Any]) -> str:
    return (
        f"{row['split']}, {row['checkpoint']} parameters (step {row['step']}): "
        f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  {_top5(row)}".rstrip()
    )


def _top5(row: dict[str, Any]) -> str:
    return f"top-5 {row['top5']:.2%}" if "top5" in row else ""
