"""The command ``resnet-jax``: parses, calls, prints.

JAX and what is built on it are imported by the verbs that need them, so that help is instant.
"""

import io
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial, wraps
from itertools import pairwise
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro
from tyro.conf import Positional

import resnet_jax as rj
from resnet_jax import display
from resnet_jax.cli_train import make_report, train_verb
from resnet_jax.config import DataConfig, ModelConfig, Shortcut, StemKind, TrainConfig
from resnet_jax.errors import ResNetJaxError, message_and_code, printable
from resnet_jax.memory import COMPUTE, check_limits
from resnet_jax.signals import Stop
from resnet_jax.storage import expanded, is_run

RunDir = Annotated[Positional[Path], tyro.conf.arg(help="the run's folder.")]
# The hint replaces tyro's "(default: )"; the function that gets an empty tuple refuses it.
Paths = Annotated[
    Positional[tuple[Path, ...]],
    tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="(required)"),
]
CheckpointOption = Annotated[
    Literal["best", "latest"],
    tyro.conf.arg(help="best: by validation accuracy (latest where none was measured)."),
]
SplitOption = Annotated[
    str, tyro.conf.arg(help="train, validation, test; for a run on a subset also test_all.")
]
DataDir = Annotated[
    str | None,
    tyro.conf.arg(name="data.dir", help="folder of the datasets or images, if it was moved."),
]


def main(argv: list[str] | None = None) -> int:
    """Return 0: done, 1: failed, or 75: stopped and resumable. Wrong usage exits with 2."""
    arguments = sys.argv[1:] if argv is None else argv
    display.show_warnings()
    stop = Stop()
    try:
        if COMPUTE & set(arguments[:1]):
            check_limits()
        with stop.handling(), warnings.catch_warnings():
            # Pillow's warnings are dropped: what matters is reported in one line with the file.
            warnings.filterwarnings("ignore", module=r"PIL\b")
            code = _parsed(arguments, stop)() or 0
            print(end="", flush=True)  # while a failure can still be reported
            return code
    except BrokenPipeError:
        display.console.on_broken_pipe()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        line, failure = message_and_code(error)
        if failure is None:
            raise
        display.print_error(line)
        display.console.finish()
        return failure


def _parsed(arguments: list[str], stop: Stop) -> Callable[[], int | None]:
    """Parse the arguments into the call of a verb; errors show unprintable characters escaped."""
    for before, word in pairwise(["resnet-jax", *arguments]):
        if word == "" or re.fullmatch("--[^=]+=", word):
            place = f"of {word}" if word else f"after {before}"
            raise ResNetJaxError(f"the value {place} is empty (an unset variable?): give it")
    verbs = {"train": train_verb(arguments, stop), **VERBS}
    parse = partial(
        tyro.extras.subcommand_cli_from_dict,
        {name: _deferred(verb) for name, verb in verbs.items()},
        prog="resnet-jax",
        description="Residual networks in JAX: train, evaluate, use.",
    )
    escaped = list(map(printable, arguments))
    if arguments != escaped:
        nowhere = io.StringIO()
        with suppress(SystemExit), redirect_stdout(nowhere), redirect_stderr(nowhere):
            return parse(args=arguments)
    return parse(args=escaped)


def _deferred(verb: Callable[..., int | None]) -> Callable[..., Callable[[], int | None]]:
    return wraps(verb)(lambda *args, **kwargs: partial(verb, *args, **kwargs))


def evaluate(
    run: RunDir,
    split: SplitOption = "test",
    checkpoint: CheckpointOption = "best",
    data_dir: DataDir = None,
    json: bool = False,
) -> None:
    """Evaluate a run on a split of its data, each example once.

    Args:
        json: print JSON: accuracy (a fraction), loss, correct, count, per_class, confusion; with
            more than ten classes also top5 (a fraction).
    """
    found = rj.Run.open(run).evaluate(split, checkpoint, data_dir)
    if json:
        print(dumps(found.to_dict(), indent=1))
    else:
        display.print_evaluation(found, f"{run}, {checkpoint} parameters, {split}")


def predict(
    run: RunDir,
    paths: Paths,
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
        paths: image files, folders of them, or patterns such as 'digits/*.png'.
        topk: show this many classes, most probable first.
        invert: exchange black and white of the whole picture instead of looking for a digit.
        explain: write a PNG of each image with Grad-CAM++ over it into this folder; no other
            file there is replaced.
        json: print a JSON list of {path, label, probability, topk}, and found if a digit was looked
            for.
        csv: print CSV: path, label, probability.
    """
    from resnet_jax.inspection.classify import classify_files

    if json and csv:
        raise ResNetJaxError("--json and --csv exclude each other: give one of them")
    failures = []

    def fail(error: ResNetJaxError) -> None:
        failures.append(error)
        display.print_error(error)

    rows = classify_files(
        rj.Run.open(run), paths, checkpoint, fail, topk=topk, invert=invert, explain_in=explain
    )
    if csv:
        count = display.print_predictions_csv(rows)
    else:
        count = len(found := list(rows))
        if json:
            print(dumps(found, indent=1))
        else:
            display.print_predictions(found)
    if failures:
        display.print_error(f"{len(failures)} of {len(failures) + count} files left out")
    return 1 if failures else 0


def report(
    run: RunDir,
    split: SplitOption = "test",
    checkpoint: CheckpointOption = "best",
    data_dir: DataDir = None,
) -> None:
    """Show a run on one page: curves, confusion, confidence, mistakes, Grad-CAM++, settings.

    Written into the run's folder: report/index.html, which needs no other file, and PNGs.
    """
    make_report(rj.Run.open(run), split, checkpoint, data_dir)


def compare(
    runs: Paths,
    checkpoint: CheckpointOption = "best",
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Compare runs: the settings that differ, and test results over those that differ in the seed.

    Args:
        runs: the runs' folders.
        output: write the overlaid curves into this PNG.
        json: print a JSON list, a row for each setting.
    """
    from resnet_jax.inspection.compare import compare_runs, write_curves

    opened = list(map(rj.Run.open, runs))
    found = compare_runs(opened, checkpoint)
    if output:
        write_curves(opened, output)
    if json:
        rows = found.to_dict("records")
        # What is not known is NaN in the table, and null here.
        print(dumps([{k: v if v == v else None for k, v in row.items()} for row in rows], indent=1))
    else:
        display.print_comparison(found)


def export(
    run: RunDir,
    format: Literal["torchvision", "stablehlo", "onnx"],
    output: Path | None = None,
    checkpoint: CheckpointOption = "best",
) -> None:
    """Write a run's network to a file for use elsewhere; class names and preprocessing go with it.

    A stablehlo or onnx file is compared with the run before it is in place, and nothing but a
    regular file is replaced.

    Args:
        format: torchvision: safetensors by torchvision's names; stablehlo: runs with jax and
            flatbuffers alone on cpu, cuda and tpu; onnx: needs the extra `onnx`.
        output: the file. None: export/MODEL.SUFFIX in the run's folder.
    """
    path = rj.Run.open(run).export(format, output, checkpoint=checkpoint)
    display.print_line(f"{path} is written ({path.stat().st_size / 1e6:.1f} MB)")


def demo(run: RunDir, port: int = 7860, checkpoint: CheckpointOption = "best") -> None:
    """Serve a page on this machine alone: draw a digit or drop an image, see what the run says.

    The page also answers as a JSON API. Needs the extra `demo`.

    Args:
        port: port on 127.0.0.1; 0 takes a free one.
    """
    from resnet_jax.demo import serve

    serve(rj.Run.open(run), port, checkpoint)


def summary(
    model: Positional[str] = "resnet18",
    width: int | None = None,
    stem: StemKind | None = None,
    shortcut: Shortcut | None = None,
    residual: bool = True,
    num_classes: int = 10,
    image_size: int = 28,
    channels: int = 1,
) -> None:
    """Show a network's layers: output shapes, parameters, multiply-adds for one image.

    Args:
        model: a row of the table of variants: resnet18, resnet50, preact_resnet18, resnet20, ...
        width: features of the stem and of the first stage. None: the network's own.
        stem: imagenet, deep, small or conv. None: the network's own.
        shortcut: projection, projection-all, pad or average. None: the network's own.
        residual: --no-residual: the plain network, without shortcuts.
        num_classes: length of the logits.
        image_size: side of the image in pixels.
        channels: channels of the image.
    """
    sizes = {"num-classes": num_classes, "image-size": image_size, "channels": channels}
    for option, value in sizes.items():
        if value < 1:
            raise ResNetJaxError(f"--{option} must be at least 1, got {value}")
    # `TrainConfig` checks the name and the width, and its errors say what is wrong with them.
    described = ModelConfig(cast(Any, model), residual, width, stem, shortcut)
    config = TrainConfig(model=described)
    from resnet_jax.models import make_model, summarize

    layers = summarize(make_model(config, num_classes), (image_size, image_size, channels))
    display.print_layers(layers, f"{described.title}, {image_size}x{image_size}x{channels}")


def data(
    action: Positional[Literal["list", "prepare"]],
    name: Positional[str | None] = None,
    # Aliases: error messages name these options as `train` has them.
    dir: Annotated[str | None, tyro.conf.arg(aliases=["--data.dir"])] = None,
    from_idx: Annotated[str | None, tyro.conf.arg(aliases=["--data.from-idx"])] = None,
) -> None:
    """List the datasets, or prepare one.

    Args:
        action: list, or prepare NAME.
        name: the dataset to prepare; all but those of `data list` need the extra `prepare`.
        dir: folder of prepared datasets. None: $TFDS_DATA_DIR, then ~/tensorflow_datasets.
        from_idx: folder with the IDX files of mnist or fashion_mnist, instead of a download.
    """
    if action == "list":
        if given := name or dir or from_idx:
            raise ResNetJaxError(f"data list takes no NAME or folder, got {given}: it lists all")
        from resnet_jax.data.mnist import DATASETS

        display.print_datasets(DATASETS.values())
        return
    if name is None:
        raise ResNetJaxError("data prepare needs a NAME: see `resnet-jax data list`")
    from resnet_jax.data.prepare import prepare

    place = prepare(name, dir, from_idx)
    ready = "needs no preparing: it is read from" if name == "mnist_5k" else "is prepared in"
    display.print_line(f"{name} {ready} {place}")


def verify(
    what: Positional[str],
    data_dir: DataDir = None,
    background: Annotated[int | None, tyro.conf.arg(name="data.background")] = None,
) -> None:
    """Check a run, a prepared dataset, or a folder of images; exit code 1 if any is damaged.

    For a folder of images, broken, empty and duplicate files are listed.

    Args:
        what: a run's folder, the name of a dataset, or a folder with one folder for each class.
        background: the grey level that a run would put under a folder's transparent pixels.
    """
    from resnet_jax.data.image_folder import scan
    from resnet_jax.data.mnist import DATASETS
    from resnet_jax.data.tfds import verify_prepared

    settings = TrainConfig(data=DataConfig(background=background)).data  # raises if it is wrong
    place = Path(what) if Path(what).exists() else expanded(what)
    if (place / "config.yaml").exists() or is_run(place):
        found = rj.Run.open(place).verify()
    elif place.exists() and what not in DATASETS and data_dir is None:
        found = scan(place, background=settings.background, refresh=True).report()
    else:
        found = verify_prepared(what, data_dir)
    good = (f"good     {found.folder / name}" for name in found.good)
    damaged = (f"damaged  {line}" for line in found.damaged)
    for line in (*good, *damaged, *found.left_out, f"usable   {found.usable}"):
        display.print_line(line)
    if bad := len(found.damaged):
        raise ResNetJaxError(f"{bad} of the files in {what} are damaged; usable: {found.usable}")


VERBS = {
    function.__name__: function
    for function in (evaluate, predict, report, compare, export, demo, verify, summary, data)
}
