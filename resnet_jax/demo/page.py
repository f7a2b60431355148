"""The page, made of gradio's parts; what is drawn or dropped goes through the JSON address."""

import os
from importlib.resources import files
from typing import TYPE_CHECKING

# Before gradio is imported, which reads them.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

if TYPE_CHECKING:
    from fastapi import FastAPI

    from resnet_jax.run import Run

_HERE = files("resnet_jax.demo")

_PICTURES = """
<div class="pictures">
  ${value ? `
  <figure>
    <img src="${value.image}" alt="the image at the network's size">
    <figcaption>What the network is given</figcaption>
  </figure>
  <figure>
    <img src="${value.grad_cam}" alt="the same image with the Grad-CAM map over it">
    <figcaption>Where its evidence is: bright is much (Grad-CAM)</figcaption>
  </figure>` : ""}
</div>
"""
_PICTURES_CSS = """
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 0.75rem; }
figure { margin: 0; }
img { width: 100%; image-rendering: pixelated; border-radius: var(--radius-md); }
figcaption { color: var(--body-text-color); padding-top: 0.25rem; }
"""

# An answer of the JSON address, as gradio's label shows it.
_SHOW = """
(answer) => answer === null ? [{}, null] : [
  {
    label: answer.label,
    confidences: Object.entries(answer.probabilities)
      .map(([label, confidence]) => ({ label, confidence }))
      .sort((a, b) => b.confidence - a.confidence)
      .slice(0, 10),
  },
  answer,
]
"""


def mount_page(app: "FastAPI", run: "Run", *, takes_strokes: bool) -> None:
    """Puts the page of a run at ``/`` of an application that has ``POST /api/predict``."""
    title = f"{run.path.resolve().name}: {run.config.model.name} on {run.config.data.name}"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(min_width=280):
                pad = gr.HTML(
                    html_template=(_HERE / "pad.html").read_text(),
                    css_template=(_HERE / "pad.css").read_text(),
                    js_on_load=(_HERE / "pad.js").read_text(),
                    takes_strokes=takes_strokes,
                    apply_default_css=False,
                )
            with gr.Column(min_width=280):
                label = gr.Label(label="Probabilities")
                pictures = gr.HTML(
                    html_template=_PICTURES,
                    css_template=_PICTURES_CSS,
                    apply_default_css=False,
                )
        pad.answer(fn=None, inputs=pad, outputs=[label, pictures], js=_SHOW)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        server_name="127.0.0.1",
        app_kwargs={"openapi_url": None, "redoc_url": None},
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
    )
