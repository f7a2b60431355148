"""The command's signals: the first one stops it in good order, a second one at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from traceback import walk_stack
from types import FrameType

from resnet_jax.errors import STOPPED
from resnet_jax.training.callbacks import Callback

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def end_at_a_signal() -> None:
    """Make a signal end the process with one line and exit code 75: nothing needs cleanup yet."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        SIGNALS.discard(signal.SIGHUP)  # `nohup`: the command outlives its terminal
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(*_: object) -> None:
    _say(STOPPED)
    os._exit(75)


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        os.write(2, f"resnet-jax: {text}\n".encode())


class Stop(Callback):
    """The ``should_stop`` of a run; until training begins, a signal raises KeyboardInterrupt."""

    training = False
    meeting = False  # the main thread waits for other processes in C++, where no handler runs
    step = 0
    within = 0.1  # seconds in which further signals are repeats of the first one
    _interrupted = False
    _received: tuple[int, ...] = ()

    def on_start(self, step: int, total_steps: int) -> None:
        self.training, self.step = True, step

    def on_step(self, step: int) -> None:
        self.step = step

    def __call__(self) -> str | None:
        """Return the name of the first signal since training began, or None."""
        self.training = True  # also in a process that gets no callbacks
        return signal.Signals(self._received[0]).name if self._received else None

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Handle signals, then restore the old handlers; do nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        thread.start()
        wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        previous = {n: signal.signal(n, self._interrupt) for n in (*SIGNALS, signal.SIGALRM)}
        # Python would print errors that it cannot raise: an interrupt in a destructor, or
        # those of TensorStore's threads when a save has failed.
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            yield
        except Exception as error:
            if self._interrupted:  # what is interrupted may raise anything
                raise KeyboardInterrupt from error
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous.items():
                signal.signal(number, handler)
            sys.unraisablehook = hook
            signal.set_wakeup_fd(wakeup)
            sender.close()
            thread.join()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.training and number in SIGNALS:
            return  # `_listen` handles it
        if any("importlib._bootstrap>" in f.f_code.co_filename for f, _ in walk_stack(frame)):
            _end()  # C++ code that is being imported may crash on an exception
        self._interrupted = True
        # Interrupt again each second, because a library or a destructor may swallow it.
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise KeyboardInterrupt

    def _listen(self, receiver: socket.socket) -> None:
        """Receive signals in a thread: the main one runs no handler while compiling for minutes."""
        with receiver:
            while number := receiver.recv(1):
                if self.meeting and number[0] in SIGNALS:
                    _end()
                if self.training and number[0] in SIGNALS:
                    self._received += (number[0],)
                    if len(self._received) > 1:
                        os._exit(128 + number[0])  # as shells report an end by a signal
                    # `timeout` sends one signal twice: to the process and to its group.
                    receiver.settimeout(self.within)
                    with suppress(TimeoutError):
                        receiver.recv(99)
                    receiver.settimeout(None)
                    _say(f"{self()}: stopping after this step; again to end now")
