"""The command ``resnet-jax``: parses, calls, prints.

JAX and what stands on it are imported by the commands that need them, so that help is instant.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from resnet_jax.config import ModelConfig, TrainConfig, replaced
from resnet_jax.display import PatientConsole
from resnet_jax.errors import ResNetJaxError, printable
from resnet_jax.presets import PRESETS
from resnet_jax.presets import preset as find_preset
from resnet_jax.storage import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from resnet_jax.run import Run
    from resnet_jax.training.evaluation import Evaluation

# A pipe or a file has no width; tables get what they need.
console = PatientConsole(
    highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000
)
# What marks a picture as one that `predict --explain` wrote.
EXPLAINED = "resnet-jax predict --explain"

CheckpointOption = Literal["best", "latest"]


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 done, 1 failed, 75 stopped and resumable.

    Wrong usage exits with 2 and the parser's own text.
    """
    with _signals_interrupt(), warnings.catch_warnings():
        # Of what is odd in a picture, what matters is said in one line that names the file.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        return _run(sys.argv[1:] if argv is None else argv)


def _run(arguments: list[str]) -> int:
    logger = logging.getLogger("resnet_jax")
    logger.propagate = False  # libraries put handlers of their own on the root logger
    logger.handlers = [_Warnings(logging.WARNING)]
    try:
        commands: dict[str, Callable[..., Any]] = {
            "train": _train_command(arguments),
            "evaluate": evaluate,
            "predict": predict,
            "report": report,
            "compare": compare,
            "export": export,
            "demo": demo,
            "verify": verify,
            "summary": summary,
            "data": data,
        }
        code: int | None = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="resnet-jax",
            description="Residual networks in JAX: train, evaluate, use.",
            args=arguments,
        )
        return code or 0
    except ResNetJaxError as error:
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        # Before or after training, which handles signals itself: nothing is half-written.
        print("resnet-jax: stopped by a signal; the same command continues", file=sys.stderr)
        return 75
    except BrokenPipeError:
        console.on_broken_pipe()
        return 1
    except OSError as error:
        # What no code expected of a file system: its own words name the file.
        _print_error(f"{error}: mend that and run the same command")
        return 1


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, again each second until the command ends.

    A library may swallow one while it is imported. Signals are afterwards as they were before.
    """

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise KeyboardInterrupt

    previous = {}
    with contextlib.suppress(ValueError):  # outside the main thread Python hears no signals
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        if previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Warnings(logging.Handler):
    """Shows warnings as errors are shown; everything else goes to the run's log alone."""

    def emit(self, record: logging.LogRecord) -> None:
        _print_error(f"warning: {record.getMessage()}")


def _print_error(text: object) -> None:
    print(f"resnet-jax: {printable(str(text))}", file=sys.stderr)


def _train_command(arguments: list[str]) -> Callable[..., int]:
    """``train`` with the defaults of the preset that the arguments begin with."""
    named = arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-")
    name = arguments[1] if named else "quickstart"
    default = find_preset(name)

    def train(
        preset: Positional[str] = name,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        run_dir: Path | None = None,
        seeds: int | None = None,
        report: bool = True,
        from_idx: Annotated[Path | None, tyro.conf.arg(name="data.from-idx")] = None,
        distributed: bool = False,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
        meet_within: int | None = None,
    ) -> int:
        """Train a network, or resume the run in the folder.

        PRESET comes first; options change it: `resnet-jax train mnist --epochs 2`.

        Args:
            preset: one of the table of presets.
            config: the settings.
            run_dir: the run's folder. None: runs/PRESET-seedN.
            seeds: repeat with seeds 0 to SEEDS - 1, a folder each, and compare the runs.
            report: make the run's report at the end, as `resnet-jax report` does; not with
                --distributed.
            from_idx: prepare MNIST or Fashion-MNIST first from the IDX files in this folder, as
                `resnet-jax data prepare --from-idx` does.
            distributed: run as one process of several; start the same command for each. JAX finds
                the others under Slurm, Open MPI, Kubernetes and on TPUs.
            coordinator: HOST:PORT of process 0, where JAX does not find it.
            num_processes: number of processes, where JAX does not find it.
            process_id: number of this process, from 0, where JAX does not find it.
            meet_within: seconds to wait for the other processes at the start. None: 300.
        """
        if preset != name:
            # The options were given their defaults by the first word: another preset's.
            find_preset(preset)
            raise ResNetJaxError(
                f"preset {preset} stands after options: give it first, "
                f"`resnet-jax train {preset} ...`"
            )
        address = (coordinator, num_processes, process_id)
        if distributed:
            from resnet_jax.training.distributed import initialize, is_main_process

            initialize(*address, meet_within)
            if not is_main_process():
                console.quiet = True
        elif any(value is not None for value in (*address, meet_within)):
            raise ResNetJaxError(
                "--coordinator, --num-processes, --process-id and --meet-within need "
                "--distributed: give it too"
            )
        if from_idx is not None:
            from resnet_jax.data.prepare import prepare
            from resnet_jax.training.distributed import main_process_first

            main_process_first(lambda: prepare(config.data.name, config.data.dir, from_idx))
        config = _with_statistics_of_its_dataset(config, default, arguments)
        return _train(preset, config, run_dir, seeds, report and not distributed)

    names = ", ".join(PRESETS)
    train.__doc__ = (train.__doc__ or "").replace("one of the table of presets", f"one of {names}")
    return train


def _with_statistics_of_its_dataset(
    config: TrainConfig, preset: TrainConfig, arguments: list[str]
) -> TrainConfig:
    """Drop a preset's mean and standard deviation where the command names another dataset."""
    if config.data.name == preset.data.name:
        return config
    named = {argument.split("=")[0] for argument in arguments}
    options = {"data.mean", "data.std"}
    return replaced(config, {name: None for name in options if f"--{name}" not in named})


def _train(
    name: str, config: TrainConfig, run_dir: Path | None, seeds: int | None, report: bool
) -> int:
    if seeds is None:
        folder = run_dir or Path("runs") / f"{name}-seed{config.seed}"
        _train_one(config, folder, report)
        return 0
    if seeds < 1:
        raise ResNetJaxError(f"--seeds must be at least 1, got {seeds}")
    if config.seed:
        raise ResNetJaxError(
            f"--seed {config.seed} and --seeds {seeds} exclude each other: --seeds repeats with "
            f"seeds 0 to {seeds - 1}"
        )
    stem = run_dir or Path("runs") / name
    runs = []
    for seed in range(seeds):
        folder = Path(f"{stem}-seed{seed}")
        runs.append(_train_one(dataclasses.replace(config, seed=seed), folder, report))
    from resnet_jax.inspection.compare import compare_runs

    _print_comparison(compare_runs(runs))
    return 0


def _train_one(config: TrainConfig, folder: Path, report: bool) -> "Run":
    model = f"{'' if config.model.residual else 'plain '}{config.model.name}"
    console.print(
        f"{model} on {config.data.name}, seed {config.seed}: {config.epochs:g} epochs in batches "
        f"of {config.batch_size}, run folder {folder}",
        soft_wrap=True,
        markup=False,
    )
    from resnet_jax.run import train
    from resnet_jax.training.distributed import failing_together

    with failing_together(folder):
        run = train(config, folder)
    if report:
        _report_if_new(run)
    return run


def _report_if_new(run: "Run") -> None:
    """Makes a run's report, unless there is one of its last metrics. The run stands without it."""
    page, metrics = run.path / "report" / "index.html", run.path / "metrics.jsonl"
    if page.exists() and page.stat().st_mtime >= metrics.stat().st_mtime:
        return
    try:
        from resnet_jax.inspection.report import write_report

        # Of some data sets no test labels are published.
        kinds = set(run.metrics()["kind"])
        page = write_report(run, "test" if "test" in kinds else "validation")
    except (ImportError, ResNetJaxError) as error:
        reason = f"{error.name} is missing" if isinstance(error, ImportError) else str(error)
        logging.getLogger(__name__).warning(
            "no report (%s); the run is whole, `resnet-jax report %s` tries again",
            reason,
            run.path,
        )
        return
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def evaluate(
    run: Positional[Path],
    split: str = "test",
    checkpoint: CheckpointOption = "best",
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir")] = None,
    json: bool = False,
) -> int:
    """Evaluate a run on a split of its data, each example once.

    Args:
        run: the run's folder.
        split: train, validation, test; for a run on a subset also test_all.
        checkpoint: best by validation accuracy, or latest.
        data_dir: where the prepared data set is now, if not where it was.
        json: print JSON: accuracy (a fraction), loss, correct, count, per_class, confusion; of
            more than ten classes also top5 (a fraction).
    """
    from resnet_jax.run import Run

    found = Run.open(run).evaluate(split, checkpoint, data_dir)
    if json:
        _print_json(found.to_dict())
    else:
        _print_evaluation(found, f"{run}, {checkpoint} parameters, {split}")
    return 0


def _print_evaluation(found: "Evaluation", title: str) -> None:
    names = [escape(name) for name in found.class_names]
    table = Table(title=escape(title), box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("class", no_wrap=True)
    for heading in ("count", "recall", "precision", *names):
        table.add_column(heading, justify="right")
    for number, (name, row) in enumerate(zip(names, found.per_class.values(), strict=True)):
        rates = ["-" if row[k] is None else f"{row[k]:.2%}" for k in ("recall", "precision")]
        cells = ["" if n == 0 else str(n) for n in found.confusion[number]]
        table.add_row(name, str(row["count"]), *rates, *cells)
    # The confusion of a hundred classes is no table for a terminal.
    if len(found.class_names) <= 20:
        console.print(table)
    top5 = "" if found.top5 is None else f"top-5 accuracy {found.top5:.2%}, "
    console.print(
        f"accuracy {found.accuracy:.2%} ({found.correct} of {found.count}), {top5}"
        f"loss {found.loss:.4f}"
    )


def predict(
    run: Positional[Path],
    paths: Positional[tuple[Path, ...]],
    checkpoint: CheckpointOption = "best",
    topk: int = 1,
    invert: bool = False,
    explain: Path | None = None,
    json: bool = False,
    csv: bool = False,
) -> int:
    """Classify image files, and the image files at any depth of folders.

    A file that cannot be read, or a folder without images, is named, the others are classified,
    and the exit code is 1.

    Args:
        run: the run's folder.
        paths: image files, folders of them, or patterns such as 'digits/*.png'.
        checkpoint: best by validation accuracy, or latest.
        topk: show this many classes, most probable first.
        invert: exchange black and white first: for dark ink on paper.
        explain: write each image with Grad-CAM over it, a PNG, into this folder; no other file
            there is replaced.
        json: print a JSON list of {path, label, probability, topk}.
        csv: print CSV: path, label, probability.
    """
    from resnet_jax.data.image import DecodeSpec, read_image
    from resnet_jax.data.walk import find_images
    from resnet_jax.run import Run

    if json and csv:
        raise ResNetJaxError("--json and --csv exclude each other: give one of them")
    opened = Run.open(run)
    if not 1 <= topk <= len(opened.class_names):
        raise ResNetJaxError(f"--topk must be 1 to {len(opened.class_names)}, got {topk}")
    failures: list[ResNetJaxError] = []

    def fail(error: ResNetJaxError) -> None:
        failures.append(error)
        _print_error(error)

    files: list[Path] = []
    for given in paths:
        try:
            files += find_images([given])
        except ResNetJaxError as error:
            fail(error)
    targets = _explanation_files(files, explain) if explain else {}
    settings = opened.config.data
    spec = DecodeSpec(opened.image_shape, settings.fit, settings.background)

    def read() -> Iterator[tuple[Path, Any]]:
        for path in files:
            try:
                yield path, read_image(path, spec, invert=invert)
            except ResNetJaxError as error:
                fail(error)

    rows = []
    readable = read()
    # In batches: of all pictures but those of one, only the answers are kept.
    while batch := list(itertools.islice(readable, opened.config.batch_size)):
        import numpy as np

        images = np.stack([image for _, image in batch])
        for (path, _), p in zip(batch, opened.predict(images, checkpoint), strict=True):
            top = [(opened.class_names[k], float(p[k])) for k in np.argsort(-p)[:topk]]
            rows.append(
                {"path": str(path), "label": top[0][0], "probability": top[0][1], "topk": top}
            )
        if explain:
            _write_explanations(opened, images, checkpoint, [targets[path] for path, _ in batch])
    _print_predictions(rows, as_json=json, as_csv=csv)
    if failures:
        total = len(failures) + len(rows)
        print(f"resnet-jax: {len(failures)} of {total} files not read", file=sys.stderr)
    return 1 if failures else 0


def _explanation_files(files: list[Path], folder: Path) -> dict[Path, Path]:
    """Choose ``FOLDER/NAME.png`` for each file; nothing but an earlier explanation is replaced."""
    inputs = {os.path.realpath(file) for file in files}
    chosen: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        name, number = file.stem, 1
        while name in taken:  # digits of the same name in two folders
            number += 1
            name = f"{file.stem}-{number}"
        taken.add(name)
        target = chosen[file] = folder / f"{name}.png"
        if os.path.realpath(target) in inputs or not _may_replace(target):
            raise ResNetJaxError(
                f"--explain {folder} would write over {target}: give another folder, a new one"
            )
    return chosen


def _may_replace(path: Path) -> bool:
    from PIL import Image

    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == EXPLAINED
    except Exception:  # whatever it is, it is not ours
        return False


def _write_explanations(
    run: "Run", images: Any, checkpoint: CheckpointOption, targets: list[Path]
) -> None:
    """Write each image with Grad-CAM over it, small ones eight times as large."""
    from PIL import Image, PngImagePlugin

    from resnet_jax.inspection import explain, overlay

    large = images.repeat(8, axis=1).repeat(8, axis=2) if max(images.shape[1:3]) < 64 else images
    pictures = overlay(large, explain(run, images, checkpoint=checkpoint))
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", EXPLAINED)
    for target, picture in zip(targets, pictures, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with target.open("xb") as file:  # so that no link is followed
            Image.fromarray(picture).save(file, "PNG", pnginfo=mark)


def report(
    run: Positional[Path],
    split: str = "test",
    checkpoint: CheckpointOption = "best",
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir")] = None,
) -> int:
    """Show a run on one page: curves, confusion, confidence, mistakes, Grad-CAM, settings.

    Written into the run's folder: report/index.html, which needs no other file, and PNGs.

    Args:
        run: the run's folder.
        split: whose images are looked at: train, validation, test; with a subset also test_all.
        checkpoint: best by validation accuracy, or latest.
        data_dir: where the prepared data set is now, if not where it was.
    """
    from resnet_jax.run import Run

    opened = Run.open(run)
    try:
        from resnet_jax.inspection.report import write_report
    except ImportError as error:
        raise ResNetJaxError(f"a report needs {error.name}: pip install {error.name}") from error
    console.print(
        f"report: {write_report(opened, split, checkpoint, data_dir)}", soft_wrap=True, markup=False
    )
    return 0


def compare(
    runs: Positional[tuple[Path, ...]],
    checkpoint: CheckpointOption = "best",
    output: Path | None = None,
    json: bool = False,
) -> int:
    """Compare runs: the settings that differ, and test results over those that differ in the seed.

    Args:
        runs: the runs' folders.
        checkpoint: best by validation accuracy, or latest.
        output: write the overlaid curves into this PNG.
        json: print a JSON list, a row for each setting.
    """
    from resnet_jax.inspection.compare import compare_runs, group_by_settings
    from resnet_jax.run import Run

    opened = [Run.open(path) for path in runs]
    found = compare_runs(opened, checkpoint)
    if output:
        from resnet_jax.inspection.plots import compared_curves

        groups = {
            ", ".join(f"{option} {value}" for option, value in settings.items()) or "all": [
                run.metrics() for run in members
            ]
            for settings, members in group_by_settings(opened)
        }
        picture = io.BytesIO()
        try:
            compared_curves(groups).savefig(picture, format=output.suffix[1:], dpi=150)
        except ValueError as error:
            raise ResNetJaxError(
                f"{output} cannot be written ({error}): give a name that ends in .png"
            ) from error
        write_whole(output, picture.getvalue())
    if json:
        # By way of pandas, which writes null for what is not known.
        print(found.to_json(orient="records", indent=1))
        return 0
    _print_comparison(found)
    return 0


def _print_comparison(found: "pd.DataFrame") -> None:
    """Print the table of `compare`: settings that differ, results over seeds."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown = [name for name in found if not name.endswith(" sd")]
    for name in shown:
        table.add_column(escape(name), overflow="fold")
    for row in found.to_dict("records"):
        table.add_row(*(escape(_result(name, row)) for name in shown))
    console.print(table)


def _result(name: str, row: dict[str, Any]) -> str:
    """A cell of the comparison; a mean with its spread where there are several runs."""
    value, spread = row[name], row.get(f"{name} sd")
    if isinstance(value, float) and value != value:
        return "-"
    style = {"accuracy": ".2%", "loss": ".4f", "seconds": ".0f"}.get(name.split()[-1])
    if style is None or not isinstance(value, float):
        return str(value)
    shown = format(value, style)
    return shown if spread is None or spread != spread else f"{shown} ± {format(spread, style)}"


def _print_predictions(rows: list[dict[str, Any]], *, as_json: bool, as_csv: bool) -> None:
    if as_json:
        _print_json(rows)
    elif as_csv:
        # A name is escaped for a terminal alone; bytes that are no UTF-8 in any case.
        shown = printable if sys.stdout.isatty() else _utf8
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "label", "probability"])
        for row in rows:
            for label, probability in row["topk"]:
                writer.writerow([shown(row["path"]), shown(label), f"{probability:.6f}"])
    elif rows:
        table = Table()
        for heading in ("file", "label", "probability"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            for number, (label, probability) in enumerate(row["topk"]):
                path = "" if number else printable(row["path"])
                # As texts: brackets and colons are no markup here.
                table.add_row(Text(path), Text(printable(label)), f"{probability:.2%}")
        console.print(table)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def export(
    run: Positional[Path],
    format: Literal["torchvision", "stablehlo", "onnx"],
    output: Path | None = None,
    checkpoint: CheckpointOption = "best",
) -> int:
    """Write a run's network to a file for use elsewhere; class names and preprocessing go with it.

    A stablehlo or onnx file is compared with the run before it is in place, and nothing but a
    regular file is replaced.

    Args:
        run: the run's folder.
        format: torchvision: safetensors by torchvision's names; stablehlo: runs with jax and
            flatbuffers alone on cpu, cuda and tpu; onnx: needs the extra `onnx`.
        output: the file. None: export/MODEL.SUFFIX in the run's folder.
        checkpoint: best by validation accuracy, or latest.
    """
    from resnet_jax.run import Run

    path = Run.open(run).export(format, output, checkpoint=checkpoint)
    size = path.stat().st_size / 1e6
    console.print(f"{path} is written ({size:.1f} MB)", soft_wrap=True, markup=False)
    return 0


def demo(run: Positional[Path], port: int = 7860, checkpoint: CheckpointOption = "best") -> int:
    """Serve a page on this machine alone: draw a digit or drop an image, see what the run says.

    The page also answers as a JSON API. Needs the extra `demo`.

    Args:
        run: the run's folder.
        port: of 127.0.0.1; 0 takes a free one.
        checkpoint: best by validation accuracy, or latest.
    """
    from resnet_jax.demo import serve
    from resnet_jax.run import Run

    serve(Run.open(run), port, checkpoint)
    return 0


def summary(
    model: Positional[str] = "resnet18",
    width: int = 64,
    stem: Literal["imagenet", "small"] = "imagenet",
    residual: bool = True,
    num_classes: int = 10,
    image_size: int = 28,
    channels: int = 1,
) -> int:
    """Show a network's layers: output shapes, parameters, multiply-adds for one image.

    Args:
        model: a row of the table of variants: resnet18, resnet50, preact_resnet18, ...
        width: features of the stem and of the first stage.
        stem: imagenet or small.
        residual: without: the plain network.
        num_classes: length of the logits.
        image_size: side of the image in pixels.
        channels: channels of the image.
    """
    for option, value in (
        ("num-classes", num_classes),
        ("image-size", image_size),
        ("channels", channels),
    ):
        if value < 1:
            raise ResNetJaxError(f"--{option} must be at least 1, got {value}")
    # Checks the name and the width, and names what is wrong with them.
    name = cast(Any, model)
    TrainConfig(model=ModelConfig(name=name, width=width, stem=stem, residual=residual))
    from resnet_jax.models import VARIANTS, summarize

    network = VARIANTS[model](num_classes=num_classes, width=width, stem=stem, residual=residual)
    layers = summarize(network, (image_size, image_size, channels))
    title = f"{'' if residual else 'plain '}{model}, {image_size}x{image_size}x{channels}"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("layer", min_width=26)
    table.add_column("kind")
    for heading in ("output shape", "parameters", "multiply-adds"):
        table.add_column(heading, justify="right")
    for layer in layers:
        shape = "x".join(map(str, layer.output_shape))
        adds = f"{layer.multiply_adds:,}" if layer.multiply_adds else ""
        table.add_row(layer.name, layer.kind, shape, f"{layer.parameters:,}", adds)
    table.add_section()
    parameters = sum(layer.parameters for layer in layers)
    multiply_adds = sum(layer.multiply_adds for layer in layers)
    table.add_row("total", "", "", f"{parameters:,}", f"{multiply_adds:,}")
    console.print(table)
    return 0


def data(
    action: Positional[Literal["list", "prepare"]],
    name: Positional[str | None] = None,
    dir: str | None = None,
    from_idx: str | None = None,
) -> int:
    """List the data sets, or prepare one.

    Args:
        action: list, or prepare NAME.
        name: the data set to prepare.
        dir: folder of prepared data sets. None: $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        from_idx: folder with the IDX files to prepare from, instead of a download.
    """
    if action == "list":
        _print_datasets()
        return 0
    if name is None:
        raise ResNetJaxError("data prepare needs a NAME: see `resnet-jax data list`")
    from resnet_jax.data.prepare import prepare

    place = prepare(name, dir, from_idx)
    if name == "mnist_5k":
        console.print(f"{name} needs no preparing: it is read from {place}", soft_wrap=True)
    else:
        console.print(f"{name} is prepared in {place}", soft_wrap=True)
    return 0


def verify(
    what: Positional[str],
    data_dir: Annotated[str | None, tyro.conf.arg(name="data.dir")] = None,
    background: Annotated[int | None, tyro.conf.arg(name="data.background")] = None,
) -> int:
    """Check a run, a prepared data set, or a folder of images; exit code 1 if any is damaged.

    Of a folder of images, broken, empty and duplicate files are listed.

    Args:
        what: a run's folder, the name of a data set, or a folder with one folder for each class.
        data_dir: folder of prepared data sets. None: $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        background: the grey level that a run would put under a folder's transparent pixels.
    """
    from resnet_jax.data.image_folder import scan
    from resnet_jax.data.mnist import DATASETS
    from resnet_jax.data.tfds import verify_prepared

    place = Path(what)
    if not place.exists() or (what in DATASETS and not (place / "config.yaml").exists()):
        report = verify_prepared(what, data_dir)
    elif place.is_dir() and not (place / "config.yaml").exists():
        report = scan(place, background=background, refresh=True).report()
    else:
        from resnet_jax.run import Run

        report = Run.open(what).verify()
    for name in report.good:
        _print_line(f"good     {report.folder / name}")
    for line in report.damaged:
        _print_line(f"damaged  {line}")
    for line in report.left_out:
        _print_line(line)
    _print_line(f"usable   {report.usable}")
    if report.ok:
        return 0
    if report.images:
        raise ResNetJaxError(
            f"{len(report.damaged)} image files in {what} are broken, empty or there twice: mend "
            "or remove them, or leave them out by --data.skip-bad"
        )
    raise ResNetJaxError(
        f"{len(report.damaged)} of {len(report.good) + len(report.damaged)} parts of {what} "
        f"are damaged; usable: {report.usable}"
    )


def _print_datasets() -> None:
    from resnet_jax.data.mnist import DATASETS

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for heading in ("images", "classes", "train", "validation", "test", "comes from"):
        table.add_column(heading, overflow="fold")
    for info in DATASETS.values():
        table.add_row(
            info.name,
            f"{info.description}, {'x'.join(map(str, info.image_shape))}",
            str(info.num_classes),
            *(f"{count:,}" for count in (info.train, info.validation, info.test)),
            info.source,
        )
    console.print(table)
    console.print(
        "also `folder`, your own images (--data.dir), and by its name in TFDS any other data set "
        "of images and class labels: cifar10, kmnist, imagenet2012, ... (the extra `prepare` "
        "brings what prepares them)",
        soft_wrap=True,
        markup=False,
    )


def _print_line(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
