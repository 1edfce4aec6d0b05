"""Which devices share a training: each takes its part of every batch, and all hold the same weights."""

from __future__ import annotations

import tensorflow as tf


def strategy(name: str) -> tf.distribute.Strategy:
    """Return how work is shared: `none`, or `mirrored` for all GPUs of this machine, or its CPU devices without one."""
    if name == "none":
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])
