"""A run on one page: ``report/index.html`` with everything inside it, and the pictures as PNGs."""

import importlib
import io
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from resnet_jax.config import settings
from resnet_jax.errors import ResNetJaxError
from resnet_jax.inspection import plots
from resnet_jax.inspection.evaluation import Findings, embedding, examine
from resnet_jax.storage import refuse_links
from resnet_jax.training.program import configured_for_run

if TYPE_CHECKING:
    from resnet_jax.run import Checkpoint, Run

# Neighbours are looked for among this many images: a second of work, and points that can be seen.
EMBEDDED = 500


class Picture(NamedTuple):
    """A figure of the page."""

    name: str
    title: str
    note: str  # what it shows
    alt: str  # for those who do not see it
    figure: Figure


@configured_for_run
def write_report(
    run: "Run",
    split: str = "test",
    checkpoint: "Checkpoint" = "best",
    data_dir: str | None = None,
) -> Path:
    """Writes ``report/index.html`` and its pictures into the run's folder.

    The page needs no network and no other file; it follows the reader's choice of light or dark.

    >>> rj.inspection.write_report(rj.Run.open("runs/quickstart-seed0"))  # doctest: +SKIP
    PosixPath('runs/quickstart-seed0/report/index.html')

    Args:
        run: an opened run.
        split: whose images are looked at; as for `Run.evaluate`.
        checkpoint: whose parameters.
        data_dir: where the prepared data set is now, if not where it was.

    Returns:
        The page.

    Raises:
        ResNetJaxError: as `Run.evaluate`; the folder cannot be written.
    """
    folder = run.path / "report"
    refuse_links(run.path)
    variables = run.variables(checkpoint)
    with ThreadPoolExecutor(1, "report") as beside:
        # What needs no answers is drawn beside the compiler's work, and two seconds' import done.
        drawn = beside.submit(lambda: (_drawn(_curves(run)), _drawn(_filters(variables))))
        imported = beside.submit(importlib.import_module, "sklearn.manifold")
        found = examine(run, split, checkpoint, data_dir)
        first, last = drawn.result()
        imported.result()  # matplotlib draws in one thread at a time, and t-SNE beside it
        points = beside.submit(embedding, found.features[:EMBEDDED])
        pictures = [first, *map(_drawn, _pictures(found, points)), last]
    page = _page(run, found, split, checkpoint, "\n".join(section for *_, section in pictures))
    try:
        folder.mkdir(exist_ok=True)
        for name, png, _ in pictures:
            (folder / f"{name}.png").write_bytes(png)
        unfinished = folder / "index.html.unfinished"
        unfinished.write_text(page, encoding="utf-8")
        return unfinished.replace(folder / "index.html")
    except OSError as error:
        raise ResNetJaxError(
            f"{folder} cannot be written ({error.strerror}): free space or permissions there, then "
            f"`resnet-jax report {run.path}`"
        ) from error


def _curves(run: "Run") -> Picture:
    smoothed = " and smoothed labels" if run.config.label_smoothing else ""
    return Picture(
        "curves",
        "Training",
        f"Training is measured on augmented images{smoothed}, before each update; validation on "
        "the images as they are.",
        "Curves over the epochs: loss, error, learning rate and images a second.",
        plots.curves(run.metrics()),
    )


def _filters(variables: Any) -> Picture:
    return Picture(
        "filters",
        "First filters",
        "The weights of the first convolution.",
        "The filters of the first convolution.",
        plots.filters(variables["params"]["stem"]["conv"]["kernel"]),
    )


def _pictures(found: Findings, embedded: Future[np.ndarray]) -> Iterator[Picture]:
    """Those of the network's answers."""
    evaluation, calibration = found.evaluation, found.calibration
    yield Picture(
        "confusion",
        "Confusion",
        "Counts of examples; colour is the share of the label's examples.",
        f"Confusion matrix: {evaluation.correct} of {evaluation.count} on the diagonal.",
        plots.confusion(evaluation.confusion, found.class_names),
    )
    yield Picture(
        "reliability",
        "Confidence",
        "Of the answers given with a confidence, how many are right. Bars above the dashed line: "
        "more right than sure.",
        f"Reliability diagram; expected calibration error {calibration.ece:.2%}.",
        plots.reliability(calibration),
    )
    yield Picture(
        "mistakes",
        "Most confident mistakes",
        f"{len(found.mistakes())} of {evaluation.count} are wrong. Below each: Grad-CAM, bright "
        "where the network saw evidence for what it said.",
        "Images that the network is most confidently wrong about, with Grad-CAM over them.",
        plots.mistakes(found),
    )
    yield Picture(
        "feature_maps",
        "Feature maps",
        "The first image, and the eight channels of the highest mean after the stem and each "
        "stage. Yellow is a row's largest value.",
        "Feature maps of one image after the stem and after each stage.",
        plots.feature_maps(found.maps, found.images[0]),
    )
    points = embedded.result()
    yield Picture(
        "embedding",
        "Last features",
        f"What the head sees of the first {len(points)} images, in the plane by t-SNE. Neighbours "
        "are alike; distances between groups mean nothing.",
        "Scatter plot of images by their last features, coloured and named by class.",
        plots.embedding(points, found),
    )


def _drawn(picture: Picture) -> tuple[str, bytes, str]:
    """The picture's name, its PNG, and the page's section with it as an SVG."""
    name, figure = picture.name, picture.figure
    png, svg = io.BytesIO(), io.StringIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": name}):
        # A class name may have letters that matplotlib's font lacks; the table has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(png, dpi=150)
        figure.set_layout_engine("none")  # it is laid out now
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    section = (
        f'<section class="{name}"><h2>{escape(picture.title)}</h2>\n<p>{escape(picture.note)}</p>\n'
        f"{inline_svg(svg.getvalue(), name, picture.alt)}</section>"
    )
    return name, png.getvalue(), section


def inline_svg(document: str, name: str, alt: str) -> str:
    """An SVG file of matplotlib's as an element of a page.

    Black, which matplotlib writes for lines and leaves out for letters, becomes the page's ink.
    Ids get ``name`` in front, since those of several pictures meet in one page.
    """
    svg = document[document.index("<svg") :]
    box = re.search(r'viewBox="([\d. -]+)"', svg)
    assert box is not None
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = body.replace("stroke: #000000", "stroke: currentColor")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body).replace("xlink:href", "href")
    body = body.replace("url(#", f"url(#{name}-")
    return (
        f'<svg role="img" aria-label="{escape(alt)}" viewBox="{box[1]}" fill="currentColor">'
        f"<title>{escape(alt)}</title>{body}"
    )


def _page(run: "Run", found: Findings, split: str, checkpoint: str, pictures: str) -> str:
    evaluation = found.evaluation
    document = yaml.safe_load((run.path / "config.yaml").read_text())
    model = f"{'' if run.config.model.residual else 'plain '}{run.config.model.name}"
    title = f"{model} on {run.config.data.name}, seed {run.config.seed}"
    rows = run.metrics()
    measured = [
        ("accuracy", f"{evaluation.accuracy:.2%} ({evaluation.correct} of {evaluation.count})"),
        *([] if evaluation.top5 is None else [("top-5 accuracy", f"{evaluation.top5:.2%}")]),
        ("loss", f"{evaluation.loss:.4f} nats"),
        ("expected calibration error", f"{found.calibration.ece:.2%}"),
        ("of", f"{checkpoint} parameters on {split} images"),
        ("trained for", f"{rows['epoch'].max():.3g} epochs, {rows['step'].max()} steps"),
        ("in", f"{rows['seconds'].max():.0f} s"),
    ]
    per_class = [
        (name, row["count"], *(_percent(row[key]) for key in ("recall", "precision")))
        for name, row in evaluation.per_class.items()
    ]
    configuration = [(s.option, s.value) for s in settings(run.config)]
    facts = [
        ("run folder", run.path.resolve().name),
        ("data fingerprint", document["data"]["fingerprint"]),
        ("commit", document.get("commit") or "-"),
        *(document.get("versions") or {}).items(),
    ]
    return PAGE.substitute(
        title=escape(title),
        measured=_table("Result", ("", ""), measured),
        pictures=pictures,
        per_class=_table("Classes", ("class", "examples", "recall", "precision"), per_class),
        settings=_table("Configuration", ("setting", "value"), configuration),
        facts=_table("Made by", ("", ""), facts),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _table(caption: str, headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in headings if any(headings))
    lines = [
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(_value(value))}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    ]
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "\n".join(lines)
    return f"<table><caption>{escape(caption)}</caption>{top}<tbody>\n{body}\n</tbody></table>"


def _value(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case tuple():
            return " ".join(map(str, value))
    return str(value)


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #595959; --line: #d0d0d0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #151719; --soft: #a8a8a8; --line: #44484c; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 0; }
p { margin: .2rem 0 .6rem; color: var(--soft); font-size: .9rem; }
main { columns: 2 22rem; column-gap: 2.5rem; }
section, table { break-inside: avoid; margin: 0 0 2rem; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg image { image-rendering: pixelated; }
table { width: 100%; max-width: 34rem; border-collapse: collapse; font-size: .9rem; }
.long table { break-inside: auto; }
caption { text-align: left; font-weight: bold; font-size: 1.15rem; }
th, td { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: normal; }
thead th { color: var(--soft); }
td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>$title</h1>
<main>
$measured
$pictures
$per_class
<div class="long">
$settings
$facts
</div>
</main>
</body>
</html>
""")
