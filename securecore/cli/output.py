"""What one run of a command has put on standard output: what prints in parts says so, and what prints the error asks."""

import click


class Output:
    """One run's; main.py makes it, and it is the object of the command's context."""

    def __init__(self, *, as_json: bool = False) -> None:
        """*as_json* is whether a program reads it, which is to find errors as JSON too."""
        self.as_json = as_json
        self.is_in_part = False
        """Whether the beginning of something is there, and its end is not."""


def current() -> Output:
    """Return that of the command that runs; one of its own where none does."""
    context = click.get_current_context(silent=True)
    return Output() if context is None else context.ensure_object(Output)
