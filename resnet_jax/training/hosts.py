"""Several processes in one run: how they meet, agree, and notice that one of them is gone.

Every process runs the same program on its own devices and its own share of each batch. Process 0
decides what only one can decide, prints, and writes what is not a checkpoint.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from resnet_jax.errors import ResNetJaxError

T = TypeVar("T")

# Seconds. The first two together are less than the 30 in which a lost process ends the others.
HEARTBEAT_TIMEOUT = 15
SHUTDOWN_TIMEOUT = 10
MEET_WITHIN = 300

FOR_EVER = 10**9  # milliseconds: who waits is ended by `_lost` if there is nothing to wait for

LOST = "another process of this run is gone; the same command continues from the last checkpoint"
# What a collective, or a call to the coordinator, says when its other end is gone.
_OF_A_LOST_PEER = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|Barrier|heartbeat|coordination"
)


class _Membership:
    """Of this process, for its lifetime."""

    joined = False
    failed = False  # it tried to join
    ending: int | None = None  # the code with which it is about to end
    questions = itertools.count()  # which all processes ask in the same order
    lost = threading.Lock()  # taken by the first to notice that a peer is gone
    on_terminate: Any = None  # C++ holds a pointer to it


class UnmetError(ResNetJaxError):
    """The other processes did not come; the same command tries again."""

    exit_code = 75


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    meet_within: int | None = None,
) -> None:
    """Meets the other processes of a run; called once, before anything is computed.

    JAX finds them itself under Slurm, Open MPI, Kubernetes and on TPUs.

    Args:
        coordinator: elsewhere, ``HOST:PORT`` of process 0, the same for all.
        num_processes: elsewhere, how many there are.
        process_id: elsewhere, which of them this one is, from 0.
        meet_within: seconds in which all of them must have started. Default: `MEET_WITHIN`.

    Raises:
        UnmetError: they do not meet in time.
        ResNetJaxError: an option is missing or makes no sense.
    """
    meet_within = MEET_WITHIN if meet_within is None else meet_within
    if meet_within < 1:
        raise ResNetJaxError(f"--meet-within {meet_within} makes no sense: give at least 1 s")
    _check(coordinator, num_processes, process_id)
    # What the runtime has to say of a lost peer is many lines, of which `LOST` is the gist.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax
    from jax._src.lib import _jax

    from resnet_jax.memory import keep_freed_memory

    keep_freed_memory()  # the runtime starts threads
    # Signals are this package's own matter: `training.loop` agrees on the step to stop at.
    jax.config.update("jax_enable_preemption_service", False)
    make_client = _jax.get_distributed_runtime_client
    try:
        # Without a callback of ours the runtime aborts this process when a peer is lost, and
        # `jax.distributed.initialize` takes none.
        _jax.get_distributed_runtime_client = partial(make_client, missed_heartbeat_callback=_lost)
        _on_terminate(_lost)
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=meet_within,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except ValueError as error:
        raise ResNetJaxError(
            "--distributed found no cluster (Slurm, Open MPI, Kubernetes, TPU): give --coordinator "
            "HOST:PORT --num-processes N --process-id I"
        ) from error
    except RuntimeError as error:
        _Membership.failed = True
        where, reason = coordinator or "of this cluster", str(error).partition("\n")[0]
        if "DEADLINE_EXCEEDED" not in reason and "bad_cast" not in reason:
            raise ResNetJaxError(f"--distributed failed: {reason}") from error
        raise UnmetError(
            f"--coordinator {where}: the processes did not meet within {meet_within} s: start all "
            f"of them, with the address of process 0 and each with its own --process-id"
        ) from error
    finally:
        _jax.get_distributed_runtime_client = make_client
    _Membership.joined = True


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    options = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    missing = [name for name, value in options.items() if value is None]
    if given and missing:
        raise ResNetJaxError(
            f"{' '.join(given)} needs {' and '.join(missing)} too: give all three, or none where "
            f"JAX knows the cluster"
        )
    if coordinator is None or num_processes is None or process_id is None:
        return
    if not re.fullmatch(r".+:\d+", coordinator) or int(coordinator.rpartition(":")[2]) > 65535:
        raise ResNetJaxError(f"--coordinator {coordinator} is no address: expected HOST:PORT")
    if num_processes < 1:
        raise ResNetJaxError(f"--num-processes {num_processes} makes no sense: give at least 1")
    if not 0 <= process_id < num_processes:
        raise ResNetJaxError(
            f"--process-id {process_id} makes no sense: give 0 to {num_processes - 1}"
        )
    if process_id == 0:
        try:  # the runtime's own attempt may end in a segmentation fault
            socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
        except OSError as error:
            raise ResNetJaxError(
                f"--coordinator {coordinator} cannot be opened "
                f"({os.strerror(error.errno or 0)}): give a free port of process 0's host"
            ) from error


def leave(code: int) -> None:
    """Ends the membership of a process that is about to exit with ``code``; nothing for others.

    All leave together, or this one after `SHUTDOWN_TIMEOUT`; then it is gone for the others.
    """
    if _Membership.failed:  # JAX would wait at exit for those that it never met
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if not _Membership.joined:
        return
    _Membership.ending = code
    if sys.exc_info()[1] is None:  # else what went wrong is shown first, and JAX leaves at exit
        import jax

        with suppress(RuntimeError, ValueError):
            jax.distributed.shutdown()


def _lost(*_: object) -> None:
    """Ends this process, which cannot go on: a collective with a process that is gone may hang.

    Called by whoever notices first, the training loop or a thread of the runtime.
    """
    _Membership.lost.acquire()
    if _Membership.ending is not None:
        os._exit(_Membership.ending)
    with suppress(OSError):
        os.write(2, f"resnet-jax: {LOST}\n".encode())
    os._exit(75)


def _on_terminate(action: Callable[..., None]) -> None:
    """Has C++ call ``action`` where it would end the process because of an exception.

    In jaxlib 0.10 the callback for missed heartbeats gets an argument that cannot be converted to
    Python, which is such an exception. Without GNU's C++ library the process aborts, as it does
    without a callback.
    """
    with suppress(OSError, AttributeError):
        function = ctypes.CFUNCTYPE(None)(action)
        ctypes.CDLL("libstdc++.so.6")._ZSt13set_terminatePFvvE(function)
        _Membership.on_terminate = function


def several() -> bool:
    """Whether this process is one of several; asks for no device where it is not."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    import jax

    return not several() or jax.process_index() == 0


@contextmanager
def peers() -> Iterator[None]:
    """Within it, an error of a collective whose other end is gone ends this process by `_lost`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if several() and _OF_A_LOST_PEER.search(str(error)):
            _lost()
        raise


def from_first(make: Callable[[], Any]) -> Any:
    """What ``make`` returns on process 0, a value that JSON knows, on every process.

    The others wait as long as it takes, and through the coordinator: a collective would give up.

    Raises:
        ResNetJaxError: on every process, if ``make`` raises one.
    """
    if not several():
        return make()
    board, key = _board(), f"resnet_jax/from_first/{next(_Membership.questions)}"
    if is_first():
        try:
            board.key_value_set(key, json.dumps([make(), None, 0]))
        except ResNetJaxError as error:
            board.key_value_set(key, json.dumps([None, str(error), error.exit_code]))
            raise
    value, message, code = json.loads(board.blocking_key_value_get(key, FOR_EVER))
    if message is not None:
        raised = ResNetJaxError(message)
        raised.exit_code = code
        raise raised
    return value


def after_first(make: Callable[[], T]) -> T:
    """What ``make`` returns on each process, on the others when process 0 has it.

    So that what process 0 prepares and caches is there for those that share its disk.

    Raises:
        ResNetJaxError: on every process, if ``make`` raises one on process 0.
    """
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()


def check_same(what: str, digest: str, remedy: str) -> None:
    """Refuses to begin where the processes were not given the same.

    Args:
        what: is compared.
        digest: of it.
        remedy: what to do about it.

    Raises:
        ResNetJaxError: on every process, with the first that differs from process 0.
    """
    if not several():
        return
    import jax

    board, key = _board(), f"resnet_jax/same/{next(_Membership.questions)}"
    board.key_value_set(f"{key}/{jax.process_index()}", digest)
    found = [
        board.blocking_key_value_get(f"{key}/{n}", FOR_EVER) for n in range(jax.process_count())
    ]
    for process, other in enumerate(found):
        if other != found[0]:
            raise ResNetJaxError(
                f"process {process} has {what} {other[:12]} and process 0 {found[0][:12]}: {remedy}"
            )


def _board() -> Any:
    """The coordinator's table of keys and values."""
    from jax._src import distributed

    return distributed.global_state.client
