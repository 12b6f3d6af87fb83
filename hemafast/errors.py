"""Errors that a user can mend: one line that names what is wrong and what to do about it."""


class HemafastError(Exception):
    """A mistake in the input or the request. The command line prints it as one line and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class StoppedError(HemafastError):
    """The user stopped the command; what was saved stays valid."""

    exit_code = 130
