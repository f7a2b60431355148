"""The JSON endpoint: what it answers, what it refuses, and that it goes on afterwards."""

import base64
import copy
import dataclasses
import importlib.util
import io
import itertools
import re
import socket
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from make_datasets import encoded, png, refused
from PIL import Image, ImageOps

import resnet_jax as rj
from experiments.photos.photograph import photograph
from resnet_jax.data.digit import draw_strokes, find_digit

SEVEN = [[[0, 0.5], [10, 0], [4, 20]], [[3, 10], [9, 10]]]
NAMES = {"run": "runs/<b>bold</b>", "model": "resnet18", "data": "mnist_5k"}


def finding(run, class_names):
    """Return a copy of the run with other names, which finds digits in photographs."""
    run = copy.copy(run)
    run.path, run.class_names = Path(NAMES["run"]), class_names
    data = dataclasses.replace(run.config.data, find_digit=True, fit="crop")
    run.config = dataclasses.replace(run.config, data=data)
    return run


@pytest.fixture(scope="module")
def client(finished_run, client_of):
    with client_of(finding(finished_run, finished_run.class_names)) as client:
        yield client


@pytest.fixture(scope="module")
def digit():
    return rj.load_dataset("mnist_5k").test.images[250, :, :, 0]


def picture(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def check(answer, image, run):
    """Assert that an answer is the run's prediction for an image, ``uint8[28, 28]``."""
    expected = run.predict(image[None, ..., None])[0]
    np.testing.assert_array_equal(picture(answer["image"]), image)
    assert list(answer["probabilities"]) == list("0123456789")
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    assert answer["label"] == str(expected.argmax())
    assert answer["probability"] == max(answer["probabilities"].values())


def test_strokes_get_the_probabilities_of_their_image(client, finished_run):
    answer = client.post("/api/predict", json={"strokes": SEVEN}).json()
    check(answer, draw_strokes([np.array(stroke, float) for stroke in SEVEN]), finished_run)
    assert set(answer) == {"label", "probability", "probabilities", "image"}


def test_a_file_gets_what_predict_gives(client, finished_run, digit):
    for pixels, query in ((digit, ""), (255 - digit, "?invert=1")):
        reply = client.post(f"/api/predict{query}", content=encoded(pixels))
        check(reply.json(), digit, finished_run)


def test_a_photograph_gets_the_answer_for_the_digit_on_it(client, finished_run, digit):
    photo = photograph(digit, np.random.default_rng(0))
    found = find_digit(photo)
    answer = client.post("/api/predict", content=encoded(np.asarray(photo))).json()
    check(answer, found.image[..., 0], finished_run)
    assert answer["found"] == found.how
    # Asked to invert, the server takes the whole picture and looks for no digit.
    inverted = client.post("/api/predict?invert=1", content=encoded(np.asarray(photo))).json()
    assert "found" not in inverted
    expected = np.asarray(ImageOps.fit(ImageOps.invert(photo.convert("L")), (28, 28), 2))
    check(inverted, expected, finished_run)


def test_the_explanation_is_grad_cam_of_the_label(client, finished_run, digit, monkeypatch):
    """And an answer says where there is no positive evidence."""
    answer = client.post("/api/predict?explain=1", content=encoded(digit)).json()
    image = digit[None, ..., None]
    maps = rj.inspection.explain(finished_run, image, [int(answer["label"])])
    expected = rj.inspection.overlay(image, maps)[0].astype(int)
    assert np.abs(picture(answer["grad_cam"]) - expected).max() <= 2
    assert maps.any()
    assert answer["positive_evidence"] is True

    from resnet_jax.demo import app

    forward = app.FORWARD

    def without_evidence(*arguments):
        found, maps = forward(*arguments)
        return found, 0 * maps

    monkeypatch.setattr(app, "FORWARD", without_evidence)
    answer = client.post("/api/predict?explain=1", content=encoded(digit)).json()
    assert answer["positive_evidence"] is False
    assert (picture(answer["grad_cam"]) == digit[..., None]).all()


def test_the_run_is_described(client):
    assert client.get("/api/run").json() == NAMES | {
        "class_names": list("0123456789"),
        "image_shape": [28, 28, 1],
        "takes_strokes": True,
    }


GREY = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
FILE, STROKES = "image/png", "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        (FILE, encoded(GREY, "jpeg")[:300], "the image"),
        (FILE, png((6325, 6325), b""), "6325x6325 pixels: at most 40,000,000"),  # some kilobytes
        (STROKES, "", "send JSON"),
        (STROKES, "{", "send JSON"),
        (STROKES, "[" * 200_000, "send JSON"),
        (STROKES, b"\xff\xfe\xfa", "send JSON"),
        (STROKES, "1" * 5000, "send JSON"),
        (STROKES, "null", "send JSON"),
        (STROKES, "[]", "send JSON"),
        (STROKES, '{"strokes": [[[NaN, 0]]]}', "below 1e6"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_image_gets_a_reason_and_the_next_an_answer(kind, body, reason, client):
    headers = {"Content-Type": kind}
    reply = client.post("/api/predict?explain=1", content=body, headers=headers)
    assert (reply.status_code, list(reply.json())) == (400, ["detail"])
    assert reason in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert client.post("/api/predict", json={"strokes": SEVEN}).status_code == 200


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED")])
def test_a_lack_of_memory_gets_a_reason_and_the_next_an_answer(client, digit, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr("resnet_jax.demo.app.FORWARD", mock.Mock(side_effect=error))
        reply = client.post("/api/predict", content=encoded(digit))
    assert (reply.status_code, list(reply.json())) == (503, ["detail"])
    assert "not enough memory" in reply.json()["detail"]
    assert client.post("/api/predict", content=encoded(digit)).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_gets_413(chunked, client):
    parts = [bytes(2**20)] * 16 + [b"1"]
    reply = client.post("/api/predict", content=iter(parts) if chunked else b"".join(parts))
    assert reply.status_code == 413
    assert "at most 16,777,216 bytes" in reply.json()["detail"]
    # A body with one byte less is read, and is not an image.
    parts.pop()
    assert client.post("/api/predict", content=b"".join(parts)).status_code == 400


def test_a_flag_that_is_none(client):
    reply = client.post("/api/predict?explain=maybe", json={"strokes": SEVEN})
    assert reply.status_code == 400
    assert "explain must be 0 or 1, got 0 and maybe" in reply.json()["detail"]


def test_the_page_says_what_it_recognises(client, client_of, finished_run, monkeypatch):
    monkeypatch.setenv("GRADIO_MCP_SERVER", "true")  # needs an extra of gradio that is missing
    assert "Recognises handwritten digits" in client.get("/").text
    names = ("<img src=//a.example>", "caf\udce9\u202e", *["cat"] * 8)  # not all are UTF-8
    with client_of(finding(finished_run, names)) as other:
        parts = other.get("/config").json()["components"]
        assert other.get("/api/run").json()["class_names"] == list(names)
        assert other.post("/api/predict", json={"strokes": SEVEN}).status_code == 400
        answer = other.post("/api/predict", content=encoded(GREY)).json()
    (head,) = (p["props"]["value"] for p in parts if "<h1>" in str(p["props"].get("value")))
    assert r"a.example&gt;, caf\udce9\u202e, cat, " in head
    assert "&lt;b&gt;bold" in head
    assert not re.search("<(img|b)", head)
    # A streamed dataset may have two classes of one name; the page then answered another class.
    assert list(answer["probabilities"]) == [f"#{k} {name}" for k, name in enumerate(names)]
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["probability"] == max(answer["probabilities"].values())


def test_another_name_for_this_machine_is_refused(client):
    # A page elsewhere can have its own name point to 127.0.0.1, and would then read the answers.
    reply = client.get("/api/run", headers={"Host": "attacker.example"})
    assert reply.status_code == 400
    assert client.get("/api/run", headers={"Host": "localhost:7860"}).status_code == 200


@pytest.mark.usefixtures("client_of")  # skips without gradio
def test_errors_of_the_command(finished_run, refusal):
    assert "nowhere is not a run" in refusal("demo", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        for port, reason in ((70000, "65535"), (-1, "65535"), (busy.getsockname()[1], "in use")):
            line = refusal("demo", finished_run.path, "--port", port)
            assert re.search(rf"--port {port} cannot be used.*{reason}.*: give another", line)


def test_without_gradio(finished_run, monkeypatch, refusal):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "resnet_jax.demo.app", raising=False)
    needs = "resnet-jax: the demo needs gradio: pip install 'resnet_jax[demo]'"
    assert refusal("demo", finished_run.path, "--port", 0) == needs


def test_a_network_that_is_not_finite_is_refused_at_the_start(client_of, finished_run):
    broken = copy.copy(finished_run)
    nothing = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), finished_run.variables())
    broken.variables = lambda checkpoint: nothing
    assert "not finite" in refused(client_of, broken)


@pytest.mark.usefixtures("client_of")
def test_the_pages_are_utf8_in_any_locale(monkeypatch):
    encodings = []
    monkeypatch.setattr(Path, "read_text", lambda _, name=None: encodings.append(name) or "")
    for name in ("demo.app", "inspection.report"):
        spec = importlib.util.find_spec(f"resnet_jax.{name}")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert set(encodings) == {"utf-8"}
    assert len(encodings) == 5
