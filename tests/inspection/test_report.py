"""The report's page is self-contained, safe with any class name, and legible on a phone."""

import base64
import dataclasses
import os
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib
import numpy as np
import pytest
from matplotlib import style
from PIL import Image
from test_cli import SAME

import resnet_jax as rj
from resnet_jax import cli_train
from resnet_jax.inspection import plots, report, write_report
from resnet_jax.training.run_folder import RunFolder

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>')
HOSTILE += ("$\\frac{$", "a-->b", "&amp;")


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def hostile_page(finished_run, tmp_path_factory) -> Path:
    """The report of a run whose class names are hostile or hard to show."""
    place = tmp_path_factory.mktemp("hostile") / "run<b>"
    folder = RunFolder(shutil.copytree(finished_run.path, place))
    names = (*HOSTILE, "x" * 300, "数字", "日本", "עברית", "line\nbreak")
    folder.write_record(dataclasses.replace(folder.read_record(), class_names=names))
    dark = style.library["dark_background"]  # a user's own preferences
    with matplotlib.rc_context({**dark, "text.usetex": True, "savefig.transparent": True}):
        return write_report(rj.Run.open(place))


def test_the_page_is_whole_by_itself_and_says_what_was_run(hostile_page, finished_run):
    page = Page(hostile_page.read_text())
    tags = {tag for tag, _ in page.tags}
    assert tags.isdisjoint({"script", "iframe", "object", "b"})
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    text = hostile_page.read_text()
    assert "http" not in text.replace(finished_run.fingerprint, "")
    assert "@import" not in text
    shown = "".join(page.text)
    for name in HOSTILE:
        assert name in shown
    for value in (finished_run.fingerprint, "optim.learning-rate", "0.05", "jax", "expected cal"):
        assert value in shown
    evaluation = finished_run.evaluate("test")
    assert f"{evaluation.accuracy:.2%} ({evaluation.correct} of 30)" in shown


def test_every_picture_is_described_and_lies_beside_the_page(hostile_page):
    page = Page(hostile_page.read_text())
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 7
    assert all(len(picture["alt"]) > 10 for picture in pictures)
    inside = {picture["src"].partition("base64,")[2] for picture in pictures}
    files = hostile_page.parent.glob("*.png")
    assert inside == {base64.b64encode(path.read_bytes()).decode() for path in files}


def test_pictures_are_drawn_on_paper_whatever_the_users_style(hostile_page):
    """Classes were named in white on white, and mistakes crossed in black on black."""
    for path in hostile_page.parent.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.getpixel((0, 0)) == (255, 255, 255, 255)


def test_names_that_the_figures_font_lacks_are_set_by_the_browser(hostile_page):
    """A figure shows the class's number, and the text above it says which class that is."""
    notes = hostile_page.read_text().split("<p>")[1:]
    told = "#6 数字\u200e, #7 日本\u200e, #8 עברית\u200e"
    assert sum(told in note for note in notes) == 3  # confusion, mistakes, last features
    names = ("plain", "naïve", "Straße", "Ελλάδα", "数字", "日本", "한글", "עברית", "العربية")
    assert plots.shown_names(names) == [*names[:4], *(f"#{k}" for k in range(4, 9))]


@pytest.mark.slow
def test_train_makes_the_report_once_and_stands_without_matplotlib(
    own_run, tiny_options, command, monkeypatch
):
    train = ["train", "--run-dir", own_run, *tiny_options, "--report", *SAME]
    page = own_run / "report" / "index.html"

    def write(run: rj.Run, split: str) -> Path:
        """Stand in for the report, which takes seconds and which other tests check."""
        page.parent.mkdir(exist_ok=True)
        page.write_text("a report")
        return page

    monkeypatch.setattr(report, "write_report", write)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "resnet_jax.inspection.report", None)
        code, out, err = command(*train)
    assert (code, "is finished" in out, "warning: no report" in err) == (0, True, True)
    assert command(*train, "--no-report")[0] == 0
    assert not page.parent.exists()
    assert command(*train)[0] == 0
    written = page.stat().st_mtime_ns
    assert command(*train)[0] == 0  # the report is up to date
    assert page.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "error",
    [OSError(30, "Read-only file system"), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED")],
)
def test_what_a_report_lacks_is_a_warning(error, tmp_path, capfd, monkeypatch):
    """Without memory or disk for matplotlib's cache, the run is whole, and others come after it."""
    monkeypatch.setattr(cli_train, "make_report", mock.Mock(side_effect=error))
    cli_train._report_if_new(SimpleNamespace(path=tmp_path, metrics=dict), True)
    (line,) = capfd.readouterr().err.splitlines()
    assert "warning: no report (" in line
    assert f"report {shlex.quote(str(tmp_path))} --split train" in line  # the run has no tests
    tested = SimpleNamespace(path=tmp_path, metrics=lambda: {"split": ["validation", "test_all"]})
    cli_train._report_if_new(tested, True)
    assert "--split test_all" in capfd.readouterr().err
    unread = SimpleNamespace(path=tmp_path, metrics=mock.Mock(side_effect=error))
    cli_train._report_if_new(unread, False)
    assert "warning: no report (" in capfd.readouterr().err
    for file in ((page := tmp_path / "report/index.html"), tmp_path / "metrics.jsonl"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    os.utime(page, (2**32, 2**32))  # a clock was ahead when the run was shorter
    cli_train._report_if_new(tested, False)
    assert capfd.readouterr().err == ""
    cli_train._report_if_new(tested, True)
    assert "warning: no report (" in capfd.readouterr().err
    for unexpected in (BrokenPipeError, RuntimeError):  # as the path is printed; a fault of ours
        cli_train.make_report.side_effect = unexpected
        with pytest.raises(unexpected):
            cli_train._report_if_new(SimpleNamespace(path=tmp_path, metrics=dict), True)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_a_browser_shows_it_and_axe_has_nothing_serious(
    width, scheme, hostile_page, browser, serious
):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(hostile_page.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [url for url in asked if not url.startswith("data:")] == [hostile_page.as_uri()]
    assert not said
    style = "getComputedStyle(document.body)"
    colours = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert (ink > paper) == (scheme == "dark")
    assert serious(page) == []
    page.close()


def test_figures_tell_classes_apart():
    names = ["Tomato___Tomato_mosaic", "Tomato___Tomato_curl", "Apple___scab"]
    assert plots.shown_names(names) == ["#0", "#1", "Apple___scab"]
    (picture,) = plots.confusion(np.eye(300, dtype=int), ["x"] * 300).axes[0].images
    assert picture.get_interpolation() == "nearest"  # no pixel is the mean of several cells


def test_a_confusion_has_a_pixel_for_each_cell():
    """With a thousand classes a part of the diagonal was missing, with 1,500 all of it."""
    figure = plots.confusion(np.eye(2000, dtype=int), ["x"] * 2000)
    figure.get_layout_engine().execute(figure)
    assert figure.axes[0].get_window_extent().width >= 2000


def test_how_many_images_were_examined_is_said(finished_run, own_run, monkeypatch):
    """In percent, 10,000 of 10,030 were all of them."""
    found = dataclasses.replace(rj.inspection.examine(finished_run), examined=0.5)
    monkeypatch.setattr(report, "examine", lambda *_: found)
    monkeypatch.setattr(report, "_figures", lambda *_: ())
    page, count = report.write_report(rj.Run.open(own_run)), len(found.labels)
    assert f"the first {count} of {2 * count}" in page.read_text()


def test_without_maps_the_image_alone_is_shown():
    figure = plots.feature_maps({}, np.zeros((8, 8, 1), np.uint8))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["image"]


def test_a_setting_that_is_no_utf8_is_shown():
    assert "caf\\udce9" in report._table("Configuration", [("data.dir", "/caf\udce9")])


def test_what_is_not_so_of_few_images_or_many_classes_is_not_said(finished_run, monkeypatch):
    """20 images have no t-SNE, and thousands of classes have no pixels in a confusion matrix."""
    monkeypatch.setattr(plots, "MAX_DRAWN_CLASSES", 9)
    found = rj.inspection.examine(finished_run)
    monkeypatch.setattr(report, "EMBEDDED", 10)
    notes = {name: note for name, _, note, _ in report._figures(finished_run, found, "best")}
    assert "confusion" not in notes
    monkeypatch.setattr(plots, "MAX_DRAWN_CLASSES", 10)
    monkeypatch.setattr(plots, "MAX_COUNTED", 9)
    _, (*_, note, _) = islice(report._figures(finished_run, found, "best"), 2)
    assert note.startswith("Colour is")
    assert "smoothed" not in notes["curves"]
    config = dataclasses.replace(finished_run.config, augment=rj.AugmentConfig(magnitude=5))
    monkeypatch.setattr(finished_run, "config", config)
    note = next(report._figures(finished_run, found, "best"))[2]
    assert "on unaugmented images, before" in note
    mixed = dataclasses.replace(config.augment, mixup=0.2)
    config = dataclasses.replace(config, label_smoothing=0.1, augment=mixed, ema=0.9)
    monkeypatch.setattr(finished_run, "config", config)
    note = next(report._figures(finished_run, found, "best"))[2]
    assert "on augmented images with mixed and smoothed labels" in note
    assert note.endswith("as they are, by the averaged weights.")
    monkeypatch.setitem(finished_run.parts, "loss", "focal")  # labels are not smoothed for it
    note = next(report._figures(finished_run, found, "best"))[2]
    assert "mixed labels" in note
    assert "by focal, which is not validation's cross-entropy" in note
    assert "principal components" in notes["embedding"]
    assert "t-SNE" not in notes["embedding"]


def test_the_curves_are_the_metrics(finished_run):
    metrics = finished_run.metrics()
    loss, error, *_ = plots.curves(metrics).axes
    metrics["error"] = 100 - 100 * metrics["accuracy"]
    for axes, column in ((loss, "loss"), (error, "error")):
        for line, kind in zip(axes.lines, ("train", "validation"), strict=True):
            rows = metrics[metrics["kind"] == kind]
            np.testing.assert_allclose(line.get_xydata(), rows[["epoch", column]])
