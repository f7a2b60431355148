"""Faults that the drawing page had in 0.1.0, shown with only the command and HTTP."""

import contextlib
import http.client
import importlib.util
import os
import re
import signal
import socket
import sys
import tempfile
import time

import numpy as np
import pytest
import worker
from faults import forked, wait_until
from make_datasets import encoded

from resnet_jax.memory import check_limits


def serve(run, folder):
    """Serve a run's demo, and record every host that Python connects to or looks up."""
    asked = (folder / "asked.txt").open("a", buffering=1)

    def note(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            print(event, arguments, file=asked)

    for number, name in ((1, "output.txt"), (2, "errors.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.addaudithook(note)
    sys.modules["uvloop"] = None  # which asks without Python's knowledge
    tempfile.tempdir = str(folder / "tmp")
    worker.shrink()
    sys.exit(worker.main(["demo", str(run), "--port", "0"]))


class Demo:
    def __init__(self, run, folder):
        self.asked, self.temporary = folder / "asked.txt", folder / "tmp"
        self.output, self.errors = folder / "output.txt", folder / "errors.txt"
        self.temporary.mkdir()
        self.output.touch()
        self.process = forked(serve, run.path, folder)
        wait_until(lambda: "\n" in self.output.read_text() or not self.process.is_alive())
        assert "http://127.0.0.1:" in self.output.read_text(), self.errors.read_text()
        self.port = int(re.search(r"http://127.0.0.1:(\d+)", self.output.read_text())[1])

    def get(self, path, method="GET", body=None, headers=None, timeout=30):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            reply = connection.getresponse()
            return reply.status, reply.headers, reply.read().decode()

    def connect(self, start=b""):
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(start)
        return connection


@pytest.fixture(scope="module")
def demos():
    started = []
    yield started
    for demo in started:
        demo.process.kill()


@pytest.fixture
def demo(demos, finished_run, tmp_path_factory):
    """The drawing page in a process of its own; a new process if a test has ended the last."""
    if importlib.util.find_spec("gradio") is None:  # only that process imports it
        pytest.skip("needs the extra demo")
    if not demos or not demos[-1].process.is_alive():
        demos.append(Demo(finished_run, tmp_path_factory.mktemp("demo")))
    return demos[-1]


POST = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HALF_A_BODY = POST + b"Content-Length: 9999\r\n\r\nhalf"
HALF_A_HEAD = POST + b"X: "
FILE = '{"path": "http://example.com/a.png", "url": "http://example.com/a.png"}'


DOORS = """
    GET /gradio_api/file=http://example.com/a.png
    HEAD /gradio_api/file=https://example.com/a.png
    GET //gradio_api/file=http://example.com/a.png
    GET /gradio_api%2ffile=http://example.com/a.png
    GET /gradio_api/proxy=https://gradio.hf.space/a.png
    GET /file=http://example.com/a.png
    GET /gradio_api/file=/etc/passwd
    GET /gradio_api/info
    POST /gradio_api/queue/join
    POST /gradio_api/upload
    POST /gradio_api/run/predict
    GET /api/predict
    PUT /api/predict
    POST /api/run
    POST /
    GET /docs
    GET /nothing
"""


def test_there_is_one_door_and_no_address_is_fetched_for_anyone(demo):
    before = demo.asked.read_text()
    for method, path in map(str.split, DOORS.split("\n")[1:-1]):
        body = f'{{"data": [{FILE}], "fn_index": 0}}' if method == "POST" else None
        reply = demo.get(path, method, body, {"Content-Type": "application/json"})
        assert reply[0] == 404, (method, path, reply)
    assert demo.asked.read_text() == before


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:3000", "http://localhost", "null", "https://elsewhere.example"]
)
def test_no_other_origin_may_read(origin, demo):
    readers = []
    for host in ("127.0.0.1", "localhost"):
        headers = {"Origin": origin, "Host": f"{host}:{demo.port}"}
        for path in ("/", "/config", "/theme.css", "/api/run", "/api/predict"):
            for more in ({}, {"Access-Control-Request-Method": "POST"}):
                method = "OPTIONS" if more else "GET"
                reply = demo.get(path, method, headers=headers | more)[1]
                readers += [path] if reply["Access-Control-Allow-Origin"] else []
    assert readers == []


def test_the_page_names_no_other_place_to_load_from(demo):
    page, styles = demo.get("/")[2], demo.get("/theme.css")[2]
    loads = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)", page)
    loads += re.findall(r"(?:url\(|@import )['\"]?([^'\")]*)", styles)
    assert len(loads) > 3
    assert not [load for load in loads if re.match(r"(https?:)?//", load)]
    assert '"analytics_enabled":false' in page.replace(" ", "")


@pytest.mark.parametrize("start", [b"", HALF_A_HEAD, HALF_A_BODY], ids=["silent", "head", "body"])
def test_three_hundred_slow_clients_keep_nobody_out(start, demo):
    check_limits()  # by default macOS lets this process open 256 files
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(demo.connect(start))
        assert demo.get("/api/run", timeout=15)[0] == 200


def test_it_ends_in_time_with_clients_connected_says_nothing_and_leaves_nothing(demo):
    """SIGINT ends the server while clients are idle, send slowly or wait for an answer."""
    demo.get("/api/predict", "POST", b"no image")
    for start in (b"no HTTP\r\n\r\n", HALF_A_BODY):
        demo.connect(start).close()
    beat = b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    picture = encoded(np.zeros((6300, 6300), np.uint8))
    pictures = [POST + b"Content-Length: %d\r\n\r\n" % len(picture) + picture] * 20
    start = time.monotonic()
    demo.get("/api/predict", "POST", picture, timeout=120)
    of_one = time.monotonic() - start
    with contextlib.ExitStack() as stack:
        for start in (b"", HALF_A_HEAD, HALF_A_BODY, beat, *pictures):
            stack.enter_context(demo.connect(start))
        time.sleep(0.5)
        os.kill(demo.process.pid, signal.SIGINT)
        start = time.monotonic()
        demo.process.join(60)
    assert time.monotonic() - start < max(5, 8 * of_one)  # to answer all twenty would take longer
    assert (demo.process.exitcode, demo.errors.read_text()) == (0, "")
    assert demo.output.read_text().count("\n") == 1
    assert not list(demo.temporary.iterdir())
