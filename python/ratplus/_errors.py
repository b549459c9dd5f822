"""Exceptions: the texts are those of the program `ratplus`."""


class Error(Exception):
    """What ratplus raises."""


class InputError(Error, ValueError):
    """What was given cannot be used: a file, an option, a prompt. Nothing ran."""


class RunError(Error, RuntimeError):
    """It ran and failed, or it cannot run any more."""


class QueueFull(Error):
    """There is no room for more requests.

    Attributes:
        retry_after: Seconds after which there may be.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
