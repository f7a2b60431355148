"""The one error that users meet, and how text is shown to them."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager


class ResNetJaxError(Exception):
    """A failure that the user can mend.

    The message is one line: the offending value, what was expected, and the option or command
    that mends it. The command line prints it without a traceback and exits with ``exit_code``.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def importing(what: str, requirement: str) -> Iterator[None]:
    """Turn an import that fails into the error that says what needs it and what installs it."""
    try:
        yield
    except ImportError as error:
        missing = error.name or error
        raise ResNetJaxError(f"{what} needs {missing}: pip install {requirement}") from error


def printable(text: str) -> str:
    """Escape what a name may hold and a terminal may not get: control characters, stray bytes."""
    # Controls, surrogates, breaks of lines and paragraphs; what turns the direction of a line.
    unsafe = {"Cc", "Cs", "Zl", "Zp"}
    unsafe |= {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return "".join(
        character.encode("unicode_escape").decode()
        if unsafe & {unicodedata.category(character), unicodedata.bidirectional(character)}
        else character
        for character in text
    )
