"""The error that users see, how errors end the command, and the escaping of printed text."""

import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

STOPPED = "stopped by a signal; the same command continues"
# What JSON or YAML of another form raises, also by numbers too large and by nesting too deep.
MALFORMED = ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError


class ResNetJaxError(Exception):
    """A failure that the user can mend.

    The message is one line: the offending value, what was expected, and the option or command
    that mends it. The command line prints it without a traceback and exits with ``exit_code``.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DivergedError(ResNetJaxError):
    """A loss, a gradient or a parameter of a run was not finite."""


def message_and_code(error: BaseException) -> tuple[str, int | None]:
    """Return the line and the exit code with which an error ends the command; None for a fault."""
    match error:
        case ResNetJaxError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            # Before or after training, which raises a `ResNetJaxError`: nothing is half-written.
            return STOPPED, 75
        case _ if out_of_memory(error):
            return "there is not enough memory: free some, raise ulimit -v, or set JAX_PLATFORMS", 1
        case OSError():
            # No code expected this of a file system; the error's own message names the file.
            return f"{error}: mend that and run the same command", 1
    return repr(error), None  # its traceback tells more


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, in Python or in XLA, all of whose errors have one type."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def importing(what: str, requirement: str = "") -> Iterator[None]:
    """Turn a failed import into the error that says what needs it and what installs it."""
    try:
        yield
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError)
        reason = f"needs {error.name}" if absent else f"cannot be imported ({error})"
        raise ResNetJaxError(f"{what} {reason}: pip install {requirement or error.name}") from error


def command(*words: object) -> str:
    """Return a command of the package, quoted so that it can be pasted into a shell."""
    return f"`resnet-jax {shlex.join(map(str, words))}`"


def printable(text: str) -> str:
    """Escape what a name may hold but no terminal should get: control characters, stray bytes."""
    # Controls, surrogates, line and paragraph separators, and what changes a text's direction.
    unsafe = {"Cc", "Cs", "Zl", "Zp"}
    unsafe |= {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return "".join(
        character.encode("unicode_escape").decode()
        if unsafe & {unicodedata.category(character), unicodedata.bidirectional(character)}
        else character
        for character in text
    )
