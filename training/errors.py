"""Every way in which training and export can fail.

TrainingError           a message for the person at the terminal, exit status 1
├── DataError           the folder of photos
├── WeightsError        the weights or the Keras model
└── ExportError         the release of a version; the store is as it was
"""

from __future__ import annotations


class TrainingError(Exception):
    """A failure that the person who ran the command can act on."""


class DataError(TrainingError):
    """The photos are missing, or cannot be used."""


class WeightsError(TrainingError):
    """The weights or the Keras model cannot be used."""


class ExportError(TrainingError):
    """The version cannot be released; the store is as it was."""
