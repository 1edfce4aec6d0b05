"""How a program refuses its command line: in one line, and not below a list of all options."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class Arguments(ArgumentParser):
    """A parser whose errors say what is wrong and where to find help; those of a command name its own help."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        self.exit(2, f"{self.prog}: {message}. For help: {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]  # the overloads are for types of namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """Refuse what is unknown here, so that a command does, and not the program around it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _path(text: str) -> Path:
    if not text:  # a variable without a value; it would be the current folder
        raise ArgumentTypeError("Expected a path. Received none")
    return Path(text)
