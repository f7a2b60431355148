"""The page in a real browser, and the command under load, on a run of the preset `mnist`.

MNIST_RUN names such a run; without it one epoch is trained, which takes some three minutes.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj

pytest.importorskip("gradio", reason="needs the extra demo")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra dev")

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
DRAWINGS = json.loads((Path(__file__).parent / "strokes.json").read_text())
# What the server's process asks of other machines is written down.
COMMAND = """
import sys
elsewhere = open(sys.argv[1], "a", buffering=1)
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        if "127.0.0.1" not in str(arguments):
            print(event, arguments, file=elsewhere)
sys.addaudithook(note)
from resnet_jax.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="session")
def environment():
    # Without the tests' hurried compilation: the program is the one that users run.
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, environment):
    if "MNIST_RUN" in os.environ:
        return Path(os.environ["MNIST_RUN"])
    if not Path(os.environ["TFDS_DATA_DIR"], "mnist", "3.0.1").is_dir():
        pytest.skip("no prepared mnist: set TFDS_DATA_DIR")
    folder = tmp_path_factory.mktemp("page") / "mnist"
    command = [sys.executable, "-m", "resnet_jax", "train", "mnist", "--epochs", "1"]
    subprocess.run([*command, "--run-dir", str(folder)], env=environment, check=True)
    return folder


class Demo:
    """The command, running."""

    def __init__(self, run_dir, environment, folder):
        self.elsewhere = folder / "elsewhere.txt"
        command = [sys.executable, "-c", COMMAND, str(self.elsewhere), "demo", str(run_dir)]
        self.process = subprocess.Popen(
            [*command, "--port", "0"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, self.process.communicate()
        self.address = re.search(r"http://[\d.:]+", line)[0]
        self.port = int(self.address.rpartition(":")[2])

    def post(self, body, kind="application/octet-stream"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/api/predict", body, {"Content-Type": kind})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def demo(run_dir, environment, tmp_path_factory):
    demo = Demo(run_dir, environment, tmp_path_factory.mktemp("demo"))
    yield demo
    if demo.process.poll() is None:
        demo.stop()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, demo):
    """Opens the page; at the end nothing has failed in it or been asked of anyone else."""
    pages, troubles = [], []

    def note_request(request):
        if not request.url.startswith((demo.address, "data:", "blob:")):
            troubles.append(f"asks {request.url}")

    def open_page(**options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", note_request)
        page.goto(demo.address)
        page.wait_for_selector("canvas")
        page.wait_for_timeout(500)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not troubles


def draw(page, strokes):
    """Draws with the mouse; returns what the page then says of the whole drawing."""
    page.click(".clear")
    box = page.locator("canvas").bounding_box()
    for stroke in strokes:
        places = [
            (box["x"] + x * box["width"] / 1000, box["y"] + y * box["height"] / 1000)
            for x, y in stroke
        ]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place)
        page.mouse.up()
    return settled(page)


def settled(page):
    """What the page says when it has said the same for a fifth of a second."""
    before, since = None, time.monotonic()
    while time.monotonic() - since < 0.2:
        now = page.inner_text(".status")
        if now != before:
            before, since = now, time.monotonic()
        page.wait_for_timeout(20)
    return before


def test_digits_drawn_with_the_mouse_are_recognised(open_page):
    page = open_page()
    wrong = []
    for drawing in DRAWINGS:
        said = draw(page, drawing["strokes"])
        if not said.startswith(f"It looks like {drawing['digit']}:"):
            wrong.append(f"hand {drawing['hand']}, {drawing['digit']}: {said}")
    assert len(DRAWINGS) == 100
    assert len(wrong) <= 10, wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)])
def test_nothing_overflows_and_axe_has_nothing_serious(size, scheme, open_page, tmp_path):
    viewport = dict(zip(("width", "height"), size, strict=True))
    page = open_page(viewport=viewport, color_scheme=scheme)
    draw(page, DRAWINGS[45]["strokes"])
    page.wait_for_selector(".pictures img")
    page.wait_for_timeout(500)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    outside = """() => [...document.querySelectorAll(".pad *, .pictures *")]
      .map((part) => part.getBoundingClientRect())
      .filter((box) => box.left < 0 || box.right > innerWidth).length"""
    assert page.evaluate(outside) == 0
    found = axe.Axe().run(page).response["violations"]
    assert not [v for v in found if v["impact"] in ("serious", "critical")]


def test_the_keyboard_alone(open_page):
    page = open_page()
    page.focus("canvas")
    for key in ["ArrowUp"] * 7 + ["Space"] + ["ArrowDown"] * 14 + ["Space"]:
        page.keyboard.press(key)
    assert settled(page).startswith("It looks like 1:")
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate("document.activeElement.className || document.activeElement.type")
        )
    assert names[0].startswith("undo")
    assert names[1].startswith("clear")
    assert names[2:] == ["file", "checkbox"]
    page.focus("canvas")
    page.keyboard.press("Delete")
    assert settled(page) == ""
    assert page.locator(".pictures img").count() == 0


def test_files(open_page, tmp_path):
    page = open_page()
    images = rj.load_dataset("mnist_5k").test.images[..., 0]
    labels = rj.load_dataset("mnist_5k").test.labels
    chosen = int(np.flatnonzero(labels == 7)[0])
    paper, broken = tmp_path / "paper.png", tmp_path / "broken.png"
    Image.fromarray(255 - images[chosen]).save(paper)
    broken.write_bytes(paper.read_bytes()[:100])
    page.set_input_files("#pad-file", broken)
    assert "cannot be read" in settled(page)
    page.check(".invert input")
    page.set_input_files("#pad-file", paper)
    assert settled(page).startswith("It looks like 7:")


def test_sixteen_clients_at_once(demo):
    times, failures = [], []

    def client(number):
        for i in range(25):
            strokes = DRAWINGS[(7 * number + i) % 100]["strokes"]
            start = time.perf_counter()
            status, _ = demo.post(json.dumps({"strokes": strokes}), "application/json")
            times.append(time.perf_counter() - start)
            if status != 200:
                failures.append(status)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 400
    assert not failures
    assert np.percentile(times, 99) < 1


def test_huge_uploads_get_an_answer_and_the_server_goes_on(demo):
    assert demo.post(bytes(64 * 2**20))[0] == 413
    assert demo.post(iter([bytes(2**20)] * 64))[0] == 413
    # A client that hangs up half-way.
    connection = http.client.HTTPConnection("127.0.0.1", demo.port)
    connection.putrequest("POST", "/api/predict")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"half")
    connection.close()
    strokes = json.dumps({"strokes": DRAWINGS[0]["strokes"]})
    assert demo.post(strokes, "application/json")[0] == 200


def test_ctrl_c_with_an_open_page_and_nothing_was_asked_of_others(browser, demo):
    page = browser.new_page()
    page.goto(demo.address)
    page.wait_for_selector("canvas")
    assert demo.stop() == (0, "", "")
    assert demo.elsewhere.read_text() == ""
    page.close()
