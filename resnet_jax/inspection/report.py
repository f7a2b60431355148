"""Write a run's report: ``report/index.html``, whole by itself, and its figures as PNGs."""

import base64
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from resnet_jax.inspection import plots
from resnet_jax.inspection.predictions import Predictions, embedding, examine
from resnet_jax.settings import settings
from resnet_jax.storage import atomic_write, refuse_links, writing

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
    """Write ``report/index.html`` and its figures into the run's folder; return the page's path.

    The page needs no network and no other file; it follows the reader's choice of light or dark.

    Args:
        run: an opened run.
        split: whose images are looked at; as for `Run.evaluate`.
        checkpoint: whose parameters.
        data_dir: where the prepared dataset is now, if not where it was.

    Raises:
        ResNetJaxError: as `Run.evaluate`; the folder cannot be written.
    """
    refuse_links(run.path)
    predictions = examine(run, split, checkpoint, data_dir)
    folder = run.path / "report"
    sections = []
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for name, title, note, figure in _figures(run, predictions, checkpoint):
            file = folder / f"{name}.png"
            figure.savefig(file, dpi=150)
            png = base64.b64encode(file.read_bytes()).decode()
            sections.append(FIGURE.format(title=title, note=escape(note), png=png))
    config, document = run.config, yaml.safe_load((run.path / "config.yaml").read_text())
    rates = ("recall", "precision")
    classes = [
        (f"#{k}", name, row["count"], *("-" if row[r] is None else f"{row[r]:.2%}" for r in rates))
        for k, (name, row) in enumerate(predictions.evaluation.per_class.items())
    ]
    facts = {
        "run folder": run.path.resolve().name,
        "data fingerprint": run.fingerprint,
        "commit": document.get("commit"),
        **(document.get("versions") or {}),
    }
    page = PAGE.substitute(
        title=escape(f"{run.model_name} on {config.data.name}, seed {config.seed}"),
        result=_table("Result", _result(run, predictions, f"{checkpoint} parameters on {split}")),
        figures="\n".join(sections),
        classes=_table("Classes", classes, "number class examples recall precision"),
        settings=_table("Configuration", ((s.option, s.value) for s in settings(config))),
        facts=_table("Made by", facts.items()),
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
        f"{len(predictions.mistakes())} of {len(predictions.labels)} are wrong. Below each of a "
        "ResNet: Grad-CAM++, bright where it saw evidence for the predicted class." + legend,
        plots.mistakes(predictions),
    )
    if predictions.maps:
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
    if predictions.maps:
        kernel = run.variables(checkpoint)["params"]["stem"]["conv"]["kernel"]
        yield "filters", "First filters", "Of the first convolution.", plots.filters(kernel)


def _result(run: "Run", predictions: Predictions, of: str) -> Iterator[tuple[str, str]]:
    evaluation, metrics = predictions.evaluation, run.metrics()
    yield "accuracy", f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.count})"
    if evaluation.top5 is not None:
        yield "top-5 accuracy", f"{evaluation.top5:.2%}"
    yield "loss", f"{evaluation.loss:.4f} nats"
    yield "expected calibration error", f"{predictions.calibration.ece:.2%}"
    yield "of", f"{of} images"
    yield "trained for", f"{metrics['epoch'].max():.3g} epochs, {metrics['step'].max()} steps"
    yield "in", f"{metrics['seconds'].max():.0f} s"


def _table(title: str, rows: Iterable[tuple[Any, ...]], columns: str = "") -> str:
    shown = [["-" if value is None else str(value) for value in row] for row in rows]
    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame(shown, columns=columns.split() or None)
        html = table.to_html(index=False, header=bool(columns), border=0)
    return f"<section><h2>{title}</h2>\n{html}</section>"


FIGURE = """<section><h2>{title}</h2>
<p>{note}</p>
<img src="data:image/png;base64,{png}" alt="{title}, as the text above says"></section>"""
PAGE = Template("""\
<!doctype html>
<html lang="en"><head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; font: 16px/1.5 system-ui, sans-serif;
  color: light-dark(#1a1a1a, #e8e8e8); background: light-dark(#fff, #151719);
  overflow-wrap: anywhere; }
h1, h2 { font-size: 1.2rem; margin: .2rem 0; }
p { margin: .2rem 0 .6rem; font-size: .9rem; opacity: .8; }
main { columns: 2 22rem; column-gap: 2.5rem; }
section { break-inside: avoid; margin: 0 0 2rem; }
.long section { break-inside: auto; }
img { display: block; width: 100%; max-width: 34rem; background: #fff; border-radius: .3rem; }
table { width: 100%; max-width: 34rem; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #8886; font-variant-numeric: tabular-nums; }
td + td + td, th { white-space: nowrap; }
</style></head>
<body><header><h1>$title</h1></header><main>
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
