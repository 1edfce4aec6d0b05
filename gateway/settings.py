"""Everything about the gateway that can be tuned: `GATEWAY_` and the field's name, read once at start."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gateway.fetch.addresses import AllowList
from gateway.fetch.fetcher import FetchRules
from gateway.keys import Keys

PREFIX = "GATEWAY_"
KEY_OF_CLIENTS = "GATEWAY_KEY"  # of the shell in which both may be started


class SettingsError(ValueError):
    """Bad values in the environment, all of them in one message."""


def _setting(default: Any, help: str, least: float | None = None) -> Any:
    return field(default=default, metadata={"help": help, "least": least})


@dataclass(frozen=True)
class Settings:
    """The gateway's settings. `help` of each field is its line in docs/settings.md."""

    host: str = _setting("0.0.0.0", "address to listen on")  # noqa: S104  # a server in a container listens everywhere
    port: int = _setting(9696, "port to listen on", 1)
    workers: int = _setting(2, "processes, each with its own view of the model server", 1)
    threads: int = _setting(16, "requests that a process works on at once", 1)
    max_waiting: int = _setting(64, "requests per process that may wait for a thread; further ones are answered 503", 0)
    api_keys: str = _setting("", "comma-separated SHA-256 digests of the accepted API keys; if empty, no key is needed")
    model_name: str = _setting("imagenet", "name of the model at the model server")
    model_address: str = _setting("localhost:8500", "the model server's gRPC address: host:port, dns:///… or unix:…")
    model_poll_s: float = _setting(0.5, "how often to look for new versions", 0.01)
    model_timeout_s: float = _setting(5.0, "limit for one call of the model server", 0.01)
    request_timeout_s: float = _setting(
        20.0, "limit for a request from when it is complete, waiting included; 10 s later its process is replaced", 0.01
    )
    shutdown_delay_s: float = _setting(
        0.0,
        "how long to go on answering after SIGTERM, while /readyz already says 503 and load balancers turn away",
        0.0,
    )
    body_timeout_s: float = _setting(15.0, "limit for reading a request, and for a client to take its answer", 0.01)
    max_body_bytes: int = _setting(32 * 1024 * 1024, "limit for a request's body", 1)
    max_held_bytes: int = _setting(
        256 * 1024 * 1024, "limit for the bodies and fetched images that a process holds at once", 1
    )
    max_images: int = _setting(64, "limit for the images in a request", 1)
    max_batch: int = _setting(16, "images that go to the model server in one call", 1)
    max_image_bytes: int = _setting(10 * 1024 * 1024, "limit for an image's bytes, fetched or sent", 1)
    max_pixels: int = _setting(50_000_000, "limit for an image's width times height", 1)
    fetch_limit: int = _setting(
        12,
        "images that a process fetches at once; keep it below the threads, so that slow hosts cannot occupy them all",
        1,
    )
    fetch_timeout_s: float = _setting(10.0, "limit for fetching an image, redirects included", 0.01)
    fetch_max_redirects: int = _setting(3, "redirects to follow", 0)
    fetch_user_agent: str = _setting("image-classifier-gateway/0.1", "how the gateway names itself to image hosts")
    fetch_allow: str = _setting(
        "", "what may be fetched though it is not public: comma-separated host:port or networks"
    )
    fetch_deny: str = _setting("", "what may not be fetched in any case, written the same way")
    decode_limit: int = _setting(
        2, "images that a process decodes at once; each may take 13 bytes a pixel, a transparent WebP or AVIF 21", 1
    )
    top_k: int = _setting(5, "predictions in an answer that does not ask for a number", 1)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read settings from environment variables.

        Raises:
            SettingsError: Some values are bad, or a variable with the prefix is no setting; all are named.
        """
        known = {PREFIX + each.name.upper(): each for each in fields(cls)}
        values: dict[str, Any] = {}
        bad = [
            f"{name}: Expected one of the settings. Received a name that is none of them"
            for name in sorted(environ)
            if name.startswith(PREFIX) and name not in (*known, KEY_OF_CLIENTS)
        ]
        for name, each in known.items():
            if name in environ:
                try:
                    values[each.name] = _parse(environ[name], type(each.default), each.metadata["least"])
                except ValueError as exc:
                    bad.append(f"{name}: {exc}")
        settings = cls(**values)
        checks: tuple[tuple[str, Callable[[], object]], ...] = (
            ("FETCH_ALLOW", lambda: AllowList.parse(settings.fetch_allow)),
            ("FETCH_DENY", lambda: AllowList.parse(settings.fetch_deny)),
            ("API_KEYS", lambda: Keys(settings.api_keys)),
            ("FETCH_USER_AGENT", lambda: FetchRules(user_agent=settings.fetch_user_agent)),
            ("MAX_HELD_BYTES", settings.check_room),
        )
        for name, check in checks:
            try:
                check()
            except ValueError as exc:
                bad.append(f"{PREFIX}{name}: {exc}")
        if bad:
            raise SettingsError("\n".join(bad))
        return settings

    def check_room(self) -> None:
        """Refuse limits with which a request that is allowed would never find room.

        Raises:
            ValueError: One body, or one image, is more than a process may hold.
        """
        largest = max(self.max_body_bytes, self.max_image_bytes)
        if self.max_held_bytes < largest:
            raise ValueError(
                f"Expected at least {largest}, the largest of GATEWAY_MAX_BODY_BYTES and GATEWAY_MAX_IMAGE_BYTES."
                f" Received: {self.max_held_bytes}"
            )

    @property
    def fetch_rules(self) -> FetchRules:
        """What may be fetched and how long it may take."""
        return FetchRules(
            timeout_s=self.fetch_timeout_s,
            max_bytes=self.max_image_bytes,
            max_redirects=self.fetch_max_redirects,
            user_agent=self.fetch_user_agent,
            allow=AllowList.parse(self.fetch_allow),
            deny=AllowList.parse(self.fetch_deny),
        )


def _parse(text: str, kind: type, least: float | None) -> Any:
    if kind is str:
        return text
    expected = ("an integer" if kind is int else "a number") + (f" of at least {least:g}" if least is not None else "")
    try:
        value = kind(text)
    except ValueError as exc:
        raise ValueError(f"Expected {expected}. Received: {text!r}") from exc
    if least is not None and not least <= value < math.inf:
        raise ValueError(f"Expected {expected}. Received: {text!r}")
    return value
