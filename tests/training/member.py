"""One of two processes that agree on values, print them as JSON, and fail in a chosen way.

``python member.py PORT PROCESS_ID FOLDER bug|interrupt|hang``
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_jax.errors import ResNetJaxError
from resnet_jax.training import distributed
from resnet_jax.training.distributed import (
    assert_equal,
    broadcast_from_main,
    failing_together,
    is_main_process,
    main_process_first,
)


def refuse() -> None:
    raise ResNetJaxError("the main process refuses", 7)


def refusal(call: Callable[..., object], *arguments: Any) -> list[Any]:
    try:
        return ["nothing", call(*arguments)]
    except ResNetJaxError as error:
        return [str(error), error.exit_code]


def agree(folder: Path) -> dict[str, Any]:
    def cached() -> str:
        place = folder / "cached"
        if not place.exists():
            time.sleep(1)  # without waiting, the other process would be here by now
            place.write_text(str(os.getpid()))
        return place.read_text()

    distributed.WAIT_INTERVAL = 0.1  # so that waiting for a second takes several collectives
    assert_equal("settings", "ab" * 32, "never said")
    data = f"{'ab' * 31}{'cd' if is_main_process() else 'ef'}"
    text, of = broadcast_from_main(lambda: ["é" * 100_000, os.getpid()])
    return {
        "processes": distributed.process_count(),
        "main": is_main_process(),
        "long": [text == "é" * 100_000, of],
        "none": broadcast_from_main(lambda: None),
        "refused": refusal(broadcast_from_main, refuse),
        "cached": main_process_first(cached),
        "refused first": refusal(main_process_first, refuse),
        "differs": refusal(assert_equal, "data", data, "give the same")[0],
    }


def main(port: str, process_id: str, folder: str, what: str) -> None:
    distributed.initialize(f"127.0.0.1:{port}", 2, int(process_id), 300)
    with failing_together(Path(folder, "run")):
        print(json.dumps(agree(Path(folder))), flush=True)
        Path(folder, f"agreed{process_id}").touch()
        if not is_main_process():
            if what == "hang":
                time.sleep(600)
            raise KeyError("no such name") if what == "bug" else KeyboardInterrupt
        broadcast_from_main(lambda: None)  # the other process never takes part


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ResNetJaxError as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(75)
