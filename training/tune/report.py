"""What a search found: a sentence, and a page with a picture of its trials."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from training import page
from training.fit.preset import Preset
from training.judge import plots


@dataclass(frozen=True)
class Comparison:
    """The accuracies of the start and of the best trial, on each fold that no trial was scored on."""

    start: str
    pairs: Sequence[tuple[float, float]]

    @property
    def before(self) -> float:
        """The mean accuracy of the start."""
        return float(np.mean([before for before, _ in self.pairs]))

    @property
    def gain(self) -> float:
        """How much better the best trial is on average."""
        return float(np.mean([after - before for before, after in self.pairs]))

    @property
    def error(self) -> float:
        """The standard error of the gain."""
        return float(np.std([after - before for before, after in self.pairs], ddof=1) / math.sqrt(len(self.pairs)))

    @property
    def sentence(self) -> str:
        """What a preset says of its accuracy."""
        figures = f"{abs(self.gain):.4f} ± {self.error:.4f}"
        where = f"in cross-validation on the training photos ({len(self.pairs)} folds, standard error)"
        if self.gain <= 0:
            return (
                f"Accuracy {self.before:.4f} {where}: these are the values of {self.start}, and nothing better was"
                f" found; the best of the search was {figures} below them."
            )
        chance = ", which may be chance" if self.gain < 2 * self.error else ""
        return f"Accuracy {self.before + self.gain:.4f} {where}, {figures} above {self.start}{chance}."


def shown(value: Any) -> str:
    """Return a hyperparameter as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_report(
    path: Path, start: Preset, tuned: Preset, trials: Sequence[FrozenTrial], comparison: Comparison
) -> Path:
    """Write a page about a search, and return it.

    Args:
        path: The page.
        start: The preset that it started from.
        tuned: The preset that was written.
        trials: Those with a result.
        comparison: Of the start and the best trial.
    """
    searched = trials[0].distributions
    before, after = ({**vars(each), **vars(each.recipe)} for each in (start, tuned))
    best = max((each for each in trials if each.state == TrialState.COMPLETE), key=lambda each: each.value or 0)
    scores = [(each.number, each.value or 0.0, each.state == TrialState.PRUNED) for each in trials]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        plots.trials(picture, scores)
        by_trial = page.picture(picture)
        by_value = {}
        for name, values in searched.items():
            tried = [each.params[name] for each in trials]
            log = isinstance(values, FloatDistribution) and values.log
            plots.hyperparameter(picture, name.replace("_", " "), tried, scores, log=log)
            by_value[name] = page.picture(picture)
    return page.write(
        path,
        "tune.html",
        tuned=tuned,
        comparison=comparison,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        values=[(name, shown(before[name]), shown(after[name])) for name in searched],
        trials=[_row(each, best) for each in sorted(trials, key=lambda each: -(each.value or 0))],
        names=list(searched),
        pruned=sum(pruned for *_, pruned in scores),
        minutes=sum(each.user_attrs.get("took_s", 0.0) for each in trials) / 60,
        by_trial=by_trial,
        by_value=by_value,
    )


def _row(trial: FrozenTrial, best: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "best": trial.number == best.number,
        "accuracy": trial.value or 0.0,
        "pruned_after": (trial.last_step or 0) + 1 if trial.state == TrialState.PRUNED else None,
        "minutes": trial.user_attrs.get("took_s", 0.0) / 60,
        "values": {name: shown(value) for name, value in trial.params.items()},
    }
