"""The page of `resnet-jax demo`: draw a digit or give an image, and see the network's answer."""

import os
import socket
import tempfile

from resnet_jax.errors import ResNetJaxError, importing, printable
from resnet_jax.run import Checkpoint, Run


def serve(run: Run, port: int, checkpoint: Checkpoint) -> None:
    """Serve a run's page to this machine alone until SIGINT or SIGTERM; port 0 is any free port."""
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    except (OSError, OverflowError) as error:
        raise ResNetJaxError(f"--port {port} cannot be used ({error}): give another") from error
    with listener, tempfile.TemporaryDirectory() as folder:
        # gradio reads these when it is imported.
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        with importing("the demo", "'resnet_jax[demo]'"):
            from resnet_jax.demo.app import make_server
        server = make_server(run, checkpoint)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"{printable(str(run.path))} is at {address} (Ctrl-C ends it)", flush=True)
        server.run([listener])
