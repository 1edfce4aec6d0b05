"""The trials of a search, in Optuna's journal: the next one, and those that were interrupted and are continued."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from training.tune.space import Space

FIRST_TRIALS = 5  # drawn at random and never pruned: later ones are compared with them


def open_study(path: Path, space: Space) -> optuna.Study:
    """Open the study in a folder that no other process uses; its next trial is one that was lost, or the start.

    An epoch's report takes 1.3 ms of CPU in Optuna's journal and 13 ms in its SQLite. But a process that was killed
    may leave a lock on the journal, and half a line in it.
    """
    journal, recipe = path / "trials.journal", space.start.recipe
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if journal.is_file():
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        pruner=optuna.pruners.MedianPruner(FIRST_TRIALS, n_warmup_steps=recipe.epochs // 4),
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
    )
    for lost in trials(study, TrialState.RUNNING):
        put_back(study, lost)
    if not trials(study, TrialState.COMPLETE, TrialState.WAITING):
        study.enqueue_trial(space.first())
    return study


def trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """Return the trials in some states."""
    return study.get_trials(deepcopy=False, states=states)


def ask(study: optuna.Study, space: Space) -> optuna.Trial:
    """Begin the next trial."""
    # With the trial's number, or a continued search would draw the same values again.
    numbers = np.random.SeedSequence((space.start.recipe.seed, len(study.get_trials(deepcopy=False))))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=FIRST_TRIALS, seed=int(numbers.generate_state(1)[0]))
    return study.ask(space.values)


def put_back(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """End a trial that has no result, and make the next one of the same values: it continues the same training."""
    study.tell(trial.number, state=TrialState.FAIL)
    study.enqueue_trial(trial.params)
