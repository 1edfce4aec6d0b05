"""The flags: TensorFlow Serving's names and syntax, and a few of our own."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from google.protobuf import text_format

from contract import messages_pb2 as messages
from serving.engines import ENGINES
from serving.errors import InvalidArgumentError
from serving.versions import ModelConfig, default_policy

log = logging.getLogger(__name__)

MOST_CORES_ALONE = 4  # with more, a run has several, for each run keeps its own copy of the model


@dataclass(frozen=True)
class Settings:
    """Everything that can be tuned.

    Each is the flag of its name, see `_flags`; `models` is what --model_base_path or --model_config_file says.
    """

    models: tuple[ModelConfig, ...]
    host: str
    port: int
    rest_api_port: int
    grpc_socket_path: str
    file_system_poll_wait_seconds: float
    grpc_channel_arguments: tuple[tuple[str, int | str], ...]
    grpc_max_threads: int
    max_num_load_retries: int
    load_retry_interval_micros: int
    enable_model_warmup: bool
    engine: str
    engine_threads: int
    engine_runs: int
    drain_seconds: float

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Settings:
        """Read the command line, without the program's name; flags that have no effect are logged.

        Raises:
            InvalidArgumentError: Bad values, all of them at once, or a bad configuration file.
        """
        known, others = _parser().parse_known_args(argv)
        for argument in others:
            log.warning(_no_effect(argument))
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name, (read, expected, default, _) in _flags().items():
            text = getattr(known, name)
            try:
                values[name] = default if text is None else read(text)
            except ValueError:
                problems.append(f"Expected --{name} to be {expected}. Received: {text!r}")
        if problems:
            raise InvalidArgumentError("\n".join(problems))
        if values["port"] == 0 and not values["grpc_socket_path"]:
            raise InvalidArgumentError("Expected --port above 0, or --grpc_socket_path. Received: --port=0 alone")
        if not values.pop("enable_grpc_healthcheck_service"):
            log.warning(
                "The flag --enable_grpc_healthcheck_service=false has no effect here: the health service is always on"
            )
        models = _models(values.pop("model_name"), values.pop("model_base_path"), values.pop("model_config_file"))
        return cls(models=models, **values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgumentError(message)


def _flags() -> dict[str, tuple[Callable[[str], Any], str, Any, str]]:
    """Return how each flag is read, what is expected of it, its default, and what it means."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    runs = min(cpus, MOST_CORES_ALONE)
    count, seconds, switch = "an integer of 0 or more", "a number of 0 or more", "true or false"
    return {
        "host": (str, "an IPv4 address", "0.0.0.0", "where to listen"),  # noqa: S104  # as the original
        "port": (_integer(0, 65535), "an integer from 0 to 65535", 8500, "TCP port of gRPC; 0 for none"),
        "rest_api_port": (_integer(0, 65535), "an integer from 0 to 65535", 0, "TCP port for REST; 0 for none"),
        "grpc_socket_path": (str, "a path", "", "UNIX socket to listen on too"),
        "model_name": (str, "a name", "default", "name of the model at --model_base_path"),
        "model_base_path": (str, "a path", "", "folder of a model, with a folder for each version"),
        "model_config_file": (str, "a path", "", "models and version policies, in place of --model_base_path"),
        "file_system_poll_wait_seconds": (
            _seconds,
            seconds,
            1.0,
            "time between two looks for new versions; 0 looks once",
        ),
        "grpc_channel_arguments": (
            _channel_arguments,
            "key=value, by commas",
            (),
            "gRPC's own options, such as the age at which a connection is ended",
        ),
        "grpc_max_threads": (
            _integer(1),
            "an integer of 1 or more",
            4 * cpus,
            "requests at a time; more are refused with RESOURCE_EXHAUSTED",
        ),
        "max_num_load_retries": (_integer(0), count, 5, "how often a version that fails to load is tried again"),
        "load_retry_interval_micros": (_integer(0), count, 60_000_000, "wait before each of these"),
        "enable_model_warmup": (_boolean, switch, True, "run a version's recorded requests before it is available"),
        "enable_grpc_healthcheck_service": (_boolean, switch, True, "the health service; here it is always on"),
        "engine": (
            _choice(ENGINES),
            f"one of {', '.join(ENGINES)}",
            "auto",
            "what runs a version; auto takes int8 or TFLite where a version has the file",
        ),
        "engine_threads": (
            _integer(1),
            "an integer of 1 or more",
            cpus // runs,
            "threads that one run of a model may use",
        ),
        "engine_runs": (
            _integer(1),
            "an integer of 1 or more",
            runs + 1,
            "runs of a TFLite model at a time; each keeps its own copy of it",
        ),
        "drain_seconds": (_seconds, seconds, 10.0, "how long requests may go on after SIGTERM"),
    }


# The flags of TensorFlow Serving that do nothing here. Source: tensorflow/serving 2.20, model_servers/main.cc.
_WITHOUT_EFFECT = """
    allow_version_labels_for_unavailable_models batching_parameters_file enable_batching
    enable_per_model_batching_parameters enable_profiler enable_serialization_as_tensor_content
    enable_signature_method_name_check experimental_cycle_interval_secs flush_filesystem_caches
    mixed_precision model_config_file_poll_wait_seconds monitoring_config_file num_load_threads
    num_request_iterations_for_warmup num_unload_threads per_process_gpu_memory_fraction platform_config_file
    prefer_tflite_model remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support rest_api_num_threads
    rest_api_timeout_in_ms saved_model_tags skip_initialize_tpu ssl_config_file
    tensorflow_inter_op_parallelism tensorflow_intra_op_parallelism tensorflow_session_config_file
    tensorflow_session_parallelism thread_pool_factory_config_file xla_cpu_compilation_enabled
"""


def _no_effect(argument: str) -> str:
    name = argument.removeprefix("--").partition("=")[0]
    if name in _WITHOUT_EFFECT.split():
        return f"The flag --{name} of TensorFlow Serving has no effect here"
    return f"Unknown argument, ignored: {argument}"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m serving", description="TensorFlow Serving's flags, and a few of our own.", allow_abbrev=False
    )
    for name, (read, expected, default, meaning) in _flags().items():
        optional = {"nargs": "?", "const": "true"} if read is _boolean else {}
        help_ = f"{meaning}: {expected} ({default or 'none'})"
        parser.add_argument(f"--{name}", metavar="VALUE", help=help_, **optional)  # type: ignore[arg-type]
    return parser


def _integer(lowest: int, highest: float = math.inf) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise ValueError(text)
        return value

    return read


def _seconds(text: str) -> float:
    value = float(text)
    if not (0 <= value < math.inf):
        raise ValueError(text)
    return value


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def _choice(allowed: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(text)
        return text

    return read


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """Read `key=value,key=value`; a value that is an integer is one.

    Source: tensorflow/serving 2.20, model_servers/server.cc.
    """
    arguments: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise ValueError(text)
        arguments.append((key, int(value) if value.removeprefix("-").isdecimal() else value))
    return tuple(arguments)


def _models(name: str, base_path: str, config_file: str) -> tuple[ModelConfig, ...]:
    if config_file:
        configs = list(_read_config(Path(config_file)).model_config_list.config)
    elif base_path:
        configs = [messages.ModelConfig(name=name, base_path=base_path, model_platform="tensorflow")]
    else:
        raise InvalidArgumentError(
            "Both server_options.model_base_path and server_options.model_config_file are empty!"
        )
    problems = [problem for config in configs for problem in _problems(config)]
    names = [config.name for config in configs]
    problems += [f"Illegal to list model {name} multiple times in config list" for name in sorted(_repeated(names))]
    if not configs:
        problems.append(f"Expected at least one model in {config_file}. Received none")
    if problems:
        raise InvalidArgumentError("\n".join(problems))
    return tuple(
        ModelConfig(
            config.name,
            Path(config.base_path),
            config.model_version_policy if config.HasField("model_version_policy") else default_policy(),
        )
        for config in configs
    )


def _read_config(path: Path) -> messages.ModelServerConfig:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), messages.ModelServerConfig())
    except OSError as exc:
        raise InvalidArgumentError(f"Expected a readable --model_config_file. {exc}") from exc
    except (text_format.ParseError, UnicodeDecodeError) as exc:
        # Ends with the parser's line and column: a field that is not supported, such as version_labels, is named there.
        raise InvalidArgumentError(
            f"Invalid protobuf file: '{path}'. Error parsing text-format tensorflow.serving.ModelServerConfig: {exc}"
        ) from exc


def _problems(config: messages.ModelConfig) -> list[str]:
    problems = []
    if not config.name:
        problems.append(f"Expected every model to have a name. None for base_path: {config.base_path!r}")
    if not config.base_path.startswith("/"):
        problems.append(
            f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
        )
    if config.model_platform != "tensorflow":
        problems.append(
            f'Expected model {config.name} to have model_platform: "tensorflow". Received: {config.model_platform!r}'
        )
    return problems


def _repeated(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}
