"""The one error that users meet."""


class ResNetJaxError(Exception):
    """A failure that the user can mend.

    The message is one line: the offending value, what was expected, and the option or command
    that mends it. The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code = 1
