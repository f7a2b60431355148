"""Multi-process training: processes start together, agree on values, and end together.

Each process runs the same command on its own devices and its own rows of a batch. The main process,
number 0, prints and decides what only one can decide. A process that fails tells the others by a
file in the run's folder. JAX notices a process that is killed or silent, and aborts the others.
"""

import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from resnet_jax.errors import ResNetJaxError, message_and_code, printable
from resnet_jax.storage import UNFINISHED

log = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds.
HEARTBEAT_TIMEOUT = 20  # JAX aborts up to ten seconds later
SHUTDOWN_TIMEOUT = VISIBLE_WITHIN = 60  # a network disk may show a new file half a minute late
POLL_INTERVAL = 1
WAIT_INTERVAL = 60

ADDRESS = (
    "--coordinator HOST:PORT, --num-processes N and --process-id I: all three, or none where JAX "
    "knows the cluster (Slurm, Open MPI 4, Kubernetes, TPU)"
)


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Connect the processes of a run; end this one if any is missing after ``timeout`` seconds."""
    if timeout < 1:
        raise ResNetJaxError(f"--meet-within must be at least 1 s, got {timeout}")
    if coordinator is not None and num_processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ResNetJaxError(f"--coordinator must be HOST:PORT, got {coordinator}")
        if not 0 <= process_id < num_processes:
            given = f"{process_id} of {num_processes}"
            raise ResNetJaxError(f"--process-id must be 0 to --num-processes - 1, got {given}")
        if process_id == 0:
            try:  # JAX would abort if this fails
                socket.create_server(("", int(port))).close()
            except OSError as error:
                failed = f"--coordinator {coordinator} cannot be opened ({error.strerror})"
                raise ResNetJaxError(f"{failed}: give a free port") from error
    elif (coordinator, num_processes, process_id) != (None, None, None):
        raise ResNetJaxError(f"--distributed lacks a part of the address: give {ADDRESS}")
    # The training loop agrees on the step to stop at; JAX's service would intercept SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    # After its own timeout JAX aborts the process without a word on what to do.
    missing = f"not all processes came to --coordinator {coordinator or ''} within {timeout} s"
    late = threading.Timer(timeout, _end, (f"{missing}: start all at the same time", 1))
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise ResNetJaxError(f"--distributed failed ({error}): give {ADDRESS}") from error
    finally:
        late.cancel()


def process_count() -> int:
    """Return the number of processes of this run, without initialising devices if it is 1."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main_process() -> bool:
    return process_count() == 1 or jax.process_index() == 0


def broadcast_from_main(make: Callable[[], Any]) -> Any:
    """Call ``make`` on the main process; on every one, return its JSON value or raise its error."""
    if process_count() == 1:
        return make()
    value, failure = None, None
    if is_main_process():
        try:
            value = make()
        except ResNetJaxError as error:
            failure = message_and_code(error)
    text = np.frombuffer(json.dumps([value, failure]).encode(), np.uint8)
    length = int(broadcast_one_to_all(np.int32(len(text))))
    padded = np.resize(text, max(64, 1 << (length - 1).bit_length()))  # JAX compiles for each size
    value, failure = json.loads(broadcast_one_to_all(padded)[:length].tobytes())
    if failure is not None:
        raise ResNetJaxError(*failure)
    return value


def main_process_first(make: Callable[[], T]) -> T:
    """Call ``make`` on the main process, then on the others, which find what it has cached.

    ``make`` may take hours, but Gloo gives up on a collective after half an hour. So the others
    wait in one short collective after another, in which a thread of the main process takes part.
    """
    if process_count() == 1:
        return make()
    done, made = threading.Event(), []

    def release() -> None:
        while not broadcast_one_to_all(np.int32(done.wait(WAIT_INTERVAL))):
            pass

    def make_first() -> None:
        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        try:
            made.append(make())
        finally:
            done.set()
            thread.join()

    if not is_main_process():
        done.set()
        release()
    broadcast_from_main(make_first)
    return made[0] if made else make()


def assert_equal(what: str, digest: str, remedy: str) -> None:
    """Raise on every process if the hexadecimal digests of the processes differ."""
    if process_count() == 1:
        return
    digests = process_allgather(np.frombuffer(bytes.fromhex(digest), np.uint8))
    first, *others = (row.tobytes().hex() for row in digests)
    for process, other in enumerate(others, start=1):
        if other != first:
            raise ResNetJaxError(
                f"process {process} has {what} {other[:12]} and process 0 {first[:12]}: {remedy}"
            )


def assert_shared(folder: Path) -> None:
    """Raise on every process if one does not see a new file of the main process in a folder."""
    if process_count() == 1:
        return
    with ExitStack() as stack:

        def make() -> str:  # a new file, because each host may hold a copy of the run's own
            new = tempfile.NamedTemporaryFile(suffix=UNFINISHED, dir=folder)  # noqa: SIM115
            return os.path.basename(stack.enter_context(new).name)

        path = folder / broadcast_from_main(make)
        for _ in range(VISIBLE_WITHIN):
            if os.path.exists(path):
                break
            time.sleep(1)
        seen = process_allgather(np.bool_(os.path.exists(path)))
    if not seen.all():
        raise ResNetJaxError(
            f"process {seen.argmin()} does not see {folder} as process 0 writes it: give all "
            "processes a --run-dir on a disk that they share"
        )


@contextmanager
def failing_together(run_dir: Path) -> Iterator[None]:
    """End all processes with the message and the exit code of the one that fails.

    The others may be waiting for it in a collective, where only a thread can end them. That thread
    watches for a file whose name only the processes of this launch know.
    """
    if process_count() == 1:
        yield
        return
    file = run_dir / f".failed-{broadcast_from_main(lambda: secrets.token_hex(4))}"
    over, ending = threading.Event(), threading.Lock()
    threading.Thread(target=_watch, args=(file, over, ending), daemon=True).start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        wait_for_heartbeat(error)
        ending.acquire()  # never released, so that only one thread tells why the process ends
        over.set()
        # If the file cannot be written, the heartbeat ends the others.
        with suppress(OSError, RuntimeError), ExitStack() as cleanup:
            if not run_dir.exists():
                run_dir.mkdir(parents=True, exist_ok=True)  # others may be making it too
                cleanup.callback(run_dir.rmdir)
            cleanup.callback(file.unlink, missing_ok=True)
            file.write_text(json.dumps(message_and_code(error)))
            jax.distributed.shutdown()  # waits until the others have read it
        raise
    over.set()


def wait_for_heartbeat(error: BaseException) -> None:
    """Wait for JAX to abort this process if the error may mean that another one was lost."""
    if process_count() > 1 and isinstance(error, RuntimeError | ValueError):
        seconds = HEARTBEAT_TIMEOUT + 10
        log.warning("%s: waits %d s for JAX's heartbeat", message_and_code(error)[0], seconds)
        time.sleep(seconds)


def _watch(file: Path, over: threading.Event, ending: threading.Lock) -> None:
    while not over.wait(POLL_INTERVAL):
        with suppress(OSError, ValueError):  # the file is missing or incomplete
            message, code = json.loads(file.read_text())
            # The main thread gets time to end this process in order, if it has failed too.
            if not over.wait(POLL_INTERVAL) and ending.acquire(blocking=False):
                _end(message, code or 1)


def _end(message: str, code: int) -> None:
    print(f"resnet-jax: {printable(message)}", file=sys.stderr, flush=True)
    try:
        jax.distributed.shutdown()
    finally:
        os._exit(code)
