"""The exceptions whose text is meant for the person at the keyboard."""


class UserError(ValueError):
    """A mistake of the user's, told in one line: what, where, the fix. Commands exit 2 on it."""


class RunError(RuntimeError):
    """The run cannot go on, through no fault in its arguments; one line. Commands exit 1 on it."""


def one_line(error: BaseException) -> str:
    """Class and text of an exception, on one line; the text alone where that is for the user."""
    kind = "" if isinstance(error, UserError | RunError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())
