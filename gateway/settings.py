"""Everything about the gateway that can be tuned: `GATEWAY_` and the field's name, read once at the start."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gateway.fetch.addresses import AllowList
from gateway.fetch.proxy import Proxy
from gateway.fetch.urls import parse_authority
from gateway.keys import Keys, Origins

PREFIX = "GATEWAY_"
_PATH_PREFIX = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+")
_GRPC_TARGET = re.compile(r"(dns|unix|unix-abstract|vsock|ipv4|ipv6|xds|passthrough):.")
KEY_OF_CLIENTS = "GATEWAY_KEY"  # for clients (gateway.batch); the gateway ignores it


class SettingsError(ValueError):
    """All bad values in the environment, in one message."""


def _check_header(text: str) -> None:
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"Expected a user agent of printable ASCII. Received: {text!r}")


def _check_host(text: str) -> None:
    try:
        parse_authority(f"[{text.strip('[]')}]" if ":" in text else text, 1)
    except ValueError as exc:
        raise ValueError(
            f"Expected an address or a host name without a port, such as 127.0.0.1 or ::1. Received: {text!r}"
        ) from exc


def _check_name(text: str) -> None:
    if not text.strip():
        raise ValueError(f"Expected the name of a model. Received: {text!r}")


def _check_target(text: str) -> None:
    try:
        if not _GRPC_TARGET.match(text):
            parse_authority(text)
    except ValueError as exc:
        raise ValueError(
            "Expected host:port, [IPv6 address]:port, or a target of gRPC such as dns:///model:8500 or unix:/path."
            f" Received: {text!r}"
        ) from exc


def _check_prefix(text: str) -> None:
    if text and not _PATH_PREFIX.fullmatch(text):
        raise ValueError(
            "Expected a path such as /classifier, of letters, digits and -._~, without a slash at its end."
            f" Received: {text!r}"
        )


def _check_folder(text: str) -> None:
    if text and not (Path(text).is_dir() and os.access(text, os.W_OK | os.X_OK)):
        raise ValueError(f"Expected a folder that is there and can be written. Received: {text!r}")


def _check_proxy(text: str) -> None:
    if text:
        Proxy(text)


def _check_switch(text: str) -> None:
    if text not in ("on", "off"):
        raise ValueError(f"Expected on or off. Received: {text!r}")


def _setting(default: Any, help: str, check: float | range | Callable[[str], object] | None = None) -> Any:
    """Return a field; `check` is the least number, a range, or a function that raises ValueError for a bad text."""
    return field(default=default, metadata={"help": help, "check": check})


@dataclass(frozen=True)
class Settings:
    """The gateway's settings. The `help` of each field is its line in docs/settings.md."""

    host: str = _setting("0.0.0.0", "address to listen on", _check_host)  # noqa: S104  # a server in a container listens everywhere
    port: int = _setting(9696, "port to listen on", range(1, 65536))
    workers: int = _setting(2, "processes; each looks for versions itself", 1)
    threads: int = _setting(16, "requests that a process works on at once", 1)
    max_waiting: int = _setting(64, "requests per process that may wait for a thread; further ones are answered 503", 0)
    api_keys: str = _setting("", "comma-separated SHA-256 digests of the API keys; if empty, no key is needed", Keys)
    allowed_origins: str = _setting(
        "", "comma-separated origins whose pages may ask from a browser (CORS), such as https://shop.example", Origins
    )
    path_prefix: str = _setting(
        "", "path under which the gateway is reached if a proxy does not strip it, such as /classifier", _check_prefix
    )
    model_name: str = _setting("imagenet", "name of the model at the model server", _check_name)
    model_address: str = _setting(
        "localhost:8500", "the model server's gRPC address: host:port, dns:///… or unix:…", _check_target
    )
    release_file: str = _setting(
        "",
        "release document to follow, such as model-store/clothing/release.json; without it the newest version answers",
    )
    trial_folder: str = _setting(
        "",
        "writable folder, such as a volume, for at most 200 photos on which a tried version and the stable one differ;"
        " if empty, none is kept",
        _check_folder,
    )
    model_poll_s: float = _setting(0.5, "seconds between two looks for new versions", 0.01)
    model_timeout_s: float = _setting(5.0, "limit for one call of the model server", 0.01)
    request_timeout_s: float = _setting(
        20.0, "limit for a request, waiting included; if it still runs 10 s later, its process is ended", 0.01
    )
    shutdown_delay_s: float = _setting(0.0, "how long to answer after SIGTERM, while /readyz already says 503", 0.0)
    body_timeout_s: float = _setting(15.0, "limit for reading a request, and for a client to take its answer", 0.01)
    max_body_bytes: int = _setting(32 * 1024 * 1024, "limit for a request's body", 1)
    max_held_bytes: int = _setting(
        256 * 1024 * 1024, "limit for all bodies and fetched images in a process's memory", 1
    )
    max_images: int = _setting(64, "limit for the images in a request", 1)
    max_batch: int = _setting(16, "images per call of the model server, not above the max_batch_size there", 1)
    max_image_bytes: int = _setting(10 * 1024 * 1024, "limit for an image's bytes, fetched or sent", 1)
    max_pixels: int = _setting(50_000_000, "limit for an image's width times height", 1)
    fetch_limit: int = _setting(
        12, "images that a process fetches at once; fewer than threads, as hosts can be slow", 1
    )
    fetch_timeout_s: float = _setting(
        10.0,
        "limit for fetching an image, redirects included; a request's fetches end after three quarters of its time",
        0.01,
    )
    fetch_max_redirects: int = _setting(3, "redirects to follow", 0)
    fetch_user_agent: str = _setting(
        "image-classifier-gateway/0.1",
        "User-Agent that image hosts see; some, such as Wikimedia, want a contact in it: add your address",
        _check_header,
    )
    fetch_proxy: str = _setting(
        "",
        "HTTP proxy on the way to public image hosts, such as http://proxy:3128; it must allow CONNECT",
        _check_proxy,
    )
    fetch_allow: str = _setting(
        "",
        "what may be fetched although its address or port is not public: comma-separated host:port or networks",
        AllowList.parse,
    )
    fetch_deny: str = _setting("", "what may never be fetched, written the same way", AllowList.parse)
    decode_limit: int = _setting(
        2, "images that a process decodes at once; each may take 13 bytes a pixel, a transparent WebP or AVIF 21", 1
    )
    top_k: int = _setting(5, "predictions per image, for requests without top_k", 1)
    unknown: str = _setting(
        "on",
        "on: answers say whether an image is unlike all that the model was trained on; off: none says",
        _check_switch,
    )

    @property
    def stop_timeout_s(self) -> float:
        """Limit for the end of the process after SIGTERM: the delay, and a request that begins to arrive last."""
        return self.shutdown_delay_s + self.body_timeout_s + self.request_timeout_s + 5

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read settings from environment variables.

        Raises:
            SettingsError: Some values are bad, or a variable with the prefix is not a setting; the message lists all.
        """
        known = {PREFIX + each.name.upper(): each for each in fields(cls)}
        values: dict[str, Any] = {}
        bad = [
            f"{name}: Expected one of the settings. Received a name that is none of them{_nearest(name, known)}"
            for name in sorted(environ)
            if name.startswith(PREFIX) and name not in (*known, KEY_OF_CLIENTS)
        ]
        for name in [name for name in known if name in environ]:
            each = known[name]
            try:
                values[each.name] = _parse(environ[name], type(each.default), each.metadata["check"])
            except ValueError as exc:
                bad.append(f"{name}: {exc}")
        settings = cls(**values)
        largest = max(settings.max_body_bytes, settings.max_image_bytes)
        if settings.max_held_bytes < largest:  # a request that is allowed would never find room
            bad.append(
                f"{PREFIX}MAX_HELD_BYTES: Expected at least {largest}, the largest of GATEWAY_MAX_BODY_BYTES and"
                f" GATEWAY_MAX_IMAGE_BYTES. Received: {settings.max_held_bytes}"
            )
        if bad:
            raise SettingsError("\n".join(bad))
        return settings


def _parse(text: str, kind: type, check: Any) -> Any:
    if kind is str:
        if check:
            check(text)
        return text
    with suppress(ValueError):
        value = kind(text)
        if value in check if isinstance(check, range) else check <= value < math.inf:
            return value
    if isinstance(check, range):
        raise ValueError(f"Expected an integer from {check.start} to {check.stop - 1}. Received: {text!r}")
    number = "an integer" if kind is int else "a number"
    raise ValueError(f"Expected {number} of at least {check:g}. Received: {text!r}")


def _nearest(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, known, 1)
    return f"; perhaps {found[0]} is meant" if found else ""
