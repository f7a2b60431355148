"""The command ``resnet-jax``, or ``python -m resnet_jax``."""

import io
import os
import signal
import sys

from resnet_jax.memory import COMPUTE, restart_tuned
from resnet_jax.signals import SIGNALS, end_at_a_signal


def main() -> int:
    """Run `resnet_jax.cli.main`; verbs that compute first restart with settings of malloc."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a restart resets handlers
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:  # closed: the next file opened would take its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
            os.set_inheritable(number, True)
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may not fit the encoding
    if sys.argv[1:2] != ["train"]:  # it may share a GPU with a training run
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if COMPUTE & set(sys.argv[1:2]) and not {"-h", "--help"} & set(sys.argv):
        restart_tuned()  # before the imports, which would otherwise run twice
    end_at_a_signal()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    from resnet_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
