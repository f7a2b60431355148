"""Write a run's report: ``report/index.html``, whole by itself, and its figures as PNGs."""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import pandas as pd
import yaml
from matplotlib.figure import Figure

from resnet_jax.config import settings
from resnet_jax.inspection import plots
from resnet_jax.inspection.predictions import Predictions, embedding, examine
from resnet_jax.storage import atomic_write, unwritable

if TYPE_CHECKING:
    from resnet_jax.run import Checkpoint, Run

# Neighbours are looked for among this many images: a second of work, and points that can be seen.
EMBEDDED = 500


def write_report(
    run: "Run",
    split: str = "test",
    checkpoint: "Checkpoint" = "best",
    data_dir: str | None = None,
) -> Path:
    """Write ``report/index.html`` and its figures into the run's folder.

    The page needs no network and no other file; it follows the reader's choice of light or dark.

    >>> rj.inspection.write_report(rj.Run.open("runs/quickstart-seed0"))  # doctest: +SKIP
    PosixPath('runs/quickstart-seed0/report/index.html')

    Args:
        run: an opened run.
        split: whose images are looked at; as for `Run.evaluate`.
        checkpoint: whose parameters.
        data_dir: where the prepared dataset is now, if not where it was.

    Returns:
        The page.

    Raises:
        ResNetJaxError: as `Run.evaluate`; the folder cannot be written.
    """
    predictions = examine(run, split, checkpoint, data_dir)
    folder = run.path / "report"
    sections = []
    try:
        folder.mkdir(exist_ok=True)
        for name, title, note, figure in _figures(run, predictions, checkpoint):
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=150)
            (folder / f"{name}.png").write_bytes(file.getvalue())
            sections.append(_section(name, title, note, file.getvalue()))
    except OSError as error:
        raise unwritable(folder, error) from error
    config = run.config
    model = f"{'' if config.model.residual else 'plain '}{config.model.name}"
    page = PAGE.substitute(
        title=escape(f"{model} on {config.data.name}, seed {config.seed}"),
        result=_table("Result", _result(run, predictions, f"{checkpoint} parameters on {split}")),
        figures="\n".join(sections),
        classes=_table("Classes", _classes(predictions), "number class examples recall precision"),
        settings=_table("Configuration", ((s.option, str(s.value)) for s in settings(config))),
        facts=_table("Made by", _facts(run)),
    )
    atomic_write(folder / "index.html", page)
    return folder / "index.html"


def _figures(
    run: "Run", predictions: Predictions, checkpoint: "Checkpoint"
) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield the name, title, explanation and figure of each section."""
    smoothed = " and smoothed labels" if run.config.label_smoothing else ""
    yield (
        "curves",
        "Training",
        f"Training is measured on augmented images{smoothed}, before each update; validation on "
        "the images as they are.",
        plots.curves(run.metrics()),
    )
    names = predictions.class_names
    hidden = [f"#{k} {name}" for k, name in enumerate(names) if not plots.can_draw(name)]
    legend = f" {', '.join(hidden[: plots.MAX_NAMED_CLASSES])}" if hidden else ""
    yield (
        "confusion",
        "Confusion",
        "Counts of examples; colour is the share of the label's examples." + legend,
        plots.confusion(predictions.evaluation.confusion, names),
    )
    yield (
        "reliability",
        "Confidence",
        "How many of the answers given with a confidence are right. Bars above the dashed line: "
        "right more often than confident.",
        plots.reliability(predictions.calibration),
    )
    yield (
        "mistakes",
        "Most confident mistakes",
        f"{len(predictions.mistakes())} of {len(predictions.labels)} are wrong. Below each: "
        "Grad-CAM++, bright where the network saw evidence for the predicted class." + legend,
        plots.mistakes(predictions),
    )
    yield (
        "feature_maps",
        "Feature maps",
        "The first image, and the eight channels of the highest mean after the stem and each "
        "stage. Yellow is a row's largest value.",
        plots.feature_maps(predictions.maps, predictions.images[0]),
    )
    points = embedding(predictions.features[:EMBEDDED])
    yield (
        "embedding",
        "Last features",
        f"The head's input for the first {len(points)} images, in the plane by t-SNE. Neighbours "
        "are alike; distances between groups mean nothing." + legend,
        plots.embedding(points, predictions),
    )
    yield (
        "filters",
        "First filters",
        "The weights of the first convolution.",
        plots.filters(run.variables(checkpoint)["params"]["stem"]["conv"]["kernel"]),
    )


def _result(run: "Run", predictions: Predictions, of: str) -> Iterator[tuple[str, ...]]:
    evaluation, metrics = predictions.evaluation, run.metrics()
    yield "accuracy", f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.count})"
    if evaluation.top5 is not None:
        yield "top-5 accuracy", f"{evaluation.top5:.2%}"
    yield "loss", f"{evaluation.loss:.4f} nats"
    yield "expected calibration error", f"{predictions.calibration.ece:.2%}"
    yield "of", f"{of} images"
    yield "trained for", f"{metrics['epoch'].max():.3g} epochs, {metrics['step'].max()} steps"
    yield "in", f"{metrics['seconds'].max():.0f} s"


def _classes(predictions: Predictions) -> Iterator[tuple[str, ...]]:
    for k, (name, row) in enumerate(predictions.evaluation.per_class.items()):
        rates = ("-" if row[r] is None else f"{row[r]:.2%}" for r in ("recall", "precision"))
        yield f"#{k}", name, str(row["count"]), *rates


def _facts(run: "Run") -> Iterator[tuple[str, ...]]:
    document = yaml.safe_load((run.path / "config.yaml").read_text())
    yield "run folder", run.path.resolve().name
    yield "data fingerprint", run.fingerprint
    yield "commit", document.get("commit") or "-"
    yield from (document.get("versions") or {}).items()


def _section(name: str, title: str, note: str, png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<section class="{name}"><h2>{title}</h2>\n<p>{escape(note)}</p>\n'
        f'<img src="{source}" alt="{title}, as the text above says"></section>'
    )


def _table(title: str, rows: Iterable[tuple[str, ...]], columns: str = "") -> str:
    table = pd.DataFrame(rows, columns=columns.split() or None)
    with pd.option_context("display.max_colwidth", None):
        html = table.to_html(index=False, header=bool(columns), border=0)
    return f"<section><h2>{title}</h2>\n{html}</section>"


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; overflow-wrap: anywhere;
  color: light-dark(#1a1a1a, #e8e8e8); background: light-dark(#fff, #151719);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 0; }
p { margin: .2rem 0 .6rem; font-size: .9rem; opacity: .8; }
main { columns: 2 22rem; column-gap: 2.5rem; }
section { break-inside: avoid; margin: 0 0 2rem; }
.long section { break-inside: auto; }
img { display: block; width: 100%; max-width: 34rem; background: #fff; border-radius: .3rem; }
table { width: 100%; max-width: 34rem; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #8886; font-variant-numeric: tabular-nums; }
td + td + td, th { white-space: nowrap; }
</style>
</head>
<body>
<h1>$title</h1>
<main>
$result
$figures
$classes
<div class="long">
$settings
$facts
</div>
</main>
</body>
</html>
""")
