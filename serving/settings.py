"""The flags: TensorFlow Serving's names and syntax, and a few of our own."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import text_format

from contract import messages_pb2 as messages
from contract.settings import MOST, expect, number, read_all, setting
from serving.engines import ENGINES
from serving.errors import InvalidArgumentError

log = logging.getLogger(__name__)

MOST_CORES_ALONE = 4  # with more cores, a run gets several, because each run keeps its own copy of the model
_HOST = expect(
    "an address or a host name, without a port and a zone",
    re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+|\[[0-9A-Fa-f:.]+\]").fullmatch,
)
_UTF8 = expect("text in UTF-8", lambda text: text.encode() or True)
_SWITCH = {"true": True, "1": True, "false": False, "0": False}
_PORT, _COUNT, _SECONDS = number(int, 0, 65535), number(int, 1), number(float, 0)
_INT32 = number(int, -(2**31), 2**31 - 1, what="an integer of 32 bits")


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(f"Expected true or false. Received: {text!r}")
    return _SWITCH[text.lower()]


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """Read `key=value,key=value`; a value that is an integer is one.

    Source: tensorflow/serving 2.20, model_servers/server.cc.
    """
    arguments: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise ValueError(f"Expected key=value, by commas. Received: {text!r}")
        arguments.append((key, _INT32(value) if value.removeprefix("-").isdecimal() else value))
    return tuple(arguments)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _runs() -> int:
    return min(cores(), MOST_CORES_ALONE)


@dataclass(frozen=True)
class Settings:
    """The model server's settings: each is the flag of its name, `help` is its line in --help.

    `models` alone is no flag: it is what --model_base_path or --model_config_file says.
    """

    host: str = setting("0.0.0.0", "address to listen on, IPv4 or IPv6", _HOST)  # noqa: S104  # as the original
    port: int = setting(8500, "TCP port for gRPC; 0 for none", _PORT)
    rest_api_port: int = setting(0, "TCP port for REST; 0 for none", _PORT)
    grpc_socket_path: str = setting("", "UNIX socket for gRPC, beside the port or in its place", _UTF8)
    model_name: str = setting("default", "name of the model in --model_base_path", _UTF8)
    model_base_path: str = setting("", "absolute path of a model's folder, with a folder for each version", _UTF8)
    model_config_file: str = setting("", "file of models and version policies, in place of --model_base_path")
    file_system_poll_wait_seconds: float = setting(
        1.0, "seconds between two scans for new versions; 0 scans once, -1 never", number(float, -MOST, what="a number")
    )
    grpc_channel_arguments: tuple[tuple[str, int | str], ...] = setting(
        (), "gRPC's options as key=value, separated by commas, such as grpc.max_connection_age_ms", _channel_arguments
    )
    grpc_max_threads: int = setting(
        lambda: 4 * cores(), "predictions at a time; more are refused with RESOURCE_EXHAUSTED", _COUNT
    )
    max_num_load_retries: int = setting(5, "retries for a version that fails to load", number(int, 0))
    load_retry_interval_micros: int = setting(60_000_000, "microseconds before each retry", number(int, 0))
    enable_model_warmup: bool = setting(
        True, "run a version's recorded requests on TensorFlow before it is available", _switch
    )
    engine: str = setting(
        "auto",
        f"what runs a version, one of {', '.join(ENGINES)}; auto takes TFLite if the version has it, and of int8 and"
        " fp32 the one that is faster here, which the first load of a version measures for 1.2 s",
        expect(f"one of {', '.join(ENGINES)}", ENGINES.__contains__),
    )
    engine_threads: int = setting(lambda: cores() // _runs(), "threads for one run of a model", _COUNT)
    engine_runs: int = setting(
        lambda: _runs() + 1, "runs of a TFLite model at a time; each keeps its own copy of it", _COUNT
    )
    drain_seconds: float = setting(10.0, "seconds for requests to finish after SIGTERM", _SECONDS)
    models: tuple[messages.ModelConfig, ...] = ()

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Settings:
        """Read the command line, without the program's name; flags that have no effect are logged.

        Raises:
            InvalidArgumentError: Bad values, all of them at once, or a bad configuration file.
        """
        defaults = cls()
        known, others = _parser(defaults).parse_known_args(argv)
        for argument in others:
            log.warning("Ignored, as it has no effect here: %s", argument)
        values, problems = read_all(_flags(), vars(known))
        if problems:
            raise InvalidArgumentError("\n".join(problems))
        settings = cls(**values)
        if settings.port == 0 and not settings.grpc_socket_path:
            raise InvalidArgumentError("Expected --port above 0, or --grpc_socket_path. Received: --port=0 alone")
        return replace(settings, host=settings.host.strip("[]"), models=_models(settings))


def _flags() -> dict[str, Field[Any]]:
    return {f"--{each.name}": each for each in fields(Settings) if each.metadata}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(message)


def _parser(defaults: Settings) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m serving",
        description="The embedded model server. It takes TensorFlow Serving's flags, and a few more."
        " Classify, Regress and MultiInference are left out.",
        allow_abbrev=False,
    )
    for name, flag in _flags().items():
        default = getattr(defaults, flag.name)
        optional: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(default, bool) else {}
        shown = "none" if default in ("", ()) else default
        parser.add_argument(name, dest=name, metavar="VALUE", help=f"{flag.metadata['help']} ({shown})", **optional)
    return parser


def _models(settings: Settings) -> tuple[messages.ModelConfig, ...]:
    name, base_path, config_file = settings.model_name, settings.model_base_path, settings.model_config_file
    if config_file:
        models = _read_config(Path(config_file))
    elif base_path:
        models = [messages.ModelConfig(name=name, base_path=base_path, model_platform="tensorflow")]
    else:
        raise InvalidArgumentError(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    problems = [problem for model in models for problem in _problems(model)]
    repeated = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    problems += [f"Illegal to list model {name} multiple times in config list" for name in sorted(repeated)]
    if not models:
        problems.append(f"Expected at least one model in {config_file}. Received none")
    if problems:
        raise InvalidArgumentError("\n".join(problems))
    return tuple(models)


def _read_config(path: Path) -> list[messages.ModelConfig]:
    try:
        text = path.read_text(encoding="utf-8")
        return list(text_format.Parse(text, messages.ModelServerConfig()).model_config_list.config)
    except OSError as exc:
        raise InvalidArgumentError(f"Expected a readable --model_config_file. {exc}") from exc
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        raise InvalidArgumentError(
            f"Invalid protobuf file: '{path}'. Error parsing text-format tensorflow.serving.ModelServerConfig: {exc}"
        ) from exc


def _problems(model: messages.ModelConfig) -> list[str]:
    problems = []
    if not model.name:
        problems.append(f"Expected every model to have a name. None for base_path: {model.base_path!r}")
    if not model.base_path.startswith("/"):
        problems.append(
            f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        )
    if model.model_platform != "tensorflow":
        problems.append(
            f'Expected model {model.name} to have model_platform: "tensorflow". Received: {model.model_platform!r}'
        )
    set_fields = {field.name for field, _ in model.ListFields()}
    if unsupported := sorted(set_fields & {"model_type", "logging_config", "version_labels"}):
        problems.append(
            f"Expected model {model.name} without what only TensorFlow Serving does. Received: {', '.join(unsupported)}"
        )
    return problems
