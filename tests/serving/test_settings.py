"""serving/settings.py: flags and the configuration file."""

import logging
import os

import pytest

from serving.errors import InvalidArgumentError
from serving.settings import Settings

BASE = "--model_base_path=/models/m"


def test_defaults_are_the_originals():
    """Without flags, every value is TensorFlow Serving's."""
    settings = Settings.from_argv([BASE])
    (model,) = settings.models
    assert (model.name, model.base_path) == ("default", "/models/m")
    assert not model.HasField("model_version_policy")
    assert (settings.host, settings.port, settings.grpc_socket_path) == ("0.0.0.0", 8500, "")
    assert (settings.grpc_channel_arguments, settings.file_system_poll_wait_seconds) == ((), 1.0)
    assert (settings.max_num_load_retries, settings.load_retry_interval_micros) == (5, 60_000_000)
    assert settings.grpc_max_threads == 4 * len(os.sched_getaffinity(0))


@pytest.mark.parametrize("wait_s", [-5, -1, 0, 0.5])
def test_a_wait_between_scans_may_be_negative(wait_s):
    """As in TensorFlow Serving, which then never looks; a fraction is for tests."""
    settings = Settings.from_argv([BASE, f"--file_system_poll_wait_seconds={wait_s}"])
    assert settings.file_system_poll_wait_seconds == wait_s


@pytest.mark.parametrize(("cores", "threads", "runs"), [(1, 1, 2), (2, 1, 3), (4, 1, 5), (16, 4, 5)])
def test_the_engine_takes_the_cores_that_there_are(monkeypatch, cores, threads, runs):
    """A core for each run of a few, one run in reserve, and several cores for each where there are many."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    settings = Settings.from_argv([BASE])
    assert (settings.engine_threads, settings.engine_runs) == (threads, runs)


@pytest.mark.parametrize(
    ("argument", "value"), [("", True), ("=true", True), ("=false", False), ("=1", True), ("=0", False)]
)
def test_switches_take_three_forms(argument, value):
    """A switch is --flag, --flag=true or --flag=false."""
    assert Settings.from_argv([BASE, f"--enable_model_warmup{argument}"]).enable_model_warmup is value


def test_all_bad_values_are_reported_at_once():
    """One start shows every flag that is wrong, what was expected and what came."""
    with pytest.raises(InvalidArgumentError) as raised:
        Settings.from_argv(
            [BASE, "--port=70000", "--drain_seconds=soon", "--engine=onnx", "--enable_model_warmup=maybe"]
        )
    assert str(raised.value).splitlines() == [
        "--port: Expected an integer from 0 to 65535. Received: '70000'",
        "--enable_model_warmup: Expected true or false. Received: 'maybe'",
        "--engine: Expected one of auto, int8, tflite, tensorflow. Received: 'onnx'",
        "--drain_seconds: Expected a number of at least 0. Received: 'soon'",
    ]


def test_a_flag_without_effect_is_a_warning(caplog):
    """A command line for TensorFlow Serving works here; as there, a flag that nobody knows does not stop the start."""
    ignored = ["--enable_batching", "--tensorflow_intra_op_parallelism=2", "--modle_name=x", "--grpc_max=3"]
    with caplog.at_level(logging.WARNING):
        assert Settings.from_argv([BASE, *ignored]).models[0].name == "default"
    assert [record.getMessage() for record in caplog.records] == [
        f"Ignored, as it has no effect here: {flag}" for flag in ignored
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (["--model_base_path=models/m"], "Expected model default to have an absolute path or URI; got base_path()=mod"),
        ([BASE, "--port=0"], "Expected --port above 0, or --grpc_socket_path"),
        (["--model_config_file=/nowhere"], "Expected a readable --model_config_file"),
        *(
            ([BASE, f"--{flag}=/m\udce8"], f"--{flag}: Expected text in UTF-8")
            for flag in ("model_base_path", "model_name", "grpc_socket_path")
        ),
        (
            [BASE, "--grpc_channel_arguments=grpc.x=3000000000"],
            "--grpc_channel_arguments: Expected an integer of 32 bits. Received: '3000000000'",
        ),
        *(
            ([BASE, f"--host={host}"], "--host: Expected an address")
            for host in ("", "*", "::1%lo", "[::1]:80", "localhost:80")
        ),
    ],
)
def test_start_errors(argv, message):
    """What cannot work is refused before anything is loaded."""
    with pytest.raises(InvalidArgumentError, match=message[:60].replace("(", r"\(").replace(")", r"\)")):
        Settings.from_argv(argv)


def test_a_config_file_replaces_the_flags(tmp_path):
    """Names, paths and policies come from the file."""
    path = tmp_path / "models.config"
    path.write_text(
        """
        model_config_list {
          config { name: "a" base_path: "/models/a" model_platform: "tensorflow" }
          config {
            name: "b" base_path: "/models/b" model_platform: "tensorflow"
            model_version_policy { specific { versions: 4 } }
          }
        }
        """
    )
    first, second = Settings.from_argv([f"--model_config_file={path}", "--model_name=ignored"]).models
    assert (first.name, first.base_path, first.HasField("model_version_policy")) == ("a", "/models/a", False)
    assert (second.name, list(second.model_version_policy.specific.versions)) == ("b", [4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "Invalid protobuf file: .*Error parsing text-format tensorflow.serving.ModelServerC"),
        (
            'model_config_list { config { version_labels { key: "a" } } }',
            "without what only TensorFlow .*version_labels",
        ),
        ("", "Expected at least one model"),
        (
            'model_config_list { config { name: "a" base_path: "/a" } }',
            'Expected model a to have model_platform: "tensorflow"',
        ),
        (
            'model_config_list { config { name: "a" base_path: "/a" model_platform: "tensorflow" }'
            ' config { name: "a" base_path: "/b" model_platform: "tensorflow" } }',
            "Illegal to list model a multiple times in config list",
        ),
    ],
)
def test_a_bad_config_file_is_refused(tmp_path, text, message):
    """The message says which part of the file is wrong."""
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        Settings.from_argv([f"--model_config_file={path}"])


def test_channel_arguments_are_integers_where_they_look_like_it():
    """gRPC knows arguments of two types, and ignores one of the wrong type."""
    settings = Settings.from_argv([BASE, "--grpc_channel_arguments=grpc.max_connection_age_ms=10000,grpc.x=y=z,"])
    assert settings.grpc_channel_arguments == (("grpc.max_connection_age_ms", 10_000), ("grpc.x", "y=z"))
    with pytest.raises(InvalidArgumentError, match="--grpc_channel_arguments: Expected key=value, by commas"):
        Settings.from_argv([BASE, "--grpc_channel_arguments=age"])
