"""The JSON address: what it answers, what it refuses, and that it goes on."""

import base64
import io
import socket
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.demo.strokes import draw

pytest.importorskip("gradio", reason="needs the extra demo")
from starlette.testclient import TestClient

from resnet_jax.demo import server
from resnet_jax.demo.server import MAX_BYTES, MAX_PIXELS, Recognizer, make_app

pytestmark = pytest.mark.slow  # gradio alone takes ten seconds to load

SEVEN = [[[0, 0], [10, 0], [4, 20]]]


@pytest.fixture(scope="module")
def recognizer(ignorant_run):
    return Recognizer(ignorant_run)


@pytest.fixture(scope="module")
def client(recognizer):
    with TestClient(make_app(recognizer), base_url="http://127.0.0.1:7860") as client:
        yield client


@pytest.fixture(scope="module")
def digit():
    return rj.load_dataset("mnist_5k").test.images[250, :, :, 0]


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def picture(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_strokes_get_the_probabilities_of_their_image(client, ignorant_run):
    reply = client.post("/api/predict", json={"strokes": SEVEN})
    assert reply.status_code == 200
    answer = reply.json()
    image = draw([np.array(stroke, float) for stroke in SEVEN])
    expected = ignorant_run.predict(image[None, ..., None])[0]
    assert list(answer["probabilities"]) == list("0123456789")
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    assert answer["label"] == str(expected.argmax())
    assert answer["probability"] == max(answer["probabilities"].values())
    np.testing.assert_array_equal(picture(answer["image"]), image)
    assert set(answer) == {"label", "probability", "probabilities", "image"}


def test_a_file_gets_what_predict_gives(client, ignorant_run, digit):
    for pixels, query in ((digit, ""), (255 - digit, "?invert=1")):
        reply = client.post(f"/api/predict{query}", content=file_of(pixels))
        answer = reply.json()
        np.testing.assert_array_equal(picture(answer["image"]), digit)
        np.testing.assert_allclose(
            list(answer["probabilities"].values()),
            ignorant_run.predict(digit[None, ..., None])[0],
            atol=1e-5,
        )


def test_the_explanation_is_grad_cam_of_the_label(client, ignorant_run, digit):
    answer = client.post("/api/predict?explain=1", content=file_of(digit)).json()
    image = digit[None, ..., None]
    maps = rj.inspection.explain(ignorant_run, image, [int(answer["label"])])
    expected = rj.inspection.overlay(image, maps)[0].astype(int)
    assert np.abs(picture(answer["grad_cam"]) - expected).max() <= 2


def test_the_run_is_described(client, ignorant_run):
    assert client.get("/api/run").json() == {
        "run": str(ignorant_run.path),
        "model": "resnet18",
        "data": "mnist_5k",
        "class_names": list("0123456789"),
        "image_shape": [28, 28, 1],
        "takes_strokes": True,
    }


def bomb():
    """A PNG of a few hundred bytes that claims 4 x 10^9 pixels, and its first rows."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def large(count=MAX_PIXELS):
    """A valid PNG of somewhat more pixels than are read, in some kilobytes."""
    side = int(count**0.5) + 1
    return file_of(np.zeros((side, side), np.uint8))


GREY = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file 99 string "
    b"readstring pop print\n"
)
HOSTILE = {
    "nothing": (b"", "empty"),
    "text": (b"hello", "no image"),
    "html": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "no image"),
    "postscript, which Ghostscript would run": (POSTSCRIPT, "no image"),
    "half a PNG": (file_of(GREY)[:150], "cannot be read"),
    "half a JPEG": (file_of(GREY, "JPEG")[:300], "the image"),
    "a PNG with a wrong byte": (file_of(GREY).replace(b"IDAT", b"IDAX"), "the image"),
    "a decompression bomb": (bomb(), "at most 40,000,000 pixels"),
    "an animation": (
        file_of(GREY, "WEBP", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "2 frames",
    ),
    "a transparent picture": (file_of(np.zeros((9, 9, 4), np.uint8)), "transparent"),
    "a name": (b"../../etc/passwd", "no image"),
    "zeros": (bytes(1000), "no image"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_a_reason(name, client):
    body, reason = HOSTILE[name]
    reply = client.post("/api/predict?explain=1", content=body)
    assert reply.status_code == 400
    assert list(reply.json()) == ["detail"]
    assert reason in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert client.post("/api/predict", json={"strokes": SEVEN}).status_code == 200


def test_more_pixels_than_are_read(client):
    reply = client.post("/api/predict", content=large())
    assert reply.status_code == 400
    assert "6325x6325 pixels: at most 40,000,000" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "empty"),
        ("{", "no JSON"),
        ("[" * 200_000, "no JSON"),
        (b"\xff\xfe\xfa", "no JSON"),
        ("1" * 5000, "no JSON"),
        ("null", "something else"),
        ("[]", "something else"),
        ('{"strokes": [], "image": 1}', "something else"),
        ('{"strokes": []}', "0 points"),
        ('{"strokes": [[[NaN, 0]]]}', "leaves the page"),
    ],
)
def test_hostile_json_gets_a_reason(body, reason, client):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    reply = client.post("/api/predict", content=body, headers=headers)
    assert reply.status_code == 400
    assert reason in reply.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_gets_413(chunked, client):
    parts = [bytes(2**20)] * (MAX_BYTES // 2**20) + [b"1"]
    reply = client.post("/api/predict", content=iter(parts) if chunked else b"".join(parts))
    assert reply.status_code == 413
    assert "at most 16,777,216 bytes" in reply.json()["detail"]
    # One byte less is read, and is no image.
    parts.pop()
    assert client.post("/api/predict", content=b"".join(parts)).status_code == 400


def test_a_flag_that_is_none(client):
    reply = client.post("/api/predict?explain=maybe", json={"strokes": SEVEN})
    assert reply.status_code == 400
    assert "explain is 'maybe': give 0 or 1" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/predict", 404),
        ("PUT", "/api/predict", 404),
        ("POST", "/api/run", 404),
        ("POST", "/gradio_api/upload", 404),
        ("POST", "/gradio_api/queue/join", 404),
        ("POST", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 403),
        ("GET", "/gradio_api/file=config.yaml", 403),
        ("GET", "/nothing", 404),
    ],
)
def test_there_is_one_door(method, path, status, client):
    assert client.request(method, path).status_code == status


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/config").json()["analytics_enabled"] is False


def test_another_name_for_this_machine_is_refused(client):
    # A page elsewhere can have its own name point to 127.0.0.1, and would then read the answers.
    reply = client.get("/api/run", headers={"Host": "attacker.example"})
    assert reply.status_code == 400
    assert client.get("/api/run", headers={"Host": "localhost:7860"}).status_code == 200


def test_runs_on_other_images_take_files_alone(recognizer):
    clothes = SimpleNamespace(image_shape=(28, 28, 1), class_names=("shirt", "bag"))
    colours = SimpleNamespace(image_shape=(32, 32, 3), class_names=tuple("0123456789"))
    for run, strokes in ((clothes, False), (colours, False), (recognizer.run, True)):
        assert server.takes_strokes(run) is strokes


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["nowhere"], ["nowhere", "is not a run"]),
        (["RUN", "--port", "70000"], ["--port 70000", "0 to 65535"]),
        (["RUN", "--port", "-1"], ["--port -1", "0 to 65535"]),
        (["RUN", "--port", "BUSY"], ["--port BUSY", "in use", "give another"]),
    ],
)
def test_errors_of_the_command(arguments, names, ignorant_run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        places = {"RUN": str(ignorant_run.path), "BUSY": str(busy.getsockname()[1])}
        assert main(["demo", *(places.get(word, word) for word in arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for name in names:
        assert name.replace("BUSY", places["BUSY"]) in line


def test_without_gradio(ignorant_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "resnet_jax.demo.page", raising=False)
    assert main(["demo", str(ignorant_run.path)]) == 1
    assert capsys.readouterr().err == (
        "resnet-jax: the demo needs gradio: pip install 'resnet_jax[demo]'\n"
    )
