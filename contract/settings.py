"""How the text of a setting or of an option becomes its value, and what is said of a text that does not."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import Field, field
from typing import Any

MOST = sys.float_info.max


class Unfit(ValueError, ArgumentTypeError):
    """A text that is not what is expected; the message says so, and argparse shows it."""


def setting(default: Any, help: str, read: Callable[[str], Any] = str) -> Any:
    """Return the field of a setting; `default` may be a function, where it depends on the machine."""
    options: dict[str, Any] = {"default_factory" if callable(default) else "default": default}
    return field(**options, metadata={"help": help, "read": read})


def read_all(known: Mapping[str, Field[Any]], texts: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of all settings that have a text, and what is wrong with texts.

    Args:
        known: The settings, by the names that people use.
        texts: What was given, by the same names, and perhaps others.
    """
    values, problems = dict[str, Any](), list[str]()
    for name, each in known.items():
        if (text := texts.get(name)) is not None:
            try:
                values[each.name] = each.metadata["read"](text)
            except ValueError as exc:
                problems.append(f"{name}: {exc}")
    return values, problems


def number(kind: type[int] | type[float], least: float, most: float = MOST, what: str = "") -> Callable[[str], Any]:
    """Return what reads a number within limits; `what` says it where the limits alone would not be understood."""

    def read(text: str) -> int | float:
        with suppress(ValueError):
            if "_" not in text and least <= (value := kind(text)) <= most:  # Python takes 1_0 for 10
                return value
        span = f"of at least {least:g}" if most == MOST else f"from {least:g} to {most:g}"
        expected = what or f"{'an integer' if kind is int else 'a number'} {span}"
        raise Unfit(f"Expected {expected}. Received: {text!r}")

    return read


def expect(what: str, fits: Callable[[str], object]) -> Callable[[str], str]:
    """Return what reads a text that fits; for one that does not, `fits` is false or raises ValueError."""

    def read(text: str) -> str:
        with suppress(ValueError):
            if fits(text):
                return text
        raise Unfit(f"Expected {what}. Received: {text!r}")

    return read
