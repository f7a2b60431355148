"""Write a run's report: ``report/index.html``, which is self-contained, and its figures as PNGs."""

import base64
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from resnet_jax.config import AugmentConfig
from resnet_jax.errors import printable
from resnet_jax.inspection import plots
from resnet_jax.inspection.predictions import FEWEST_NEIGHBOURS, Predictions, embedding, examine
from resnet_jax.interop.torchvision import first_convolution
from resnet_jax.run import Checkpoint, Run
from resnet_jax.settings import settings
from resnet_jax.storage import atomic_write, refuse_links, writing

# t-SNE takes a second for this many images, and their points can still be seen.
EMBEDDED = 500
FIGURE = """<section><h2>{title}</h2>
<p>{note}</p>
<img src="data:image/png;base64,{png}" alt="{title}, as the text above says"></section>"""
PAGE = Template(files(__package__).joinpath("report.html").read_text("utf-8"))


def write_report(
    run: Run, split: str = "test", checkpoint: Checkpoint = "best", data_dir: str | None = None
) -> Path:
    """Write ``report/index.html`` and its figures into the run's folder; return the page's path.

    The page needs no network and no other file; it follows the reader's choice of light or dark.
    The other arguments, and the errors, are those of `Run.evaluate`; a folder that cannot be
    written raises `ResNetJaxError` too.
    """
    refuse_links(run.path)
    predictions = examine(run, split, checkpoint, data_dir)
    of = f"{checkpoint} parameters on {split} images"
    if predictions.examined < 1:
        count = len(predictions.labels)
        of += f", the first {count} of {round(count / predictions.examined)}"
    folder = run.path / "report"
    sections = []
    with writing(folder), plots.own_style():
        folder.mkdir(exist_ok=True)
        for name, title, note, figure in _figures(run, predictions, checkpoint):
            file = folder / f"{name}.png"
            figure.savefig(file, dpi="figure")
            png = base64.b64encode(file.read_bytes()).decode()
            sections.append(FIGURE.format(title=title, note=escape(note), png=png))
    config = run.config
    rates = ("recall", "precision")
    classes = [
        (f"#{k}", name, row["count"], *("-" if row[r] is None else f"{row[r]:.2%}" for r in rates))
        for k, (name, row) in enumerate(predictions.evaluation.per_class.items())
    ]
    facts = {"run folder": run.path.resolve().name, "data fingerprint": run.fingerprint}
    facts |= {**run.parts, **run.made_by}
    page = PAGE.substitute(
        title=escape(f"{run.model_name} on {config.data.name}, seed {config.seed}"),
        result=_table("Result", _result(run, predictions, of)),
        figures="\n".join(sections),
        classes=_table("Classes", classes, "# class images recall precision"),
        settings=_table("Configuration", ((s.option, s.value) for s in settings(config))),
        facts=_table("Made by", facts.items()),
    )
    atomic_write(folder / "index.html", page)
    return folder / "index.html"


def _figures(
    run: Run, predictions: Predictions, checkpoint: Checkpoint
) -> Iterator[tuple[str, str, str, Figure]]:
    """Yield the name, title, explanation and figure of each section."""
    config, loss = run.config, run.parts.get("loss")
    kinds = ["mixed"] * bool(config.augment.mixup or config.augment.cutmix)
    kinds += ["smoothed"] * (config.label_smoothing > 0 and not loss)
    how = f" with {' and '.join(kinds)} labels" * bool(kinds)
    how += f" by {loss}, which is not validation's cross-entropy" * bool(loss)
    averaged = ", by the averaged weights" * (config.ema is not None)
    un = "un" * (config.augment == AugmentConfig(magnitude=config.augment.magnitude))
    note = (
        f"Training is measured on {un}augmented images{how}, before each update; validation on the "
        f"images as they are{averaged}."
    )
    yield "curves", "Training", note, plots.curves(run.metrics())
    names = predictions.class_names
    shown = plots.shown_names(names)
    # The left-to-right mark keeps what follows a Hebrew or Arabic name behind it.
    told = [f" #{k} {printable(name)}\u200e" for k, name in enumerate(names)]
    hidden = [text for k, text in enumerate(told) if shown[k] == f"#{k}"]
    legend = ",".join(hidden[: plots.MAX_NAMED_CLASSES])
    if len(names) <= plots.MAX_DRAWN_CLASSES:
        counts = "Counts of examples; colour" if len(names) <= plots.MAX_COUNTED else "Colour"
        note = f"{counts} is the share of the label's examples.{legend}"
        figure = plots.confusion(predictions.evaluation.confusion, names)
        yield "confusion", "Confusion", note, figure
    note = (
        "How many of the answers given with a confidence are right. Bars above their dot: "
        "right more often than confident."
    )
    yield "reliability", "Confidence", note, plots.reliability(predictions.calibration)
    note = (
        f"{len(predictions.mistakes())} of {len(predictions.labels)} are wrong. Below each of a "
        f"ResNet: Grad-CAM++, bright where it saw evidence for the predicted class.{legend}"
    )
    yield "mistakes", "Most confident mistakes", note, plots.mistakes(predictions)
    if predictions.maps:
        note = (
            "The first image, and the eight channels of the highest mean after the stem and each "
            "stage. Yellow is a row's largest value."
        )
        figure = plots.feature_maps(predictions.maps, predictions.images[0])
        yield "feature_maps", "Feature maps", note, figure
    points = embedding(predictions.features[:EMBEDDED])
    how = "by t-SNE. Neighbours are alike; distances between groups mean nothing."
    if len(points) < FEWEST_NEIGHBOURS:
        how = "by principal components."
    what = "head's input" if predictions.maps else "logits"
    note = f"The {what} for the first {len(points)} images, in the plane {how}{legend}"
    yield "embedding", "Last features", note, plots.embedding(points, predictions)
    if predictions.maps:
        stem = run.variables(checkpoint)["params"]["stem"]
        kernel = stem[first_convolution(stem)]["kernel"]
        yield "filters", "First filters", "Of the first convolution.", plots.filters(kernel)


def _result(run: Run, predictions: Predictions, of: str) -> Iterator[tuple[str, str]]:
    evaluation, metrics = predictions.evaluation, run.metrics()
    yield "accuracy", f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.count})"
    if evaluation.top5 is not None:
        yield "top-5 accuracy", f"{evaluation.top5:.2%}"
    yield "loss", f"{evaluation.loss:.4f} nats"
    yield "expected calibration error", f"{predictions.calibration.ece:.2%}"
    yield "of", of
    yield "trained for", f"{metrics['epoch'].max():.4g} epochs, {metrics['step'].max()} steps"
    yield "in", f"{metrics['seconds'].max():.0f} s"


def _table(title: str, rows: Iterable[tuple[Any, ...]], columns: str = "") -> str:
    shown = [["-" if value is None else printable(str(value)) for value in row] for row in rows]
    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame(shown, columns=columns.split() or None)
        html = table.to_html(index=False, header=bool(columns), border=0)
    return f"<section><h2>{title}</h2>\n{html}</section>"
