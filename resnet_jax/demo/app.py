"""The application: a JSON endpoint that takes an image or strokes, and a page that calls it."""

import asyncio
import base64
import io
import json
import textwrap
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr
import jax
import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.requests import ClientDisconnect

from resnet_jax.data.digit import FoundDigit, draw_strokes, parse_strokes, read_digit_or_image
from resnet_jax.data.image import DecodeSpec
from resnet_jax.errors import MALFORMED, ResNetJaxError, message_and_code, out_of_memory, printable
from resnet_jax.inspection import overlay
from resnet_jax.inspection.saliency import as_picture, forward_and_saliency
from resnet_jax.run import Checkpoint, Run
from resnet_jax.training.metrics import told_apart

MAX_BYTES = 16 * 2**20
# Pillow's formats that browsers and phones write; for some others it starts another program.
LIMITS: Any = {"max_pixels": 40_000_000, "formats": ("PNG", "JPEG", "WEBP", "BMP")}
NAMES = ("pad.html", "pad.css", "pad.js", "pictures.html")
PAD, CSS, JS, PICTURES = ((files(__package__) / name).read_text("utf-8") for name in NAMES)
NOT_FOUND = JSONResponse({"detail": "Not Found"}, 404)
FORWARD = jax.jit(forward_and_saliency, static_argnums=0)


class Classifier:
    """A run's network, which classifies one image at a time."""

    def __init__(self, run: Run, checkpoint: Checkpoint) -> None:
        self.run, self.checkpoint, self.variables = run, checkpoint, run.variables(checkpoint)
        digits = set(run.class_names) == set("0123456789")
        self.takes_strokes = digits and run.image_shape == (28, 28, 1)

    def decode(self, body: bytes, content_type: str, invert: bool) -> FoundDigit:
        """Read a request's body, an image file or JSON with strokes, as ``uint8[H, W, C]``."""
        data = self.run.config.data
        if content_type.split(";")[0].strip().lower() != "application/json":
            spec = DecodeSpec(self.run.image_shape, data.fit, data.background)
            return read_digit_or_image(body, spec, find=data.find_digit, invert=invert, **LIMITS)
        if not self.takes_strokes:
            raise ResNetJaxError("strokes are for runs on MNIST's digits: send an image file")
        try:
            strokes = json.loads(body)["strokes"]
        except MALFORMED as error:
            raise ResNetJaxError('send JSON like {"strokes": [[[x, y], ...]]}') from error
        return FoundDigit(draw_strokes(parse_strokes(strokes))[..., None], "")

    def answer(self, image: np.ndarray, how: str = "", explain: bool = True) -> dict[str, Any]:
        """Classify ``uint8[H, W, C]``; docs/inspection.md describes the answer."""
        with self.run.jax_settings():  # JAX's settings hold in one thread
            pixels = self.run.preprocess(image[None])
            found, maps = FORWARD(self.run.model, self.variables, pixels)
            self.run.check_finite(found.logits, self.checkpoint)
            probabilities = jax.nn.softmax(found.logits)[0].tolist()
        named = dict(zip(told_apart(self.run.class_names), probabilities, strict=True))
        label = max(named, key=named.__getitem__)
        answer = {"label": label, "probability": named[label], "probabilities": named}
        answer |= {"found": how} if how else {}
        pictures = {"image": as_picture(image)}
        if explain:
            answer["positive_evidence"] = bool(maps.any())
            pictures["grad_cam"] = overlay(image[None], self.run.preprocessing.uncrop(maps))[0]
        for name, picture in pictures.items():
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            answer[name] = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        return answer


def make_server(run: Run, checkpoint: Checkpoint = "best") -> "Server":
    classifier = Classifier(run, checkpoint)
    lock = asyncio.Lock()  # one image takes all cores, and memory if it is large

    async def predict(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():  # to its end: a client reads no reply while it sends
            body += chunk if len(body) <= MAX_BYTES else b""
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"the body is too large: send at most {MAX_BYTES:,} bytes")
        invert, explain = (request.query_params.get(n, "0") for n in ("invert", "explain"))
        if not {invert, explain} <= {"0", "1"}:
            raise ResNetJaxError(f"invert and explain must be 0 or 1, got {invert} and {explain}")
        kind = request.headers.get("content-type", "")
        async with lock:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                read = await run_in_threadpool(classifier.decode, bytes(body), kind, invert == "1")
                answer = await run_in_threadpool(classifier.answer, *read[:2], explain == "1")
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise HTTPException(503, message_and_code(error)[0]) from error
        return Response(json.dumps(answer), media_type="application/json")

    classifier.answer(np.zeros(run.image_shape, np.uint8))  # compiles the network
    app = FastAPI(openapi_url=None)
    app.add_exception_handler(ResNetJaxError, lambda _, e: JSONResponse({"detail": str(e)}, 400))
    app.add_exception_handler(ClientDisconnect, lambda *_: NOT_FOUND)  # nobody reads it
    app.add_middleware(CORSMiddleware)  # no other origin may read; so gradio adds no CORS headers
    # Against DNS rebinding: the Host header has the foreign name that resolves to this machine.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    about = {
        "run": str(run.path),
        "model": run.model_name,
        "data": run.config.data.name,
        "class_names": run.class_names,
        "image_shape": run.image_shape,
        "takes_strokes": classifier.takes_strokes,
    }
    app.add_route("/api/predict", predict, methods=["POST"])
    described = Response(json.dumps(about), media_type="application/json")  # names may be no UTF-8
    app.add_route("/api/run", lambda _: described, methods=["GET"])
    # The page needs only gradio's files; gradio's proxy would fetch any URL for anyone (SSRF).
    app.mount("/gradio_api", NOT_FOUND)
    app.add_route("/{path:path}", lambda _: NOT_FOUND, methods=["POST", "PUT", "PATCH", "DELETE"])
    _mount_page(app, about)
    return Server(uvicorn.Config(app, ws="none", log_level="error", proxy_headers=False))


def _mount_page(app: FastAPI, about: dict[str, Any]) -> None:
    classes = textwrap.shorten(printable(", ".join(about["class_names"])), 60, placeholder=" …")
    digits = about["takes_strokes"]
    title = f"Recognises {'handwritten digits' if digits else classes}"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{escape(title)}</h1>{escape('{model} on {data}: {run}'.format(**about))}")
        with gr.Row():
            with gr.Column(scale=2, min_width=170):
                pad = gr.HTML(html_template=PAD, js_on_load=JS, elem_classes="pad", digits=digits)
            with gr.Column(scale=3, min_width=130):
                label = gr.Label(label="Probabilities")
                pictures = gr.HTML(html_template=PICTURES, elem_classes="shown")
        pad.answer(None, pad, [label, pictures], js="(value) => value")
    off: dict[str, Any] = dict.fromkeys(("run_history", "ssr_mode", "mcp_server"), False)
    gr.mount_gradio_app(app, page, "/", css=CSS, footer_links=[], **off)


class Server(uvicorn.Server):
    """A uvicorn server that ends at the first signal and does not wait for slow clients."""

    known: frozenset[Any] = frozenset()

    async def on_tick(self, counter: int) -> bool:  # ten times a second
        ends = await super().on_tick(counter)
        if ends or counter % 200 == 0:  # every 20 s: ask a connection to end, then abort it
            for connection in self.server_state.connections:
                slow = ends or connection in self.known
                connection.transport.abort() if slow else connection.shutdown()
            self.known = frozenset(self.server_state.connections)
        return ends

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.should_exit = True
