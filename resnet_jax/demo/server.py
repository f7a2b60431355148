"""What ``resnet-jax demo`` serves: one JSON address that takes an image or strokes, and the page.

Only this machine reaches it, one address takes a body, and nothing that it takes is kept.
"""

import base64
import io
import json
import socket
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from PIL import Image

from resnet_jax.data.files import read_image
from resnet_jax.demo.strokes import draw, read_strokes
from resnet_jax.errors import ResNetJaxError
from resnet_jax.inspection import grad_cam, overlay
from resnet_jax.inspection.saliency import on_whole_images
from resnet_jax.run import Checkpoint, Run

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
PREDICT = "/api/predict"

MAX_BYTES = 16 * 2**20
MAX_PIXELS = 40_000_000
# What browsers and phones make; for one of the others Pillow starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Of a body that is too large, this much is read and forgotten: a client that is still sending
# does not hear an answer.
DRAINED_BYTES = 2**30
CONNECTIONS = 200


@dataclass(frozen=True)
class Answer:
    """What a run makes of one image.

    Attributes:
        probabilities: by class name, in the run's order.
        image: ``uint8[H, W, C]``, as the network was given it.
        explanation: ``uint8[H, W, 3]``, Grad-CAM for the label over the image, if asked for.
    """

    probabilities: dict[str, float]
    image: np.ndarray
    explanation: np.ndarray | None

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; pictures are PNG files as data URIs."""
        values: dict[str, Any] = {
            "label": self.label,
            "probability": self.probabilities[self.label],
            "probabilities": self.probabilities,
            "image": _data_uri(self.image),
        }
        if self.explanation is not None:
            values["grad_cam"] = _data_uri(self.explanation)
        return values


class Recognizer:
    """A run's network for one image at a time, compiled when it is made.

    Attributes:
        run: the run.
        takes_strokes: whether it knows drawn digits, see `takes_strokes`.
    """

    def __init__(self, run: Run, checkpoint: Checkpoint = "best") -> None:
        self.run = run
        self.takes_strokes = takes_strokes(run)
        self._variables = run.variables(checkpoint)
        self._logits = jax.jit(partial(run.model.apply, train=False))
        # One after the other: a network keeps all cores busy, and a large picture fills the memory.
        self._computing, self._decoding = threading.Lock(), threading.Lock()
        self.recognize(np.zeros(run.image_shape, np.uint8), explain=True)

    def recognize(self, image: np.ndarray, *, explain: bool = False) -> Answer:
        """Recognises ``uint8[H, W, C]`` of the run's shape."""
        with self._computing:
            pixels = self.run.preprocess(image[None])
            logits = self._logits(self._variables, pixels)
            probabilities = np.asarray(jax.nn.softmax(logits)[0], np.float64)
            explanation = None
            if explain:
                label = probabilities[None].argmax(axis=1)
                maps = grad_cam(self.run.model, self._variables, pixels, label)
                explanation = overlay(image[None], on_whole_images(self.run, maps))[0]
        named = zip(self.run.class_names, map(float, probabilities), strict=True)
        return Answer(dict(named), image, explanation)

    def read(self, body: bytes, content_type: str, *, invert: bool = False) -> np.ndarray:
        """The run's image ``uint8[H, W, C]`` in a request's body: JSON with strokes, or a file.

        Raises:
            ResNetJaxError: the body is empty, broken or something else.
        """
        if not body:
            raise ResNetJaxError("the body is empty: send an image file, or strokes as JSON")
        if content_type.split(";")[0].strip().lower() == "application/json":
            return self._read_json(body)
        with self._decoding:
            return read_image(
                io.BytesIO(body),
                self.run.image_shape,
                fit=self.run.config.data.fit,
                background=self.run.config.data.background,
                invert=invert,
                max_pixels=MAX_PIXELS,
                formats=FORMATS,
            )

    def _read_json(self, body: bytes) -> np.ndarray:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ResNetJaxError(f"the body is no JSON: {error}") from error
        if not isinstance(value, dict) or set(value) != {"strokes"}:
            raise ResNetJaxError('the JSON is something else: send {"strokes": [[[x, y], ...]]}')
        if not self.takes_strokes:
            raise ResNetJaxError(
                f"strokes are for runs on MNIST's digits, {self.run.path} is on "
                f"{self.run.config.data.name}: send an image file"
            )
        return draw(read_strokes(value["strokes"]))[..., None]


def takes_strokes(run: Run) -> bool:
    """Whether a run's images are digits as MNIST's, so that it knows drawn ones."""
    return run.image_shape == (28, 28, 1) and set(run.class_names) == set("0123456789")


def _data_uri(image: np.ndarray) -> str:
    """A PNG file of ``uint8[H, W, 1 or 3]``, as the address of a picture in a page."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def make_app(recognizer: Recognizer) -> "Starlette":
    """The ASGI application: ``POST /api/predict``, ``GET /api/run``, and the page at ``/``.

    Needs the extra ``demo``.
    """
    from fastapi import FastAPI
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse

    from resnet_jax.demo.page import mount_page

    async def predict(request: "Request") -> "Response":
        try:
            invert, explain = (_flag(request, name) for name in ("invert", "explain"))
            kind = request.headers.get("content-type", "")
            body = await request.body()
            image = await run_in_threadpool(recognizer.read, body, kind, invert=invert)
        except ResNetJaxError as error:
            return JSONResponse({"detail": str(error)}, 400)
        answer = await run_in_threadpool(recognizer.recognize, image, explain=explain)
        return JSONResponse(answer.to_dict())

    def describe(request: "Request") -> "Response":
        run = recognizer.run
        return JSONResponse(
            {
                "run": str(run.path),
                "model": run.config.model.name,
                "data": run.config.data.name,
                "class_names": run.class_names,
                "image_shape": run.image_shape,
                "takes_strokes": recognizer.takes_strokes,
            }
        )

    # FastAPI's own pages load their scripts from elsewhere.
    app = FastAPI(openapi_url=None)
    app.add_route(PREDICT, predict, methods=["POST"])
    app.add_route("/api/run", describe, methods=["GET"])
    mount_page(app, recognizer.run, takes_strokes=recognizer.takes_strokes)
    app.add_middleware(_Door)
    # A page elsewhere whose name is made to point here sends its own name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def _flag(request: "Request", name: str) -> bool:
    value = request.query_params.get(name, "0")
    if value not in ("0", "1"):
        raise ResNetJaxError(f"{name} is {value!r}: give 0 or 1")
    return value == "1"


class _Door:
    """ASGI middleware: one address takes a body, a bounded one; pages load from here alone."""

    POLICY = (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
        "object-src 'none'; frame-ancestors 'none'"
    )

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import JSONResponse

        async def send_with_policy(message: "Message") -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        if scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send_with_policy)
            return
        if scope["path"] != PREDICT:
            # The page is a client of that address: gradio's own, for uploads too, are not needed.
            error = JSONResponse({"detail": f"only {PREDICT} takes a body"}, 404)
            await error(scope, receive, send_with_policy)
            return
        body = await _read_body(Headers(scope=scope), receive)
        if body is None:
            reason = f"the body is too large: send at most {MAX_BYTES:,} bytes"
            headers = {"Connection": "close"}
            await JSONResponse({"detail": reason}, 413, headers)(scope, receive, send_with_policy)
            return

        async def receive_body() -> "Message":
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        await self.app(scope, receive_body, send_with_policy)


async def _read_body(headers: "Headers", receive: "Receive") -> bytes | None:
    """The whole body of a request; None if it is larger than `MAX_BYTES`."""
    claimed = headers.get("content-length", "0")
    asks_first = headers.get("expect", "").lower() == "100-continue"
    if asks_first and int(claimed) > MAX_BYTES:
        return None
    parts, size, more = [], 0, True
    while more and size <= DRAINED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MAX_BYTES:
            parts.clear()
    return None if size > MAX_BYTES else b"".join(parts)


def serve(run_dir: str | Path, port: int = 7860, checkpoint: Checkpoint = "best") -> None:
    """Serves a run's page on this machine until it is interrupted.

    Args:
        run_dir: the run's folder.
        port: of 127.0.0.1; 0 takes a free one.
        checkpoint: whose parameters.

    Raises:
        ResNetJaxError: there is no such run, gradio is not installed, or the port is taken.
    """
    run = Run.open(run_dir)
    try:
        import uvicorn

        import resnet_jax.demo.page  # noqa: F401
    except ModuleNotFoundError as error:
        raise ResNetJaxError(
            f"the demo needs {error.name}: pip install 'resnet_jax[demo]'"
        ) from error

    class Server(uvicorn.Server):
        """Ends in order at the first signal, at the second too, and is then done: no failure."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.should_exit = True

    with _listen(port) as listener:
        app = make_app(Recognizer(run, checkpoint))
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"{run.path} is at {address} (Ctrl-C ends it)", flush=True)
        # Pages that are open keep a connection, which ends with a page's next sign of life.
        config = uvicorn.Config(
            app, log_level="error", limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=1
        )
        Server(config).run([listener])


def _listen(port: int) -> socket.socket:
    """A socket that listens on the port, from now on: nobody takes it while the run is read."""
    if not 0 <= port <= 65535:
        raise ResNetJaxError(f"--port {port} makes no sense: give 0 to 65535")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ResNetJaxError(
            f"--port {port} cannot be used on {HOST} ({error.strerror}): give another"
        ) from error
    return listener
