"""How a program refuses its command line: in one line, and not below a list of all options."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn


class Arguments(ArgumentParser):
    """A parser whose errors say what is wrong and where to find help; those of a command name its own help."""

    def error(self, message: str) -> NoReturn:
        """End with exit status 2."""
        self.exit(2, f"{self.prog}: {message}. For help: {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]  # the overloads are for types of namespaces
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Namespace, list[str]]:
        """Refuse what is unknown here, so that a command does, and not the program around it; and an empty argument.

        That is a variable without a value, and would be the current folder. An option's value may be empty.
        """
        given = sys.argv[1:] if args is None else list(args)
        if any(not each and not before.startswith("-") for before, each in pairwise(["", *given])):
            self.error("expected no empty argument")
        found, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown
