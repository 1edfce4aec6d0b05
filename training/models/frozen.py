"""A Keras model as one graph without variables, and why TFLite does not take it."""

from __future__ import annotations

import re
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from contract.document import IMAGES, PROBABILITIES


def freeze(model: keras.Model, height: int, width: int) -> Any:
    """Return uint8 (n, h, w, 3) to a dict of the model's outputs, as one graph without variables.

    The only output is `probabilities` (n, k), unless the model gives several by their names.

    On 2 cores, EfficientNet-Lite0 at batch 1: 57 images a second with variables, 70 without, equal to the last bit.
    The last operation waits for each constant, as if it were still a variable; without it the file is 19 kB smaller.
    """
    signature = tf.TensorSpec((None, height, width, 3), tf.uint8, name=IMAGES)
    function = tf.function(
        lambda images: model(tf.cast(images, tf.float32), training=False), input_signature=[signature]
    )
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    names = sorted(model.output) if isinstance(model.output, dict) else [PROBABILITIES]
    return frozen.prune(
        frozen.inputs, {name: each.op.inputs[0] for name, each in zip(names, frozen.outputs, strict=True)}
    )


def why_no_tflite(error: Exception) -> str:
    """Return why such a graph does not become a TFLite file: its operations that TFLite lacks, or the last error."""
    text = str(error)
    if operations := ", ".join(dict.fromkeys(re.findall(r"'tf\.(\w+)' op", text))):
        return f"operations that TFLite lacks: {operations}"
    return text.rpartition("error: ")[2].partition("\n")[0]
