"""One of two processes that agree, and that fail in a chosen way; prints JSON.

``python member.py PORT PROCESS_ID RUN_DIR agree|fail|bug|interrupt|hang``
"""

import json
import os
import sys
import time
from pathlib import Path

from resnet_jax.errors import ResNetJaxError
from resnet_jax.training import distributed
from resnet_jax.training.distributed import (
    assert_equal,
    broadcast_from_main,
    failing_together,
    initialize,
    is_main_process,
    main_process_first,
    process_count,
)


def refuse() -> None:
    raise ResNetJaxError("the main process refuses", 7)


def agree(folder: Path) -> dict:
    found = {"processes": process_count(), "main": is_main_process()}
    text, pid = broadcast_from_main(lambda: ["é" * 100_000, os.getpid()])
    found["long"] = [len(text), set(text) == {"é"}, pid]
    found["none"] = broadcast_from_main(lambda: None)
    try:
        broadcast_from_main(refuse)
    except ResNetJaxError as error:
        found["refused"] = [str(error), error.exit_code]

    def cached() -> str:
        place = folder / "cached"
        if not place.exists():
            time.sleep(1)  # the other would be here by now
            place.write_text(str(os.getpid()))
        return place.read_text()

    distributed.WAIT_INTERVAL = 0.1  # not one collective for all of the second
    found["cached"] = main_process_first(cached)
    try:
        main_process_first(refuse)
    except ResNetJaxError as error:
        found["refused first"] = [str(error), error.exit_code]
    assert_equal("settings", "ab" * 32, "never said")
    try:
        assert_equal("data", f"{'ab' * 31}{'cd' if is_main_process() else 'ef'}", "give the same")
    except ResNetJaxError as error:
        found["differs"] = str(error)
    return found


def main() -> None:
    port, process_id, folder, what = sys.argv[1:]
    initialize(f"127.0.0.1:{port}", 2, int(process_id), 300)
    with failing_together(Path(folder, "run")):
        if what == "agree":
            print(json.dumps(agree(Path(folder))))
            return
        broadcast_from_main(lambda: None)
        if not is_main_process():
            print("told", flush=True)
            match what:
                case "fail":
                    raise ResNetJaxError("row 3 is rotten")
                case "bug":
                    raise KeyError("no such name")
                case "interrupt":
                    raise KeyboardInterrupt
                case "hang":
                    time.sleep(600)
        broadcast_from_main(lambda: None)  # the other one never comes


if __name__ == "__main__":
    try:
        main()
    except ResNetJaxError as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(75)
