"""gateway/settings.py: what the environment may say."""

from __future__ import annotations

from hashlib import sha256

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
    assert "Expected an integer from 1 to 65535. Received: 'http'" in lines[1]
    assert "SHA-256" in lines[3] and "secret" not in lines[3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("PATH_PREFIX", each)
            for each in ("classifier", "/", "/a/", "//a", "/a//b", "/a b", "/a?b", "/..", "/a/./b")
        ),
        *(
            ("ALLOWED_ORIGINS", each)
            for each in ("*", "null", "shop.test", "https://shop.test/", "https://*.shop.test")
        ),
        *(("HOST", each) for each in ("", "*", "127.0.0.1:80", "[::1]:80", "fe80::1%eth0", "http://a")),
        *(("MODEL_NAME", each) for each in ("", " ")),
        *(("TRIAL_FOLDER", each) for each in ("/none", "/dev/null")),
        ("MAX_PIXELS", "178956971"),
        ("API_KEYS", sha256(b"").hexdigest()),
        ("API_KEYS", f"{'a' * 64},{sha256(b'').hexdigest()}"),
        *(("MODEL_ADDRESS", each) for each in ("", "model", "::1", "::1:8500", "http://model:8500", "model:8500/")),
        *(("ALLOWED_ORIGINS", each) for each in ("https://me@shop.test", "https://shop.test:0", "https://")),
    ],
)
def test_what_no_request_would_match_is_refused(name: str, value: str) -> None:
    """A prefix or an origin in another form than browsers send, and what a server or a library would not take."""
    with pytest.raises(SettingsError, match=f"GATEWAY_{name}: Expected .* Received: "):
        Settings.from_env({f"GATEWAY_{name}": value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("HOST", ("0.0.0.0", "::", "[::1]", "::ffff:127.0.0.1", "localhost", "my_host")),
        ("MODEL_ADDRESS", ("model:8500", "[::1]:8500", "dns:///m.svc:8500", "unix:/run/m.sock", "ipv6:[::1]:8500")),
    ],
)
def test_addresses_have_many_forms(name: str, values: tuple[str, ...]) -> None:
    """Names, IPv4 and IPv6, and the targets of gRPC."""
    for value in values:
        assert getattr(Settings.from_env({f"GATEWAY_{name}": value}), name.lower()) == value


@pytest.mark.parametrize("prefix", ["", "/classifier", "/a/b-c_d.e~f/..g"])
def test_a_prefix_is_a_path(prefix: str) -> None:
    """Of one part or several; empty means none, as Compose passes it."""
    assert Settings.from_env({"GATEWAY_PATH_PREFIX": prefix}).path_prefix == prefix


def test_limits_that_no_request_could_meet_are_refused() -> None:
    """A body that is allowed, and for which there would never be room."""
    with pytest.raises(SettingsError, match="GATEWAY_MAX_HELD_BYTES: Expected at least 33554432"):
        Settings.from_env({"GATEWAY_MAX_HELD_BYTES": "1000"})
