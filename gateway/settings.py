"""Everything about the gateway that can be tuned: `GATEWAY_` and the field's name, read once at the start."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from contract.image import MAX_PIXELS
from contract.settings import expect, number, read_all, setting
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


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Return what reads a text that a function takes; its errors say what is wrong."""

    def read(text: str) -> str:
        check(text)
        return text

    return read


def _is_writable(folder: str) -> bool:
    return not folder or (Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK))


_COUNT = number(int, 1)
_SECONDS = number(float, 0.01, 86400)  # a day; timers of gRPC, threads and sockets overflow beyond years
_KEYS, _ORIGINS, _ADDRESSES = _checked(Keys), _checked(Origins), _checked(AllowList.parse)
_NAME = expect("the name of a model", str.strip)
_HOST = expect(
    "an address or a host name without a port, such as 127.0.0.1 or ::1",
    lambda text: parse_authority(f"[{text.strip('[]')}]" if ":" in text else text, 1),
)
_PREFIX = expect(
    "a path such as /classifier, of letters, digits and -._~, without a slash at its end",
    lambda text: not text or _PATH_PREFIX.fullmatch(text),
)
_TARGET = expect(
    "host:port, [IPv6 address]:port, or a target of gRPC such as dns:///model:8500 or unix:/path",
    lambda text: _GRPC_TARGET.match(text) or parse_authority(text),
)


@dataclass(frozen=True)
class Settings:
    """The gateway's settings. The `help` of each field is its line in docs/settings.md."""

    host: str = setting("0.0.0.0", "address to listen on", _HOST)  # noqa: S104  # a server in a container listens everywhere
    port: int = setting(9696, "port to listen on", number(int, 1, 65535))
    workers: int = setting(2, "processes; each looks for versions itself", _COUNT)
    threads: int = setting(16, "requests that a process works on at once", _COUNT)
    max_waiting: int = setting(
        64, "requests per process that may wait for a thread; further ones are answered 503", number(int, 0)
    )
    api_keys: str = setting("", "comma-separated SHA-256 digests of the API keys; if empty, no key is needed", _KEYS)
    allowed_origins: str = setting(
        "", "comma-separated origins whose pages may ask from a browser (CORS), such as https://shop.example", _ORIGINS
    )
    path_prefix: str = setting(
        "", "path under which the gateway is reached if a proxy does not strip it, such as /classifier", _PREFIX
    )
    model_name: str = setting("imagenet", "name of the model at the model server", _NAME)
    model_address: str = setting(
        "localhost:8500", "the model server's gRPC address: host:port, dns:///… or unix:…", _TARGET
    )
    release_file: str = setting(
        "",
        "release document to follow, such as model-store/clothing/release.json; without it the newest version answers",
    )
    trial_folder: str = setting(
        "",
        "writable folder, such as a volume, for at most 200 photos of each trial on which the versions differ;"
        " if empty, none is kept",
        expect("a folder that is there and can be written", _is_writable),
    )
    model_poll_s: float = setting(
        0.5,
        "seconds between two looks for new versions and releases; with more,"
        " `gateway.release --gateway` may say too early that a release is followed",
        _SECONDS,
    )
    model_timeout_s: float = setting(5.0, "limit for one call of the model server", _SECONDS)
    request_timeout_s: float = setting(
        20.0, "limit for a request, waiting included; if it still runs 10 s later, its process is ended", _SECONDS
    )
    shutdown_delay_s: float = setting(
        0.0, "how long to answer after SIGTERM, while /readyz already says 503", number(float, 0)
    )
    body_timeout_s: float = setting(15.0, "limit for reading a request, and for a client to take its answer", _SECONDS)
    max_body_bytes: int = setting(32 * 1024 * 1024, "limit for a request's body", _COUNT)
    max_held_bytes: int = setting(
        256 * 1024 * 1024,
        "limit for bodies and fetched images in a process's memory; answers not yet taken may have half as much more",
        _COUNT,
    )
    max_images: int = setting(64, "limit for the images in a request", _COUNT)
    max_batch: int = setting(16, "images per call of the model server, not above the max_batch_size there", _COUNT)
    max_image_bytes: int = setting(10 * 1024 * 1024, "limit for an image's bytes, fetched or sent", _COUNT)
    max_pixels: int = setting(
        MAX_PIXELS,
        "limit for an image's width times height",
        number(int, 1, 178_956_970, "an integer from 1 to 178,956,970, Pillow's own limit"),
    )
    fetch_limit: int = setting(
        12, "images that a process fetches at once; fewer than threads, as hosts can be slow", _COUNT
    )
    fetch_timeout_s: float = setting(
        10.0,
        "limit for fetching an image, redirects included; a request's fetches end after three quarters of its time",
        _SECONDS,
    )
    fetch_max_redirects: int = setting(3, "redirects to follow", number(int, 0))
    fetch_user_agent: str = setting(
        "image-classifier-gateway/0.1",
        "User-Agent that image hosts see; some, such as Wikimedia, want a contact in it: add your address",
        expect("a user agent of printable ASCII", lambda text: text.isascii() and text.isprintable()),
    )
    fetch_proxy: str = setting(
        "",
        "HTTP proxy on the way to public image hosts, such as http://proxy:3128; it must allow CONNECT",
        _checked(lambda text: text and Proxy(text)),
    )
    fetch_allow: str = setting(
        "",
        "what may be fetched although its address or port is not public: comma-separated host:port or networks",
        _ADDRESSES,
    )
    fetch_deny: str = setting("", "what may never be fetched, written the same way", _ADDRESSES)
    decode_limit: int = setting(2, "images that a process decodes at once; each may take 21 bytes a pixel", _COUNT)
    top_k: int = setting(5, "predictions per image, for requests without top_k", _COUNT)
    unknown: str = setting(
        "on",
        "on: answers say whether an image is unlike all that the model was trained on; off: none says",
        expect("on or off", ("on", "off").__contains__),
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
        values, bad = read_all(known, environ)
        bad[:0] = [
            f"{name}: Expected one of the settings. Received a name that is none of them{_nearest(name, known)}"
            for name in sorted(environ)
            if name.startswith(PREFIX) and name not in (*known, KEY_OF_CLIENTS)
        ]
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


def _nearest(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, known, 1)
    return f"; perhaps {found[0]} is meant" if found else ""
