"""gateway/settings.py: what the environment may say."""

from __future__ import annotations

import pytest

from gateway.settings import Settings, SettingsError


def test_variables_are_read_by_prefix_and_name() -> None:
    """Each type is read, and what is not set keeps its default."""
    settings = Settings.from_env({"GATEWAY_PORT": "80", "GATEWAY_MODEL_TIMEOUT_S": "1.5", "GATEWAY_KEY": "a client's"})
    assert (settings.port, settings.model_timeout_s, settings.threads) == (80, 1.5, Settings().threads)


def test_all_bad_values_are_named_at_once() -> None:
    """Someone who made three mistakes starts once, not three times."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(
            {
                "GATEWAY_PORT": "http",
                "GATEWAY_THREADS": "0",
                "GATEWAY_MODEL_TIMEOUT_S": "nan",
                "GATEWAY_SHUTDOWN_DELAY_S": "inf",
                "GATEWAY_FETCH_ALLOW": "localhost",
                "GATEWAY_API_KEYS": "secret",
                "GATEWAY_FETCH_USER_AGENT": "a\nb",
                "GATEWAY_PROT": "80",
            }
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "GATEWAY_PROT",
        "GATEWAY_PORT",
        "GATEWAY_THREADS",
        "GATEWAY_API_KEYS",
        "GATEWAY_MODEL_TIMEOUT_S",
        "GATEWAY_SHUTDOWN_DELAY_S",
        "GATEWAY_FETCH_USER_AGENT",
        "GATEWAY_FETCH_ALLOW",
    ]
    assert "Expected an integer of at least 1. Received: 'http'" in lines[1]
    assert "SHA-256" in lines[3] and "secret" not in lines[3]


def test_limits_that_no_request_could_meet_are_refused() -> None:
    """A body that is allowed, and for which there would never be room."""
    with pytest.raises(SettingsError, match="GATEWAY_MAX_HELD_BYTES: Expected at least 33554432"):
        Settings.from_env({"GATEWAY_MAX_HELD_BYTES": "1000"})
