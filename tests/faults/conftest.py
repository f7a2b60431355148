"""What tests of pictures and of the demo share."""

import contextlib
import http.client
import importlib.util
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest

import resnet_jax as rj


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """An empty cache of what was read."""
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "own-cache"))


@pytest.fixture
def no_programs() -> Iterator[None]:
    """Takes the compilation cache that the tests share away: runs set up their own."""
    shared = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", shared)


@pytest.fixture
def answers(monkeypatch) -> list[int]:
    """Has every run answer its first class, at once; the number of pictures of each call."""
    calls = []

    def predict(self: rj.Run, images: np.ndarray, checkpoint: str = "best") -> np.ndarray:
        calls.append(len(images))
        return np.eye(len(self.class_names), dtype=np.float32)[np.zeros(len(images), int)]

    monkeypatch.setattr(rj.Run, "predict", predict)
    return calls


# The demo of `finished_run`, which writes down whom it asks.
DEMO = """
import sys
asked = open(sys.argv[1], "a", buffering=1)
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print(event, arguments, file=asked)
sys.addaudithook(note)
sys.modules["uvloop"] = None  # which asks without Python's knowledge
import worker
worker.shrink()
sys.exit(worker.main(sys.argv[2:]))
"""


class Demo:
    def __init__(self, run, folder):
        self.asked, self.temporary = folder / "asked.txt", folder / "tmp"
        self.temporary.mkdir()
        self.asked.touch()
        environment = os.environ | {"TMPDIR": str(self.temporary)}
        command = [sys.executable, "-c", DEMO, str(self.asked), "demo", str(run.path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*command, "--port", "0"], env=environment, **pipes)
        line = self.process.stdout.readline()
        assert "http://127.0.0.1:" in line, self.process.communicate()
        self.port = int(re.search(r"http://127.0.0.1:(\d+)", line)[1])

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
def demo(finished_run, tmp_path_factory):
    """The page to draw on, in a process of its own."""
    if importlib.util.find_spec("gradio") is None:  # imported in that process alone
        pytest.skip("needs the extra demo")
    demo = Demo(finished_run, tmp_path_factory.mktemp("demo"))
    yield demo
    if demo.process.poll() is None:
        demo.process.kill()
        demo.process.communicate()
