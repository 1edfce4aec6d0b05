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
    bad = {
        "GATEWAY_PORT": "http",
        "GATEWAY_THREADS": "0",
        "GATEWAY_MODEL_TIMEOUT_S": "nan",
        "GATEWAY_SHUTDOWN_DELAY_S": "inf",
        "GATEWAY_FETCH_ALLOW": "localhost",
        "GATEWAY_API_KEYS": "secret",
        "GATEWAY_FETCH_USER_AGENT": "a\nb",
        "GATEWAY_PROT": "80",
    }
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(bad)
    lines = dict(line.split(": ", 1) for line in str(caught.value).splitlines())
    assert lines.keys() == bad.keys()
    assert lines["GATEWAY_PORT"] == "Expected an integer from 1 to 65535. Received: 'http'"
    assert "SHA-256" in lines["GATEWAY_API_KEYS"] and "secret" not in lines["GATEWAY_API_KEYS"]


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
        ("MODEL_TIMEOUT_S", "1e10"),
        ("MAX_HELD_BYTES", "33554431"),
        ("API_KEYS", sha256(b"").hexdigest()),
        ("API_KEYS", f"{'a' * 64},{sha256(b'').hexdigest()}"),
        *(("MODEL_ADDRESS", each) for each in ("", "model", "::1", "::1:8500", "http://model:8500", "model:8500/")),
        *(("ALLOWED_ORIGINS", each) for each in ("https://me@shop.test", "https://shop.test:0", "https://")),
        *(("ALLOWED_ORIGINS", each) for each in ("https://shop.test:443", "http://[::1]:80", "https://Bücher.test")),
        *(("ALLOWED_ORIGINS", f"http://{each}") for each in ("a.test:99999", "127.1", "[:::]", "[::0:1]:3000", "a..b")),
    ],
)
def test_what_no_request_would_match_is_refused(name: str, value: str) -> None:
    """Other forms than browsers send, less room than a body may need, and what a server or library would not take."""
    with pytest.raises(SettingsError, match=f"GATEWAY_{name}: Expected .* Received: "):
        Settings.from_env({f"GATEWAY_{name}": value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("HOST", ("0.0.0.0", "::", "[::1]", "::ffff:127.0.0.1", "localhost", "my_host")),
        ("MODEL_ADDRESS", ("model:8500", "[::1]:8500", "dns:///m.svc:8500", "unix:/run/m.sock", "ipv6:[::1]:8500")),
        ("PATH_PREFIX", ("", "/classifier", "/a/b-c_d.e~f/..g")),
        ("ALLOWED_ORIGINS", ("http://localhost:3000,chrome-extension://abc", "http://[::1]:3000", "https://127.0.0.1")),
    ],
)
def test_values_have_many_forms(name: str, values: tuple[str, ...]) -> None:
    """Names, IPv4 and IPv6, and the targets of gRPC; a prefix of several parts or none, as Compose passes it."""
    for value in values:
        assert getattr(Settings.from_env({f"GATEWAY_{name}": value}), name.lower()) == value
