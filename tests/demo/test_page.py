"""The page in a real browser, with a run of `quickstart` or the trained one that PAGE_RUN names.

The tests' run is narrow: it recognises as many digits, and trains in a third of the time.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj
from experiments.photos.photograph import photograph

pytestmark = pytest.mark.slow

# A hundred digits by five simulated hands, in thousandths of a page's side: for each digit two
# skeletons with slant, size, speed, tremor and lifts of the pen. No network was used to make them.
DRAWINGS = json.loads((Path(__file__).parent / "strokes.json").read_text())
SIZES = [{"width": 1280, "height": 800}, {"width": 390, "height": 844}]


@pytest.fixture(scope="module")
def address(shared, python):
    # Without the flags of the tests' hurried compilation, so that the program is the users'.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    words = ("-m", "resnet_jax", "train", "--model.width", "16", "--no-report", "--run-dir")
    run = os.environ.get("PAGE_RUN") or shared("page", partial(python, *words, XLA_FLAGS=None))
    command = [sys.executable, "-m", "resnet_jax", "demo", str(run), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    yield re.search(r"http://[\d.:]+", process.stdout.readline())[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page, which must not fail or send a request anywhere else."""
    pages, troubles = [], []

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            troubles.append(f"asks {request.url}")

    def open_page(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", note)
        page.goto(address)
        page.wait_for_selector(".drawing")
        page.wait_for_timeout(500)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not troubles


def ask(address, body, kind):
    """Return the label in the server's answer."""
    request = urllib.request.Request(f"{address}/api/predict", body, {"Content-Type": kind})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["label"]


def test_photographs_of_digits_are_recognised(address):
    """The photographs are of 100 test digits, which were not used to make the finder."""
    rng, digits = np.random.default_rng(0), rj.load_dataset("mnist_5k").test
    right = 0
    for image, label in zip(*digits.batch(rng.choice(500, 100, replace=False)), strict=True):
        file = io.BytesIO()
        photograph(image[..., 0], rng).save(file, "PNG")
        right += ask(address, file.getvalue(), "image/png") == str(label)
    assert right >= 80


def places(page, stroke):
    box = page.locator(".drawing").bounding_box()
    side = box["width"] / 1000
    return [(box["x"] + x * side, box["y"] + y * side) for x, y in stroke]


def wait_for(page, text):
    status = "document.querySelector('[role=status]').innerText"
    page.wait_for_function(f"text => {status} == text", arg=text)


def test_a_hundred_drawn_digits_are_recognised(address):
    wrong = []
    for drawing in DRAWINGS:
        body = json.dumps({"strokes": drawing["strokes"]}).encode()
        label = ask(address, body, "application/json")
        wrong += [] if label == drawing["digit"] else [drawing["digit"]]
    assert len(DRAWINGS) == 100
    assert len(wrong) <= 10, wrong


def test_the_answer_follows_the_mouse(open_page):
    page = open_page()
    for digit in "023":
        page.click("text=Clear")
        wait_for(page, "")
        stroke = next(d["strokes"][0] for d in DRAWINGS if d["hand"] == 0 and d["digit"] == digit)
        for number, place in enumerate(places(page, stroke)):
            page.mouse.move(*place)
            if number == 0:
                page.mouse.down()
        wait_for(page, f"It looks like {digit}")  # the pen is still down
        page.mouse.up()
    assert page.locator(".shown img").count() == 2
    page.click("text=Undo")
    wait_for(page, "")
    assert page.locator(".shown img").count() == 0


DROP = """() => {
    const files = new DataTransfer();
    files.items.add(new File([], "empty.png"));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, cancelable: true }));
}"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("document.querySelector('.pad button').click()", ""),
        (DROP, "⚠ the image is an empty file: give an image"),
    ],
)
def test_a_button_or_an_image_ends_the_stroke_that_is_drawn(open_page, end, status):
    """Another finger may do so; the first one's next move then failed, or changed an example."""
    page = open_page()
    begin, on, after = places(page, [(200, 200), (300, 300), (400, 400)])
    page.mouse.move(*begin)
    page.mouse.down()
    page.mouse.move(*on)
    page.evaluate(end)
    page.mouse.move(*after)
    wait_for(page, status)
    assert not page.locator(".drawing path").get_attribute("d")


def test_a_finger_draws_and_the_palm_beside_it_does_not(open_page):
    page = open_page(viewport=SIZES[1], has_touch=True, is_mobile=True)
    stroke = next(d["strokes"][0] for d in DRAWINGS if d["hand"] == 0 and d["digit"] == "3")
    touch = page.context.new_cdp_session(page)
    left, top, side = (page.locator(".drawing").bounding_box()[k] for k in ("x", "y", "width"))
    for number, (x, y) in enumerate(places(page, stroke)):
        points = [{"x": x, "y": y, "id": 0}]
        if number:  # the palm moves a little
            points += [{"x": left + side - 9 - number % 2, "y": top + side - 9, "id": 1}]
        kind = "touchMove" if number > 1 else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait_for(page, "It looks like 3")
    assert page.locator(".drawing path").get_attribute("d").count("M") == 1
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everything_is_in_sight_and_axe_has_nothing_serious(
    size, scheme, open_page, serious, tmp_path
):
    page = open_page(viewport=size, color_scheme=scheme)
    assert page.title() == page.inner_text("h1") == "Recognises handwritten digits"
    page.get_by_label("Example 5").click()
    wait_for(page, "It looks like 5")
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "page.png")
    pad = page.locator(".drawing").bounding_box()
    label = page.get_by_text("Probabilities").locator("xpath=ancestor::div[1]").bounding_box()
    assert label["x"] > pad["x"] + pad["width"]  # beside the pad
    assert label["y"] < pad["y"] + pad["height"]
    images = [f".shown img >> nth={number}" for number in (0, 1)]
    for part in (*images, "text=Where it looks", "text=Invert black"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
        assert box["y"] + box["height"] <= size["height"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious(page) == []


def test_the_caption_says_where_there_is_no_positive_evidence(open_page):
    page = open_page()

    def without_evidence(route):
        reply = route.fetch()
        route.fulfill(response=reply, json={**reply.json(), "positive_evidence": False})

    page.route("**/api/predict*", without_evidence)
    page.get_by_label("Example 5").click()
    page.get_by_text("No positive evidence").wait_for()
    assert page.locator(".shown img").count() == 1
    assert page.locator(".shown figure").first.inner_text().strip() == "Image as read"
    assert page.get_by_text("Where it looks").count() == 0


def test_files(open_page, tmp_path):
    page = open_page()
    test = rj.load_dataset("mnist_5k").test
    digit = test.images[np.flatnonzero(test.labels == 7)[0], ..., 0]
    paper, broken = tmp_path / "paper.png", tmp_path / "broken.png"
    Image.fromarray(255 - digit).save(paper)
    broken.write_bytes(paper.read_bytes()[:100])
    box = page.locator("[type=checkbox]")
    unticked = box.screenshot()
    box.check()
    assert box.screenshot() != unticked
    page.set_input_files("[type=file]", paper)
    wait_for(page, "It looks like 7")
    assert page.locator(".shown img").count() == 2
    page.set_input_files("[type=file]", broken)
    page.wait_for_selector("[role=status]:has-text('cannot be')")
    assert page.locator(".shown img").count() == 0
    assert page.get_by_text("7", exact=True).count() == 0
    # The same file may be chosen again, also after another file was dropped.
    with page.expect_file_chooser():
        page.click("[type=file]")
    assert page.locator("[type=file]").input_value() == ""
    page.set_input_files("[type=file]", broken)
    page.evaluate(DROP)
    page.wait_for_selector("[role=status]:has-text('empty')")
    assert page.locator("[type=file]").input_value() == ""
