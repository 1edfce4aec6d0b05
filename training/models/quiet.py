"""TensorFlow without its lines on drivers that a machine without a GPU does not have."""

from __future__ import annotations

import os
import sys
import tempfile


def import_tensorflow() -> None:
    """Import it while standard error goes to a file, which is shown only if the import fails.

    Its C++ code writes four lines to file descriptor 2 before any setting counts. Two are warnings, which look to a
    newcomer as if something were broken.
    """
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            kept.seek(0)
            os.write(terminal, kept.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
