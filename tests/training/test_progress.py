"""training/progress.py: a long wait is announced once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from training.progress import estimated


@pytest.mark.parametrize(
    ("steps", "step_s", "said"),
    [
        (100, 0.5, ["Counting: about 48 s left"]),  # believed after 2 s, at the sixth step
        (3, 30.0, ["Counting: about 60 s left"]),
        (20, 0.5, []),  # 7.5 s are left when the rate is known
        (1, 60.0, []),
        (0, 60.0, []),
    ],
)
def test_only_a_long_wait_is_announced(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, steps: int, step_s: float, said: list[str]
) -> None:
    """Once, when the rate is known; every step is yielded."""
    now_s = 0.0
    monkeypatch.setattr("training.progress.time", SimpleNamespace(monotonic=lambda: now_s))
    for step in estimated(range(steps), "Counting"):
        now_s = (step + 1) * step_s
    assert lines == said and now_s == steps * step_s
