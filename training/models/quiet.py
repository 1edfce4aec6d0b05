"""TensorFlow and TFLite without their lines on drivers, conversions and tracing, unless something fails."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*expected: type[Exception]) -> Iterator[None]:
    """Send standard error to a file, which is shown only if what runs meanwhile fails in a way that is not expected.

    The libraries' C++ code writes to file descriptor 2 whatever Python is set to. These lines look to a newcomer as if
    something were broken.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except expected:  # of which our own line says enough
            raise
        except Exception:
            sys.stderr.flush()
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def import_tensorflow() -> None:
    """Import it; from then on it logs errors, but no advice on tracing or on its own file formats."""
    if "tensorflow" not in sys.modules:
        _keep_memory()
        with quiet():
            import tensorflow  # noqa: F401
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _keep_memory() -> None:
    """Let the C library keep what TensorFlow frees, for its next step.

    Otherwise it gives each large array back to Linux, which fills the next one with zeros. A step of the default preset
    took 1.22 s, with 129,000 page faults, and now takes 0.95 s, with a few hundred, and no more memory.
    No more arenas are made, as only the first one holds arrays of any size. Source: mallopt(3).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD
        library.mallopt(-8, 1)  # M_ARENA_MAX
