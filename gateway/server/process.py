"""The gateway's processes: gunicorn's master, and what each worker makes for itself."""

from __future__ import annotations

import ctypes
import resource
import signal
from typing import Any

from gunicorn.app.base import BaseApplication

from gateway.server.worker import Worker, give_listener, listen_for_each_worker
from gateway.settings import Settings
from gateway.telemetry import logs, metrics


class Gateway(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The application, run by gunicorn."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._outlives_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as nohup wants it
        super().__init__()

    def load_config(self) -> None:
        host, port = self.settings.host.strip("[]"), self.settings.port
        options: dict[str, Any] = {
            "bind": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            "workers": self.settings.workers,
            "worker_class": Worker,
            "asgi_loop": "uvloop",
            "asgi_lifespan": "off",
            "graceful_timeout": int(self.settings.stop_timeout_s),
            "control_socket_disable": True,  # it would write to the home directory, which may be read-only
            "proc_name": "gateway",
            "when_ready": self.prepare,
            "pre_fork": give_listener,
            "child_exit": lambda _, worker: metrics.forget_worker(worker.pid),
            "on_exit": lambda _: metrics.unshare(),
            "logconfig_dict": logs.CONFIG,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def prepare(self, arbiter: Any) -> None:
        """Prepare what workers need; gunicorn calls this once it has its address, before the first worker."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a worker's idle connections used up the usual 1,024
        metrics.share()
        listen_for_each_worker(arbiter)
        # Ctrl-C, and a terminal that closes, lose as little as SIGTERM. On a second Ctrl-C, gunicorn ends at once.
        arbiter.handle_int = arbiter.handle_hup = arbiter.handle_term
        # gunicorn would start workers that have no listener of their own, and leave listeners without a worker.
        arbiter.handle_ttin = arbiter.handle_ttou = arbiter.handle_usr2 = lambda: None
        if self._outlives_terminal:
            arbiter.handle_hup = lambda: None

    def load(self) -> Any:
        """Make the application; gunicorn calls this in each worker, so the gRPC channel is made after the fork."""
        from gateway.app import create_app
        from gateway.memory import Room
        from gateway.model.versions import Versions
        from gateway.server.front import Front

        keep_small_blocks()
        settings, measured, room = self.settings, metrics.Metrics(), Room(self.settings.max_held_bytes)
        model = Versions(settings, measured.show)
        model.start(wait_s=5.0)  # so that the first request finds versions
        return Front(create_app(settings, model, measured, room), settings, measured, room)


def keep_small_blocks() -> None:
    """Make the C library give blocks of 4 MiB and more back to the system as soon as they are free, and keep smaller.

    glibc raises that limit itself once such a block is freed, and then keeps the pixels of the largest images. After
    images of 49 megapixels, two workers had grown by 406 MB, and with a fixed limit by 5 MB. The end of its heap, which
    glibc trims, has to come back with the next image. A photo of 12 megapixels took 956 page faults, which cost 5 of
    60 ms of CPU. With the second limit it takes 4 page faults, for 17 MB of memory. Source: mallopt(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        library.mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 8 << 20)  # M_TRIM_THRESHOLD
