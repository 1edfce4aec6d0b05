"""BentoML with Keras, a worker for each core: `bentoml serve bentoml_keras:Classifier`.

Source: BentoML's documentation, "Parallelize requests handling", CPU workloads.
"""

import os
from io import BytesIO

import bentoml
import keras
import numpy as np
import requests
import tensorflow as tf
from PIL import Image


@bentoml.service(workers="cpu_count")
class Classifier:
    def __init__(self) -> None:
        self.model = tf.function(keras.models.load_model(os.environ["MODEL"]))

    @bentoml.api
    def predict(self, url: str) -> dict:
        response = requests.get(url, timeout=10)
        img = Image.open(BytesIO(response.content)).convert("RGB").resize((224, 224))
        pixels = np.expand_dims(np.asarray(img, dtype="float32"), axis=0)
        probabilities = self.model(pixels)[0].numpy()
        order = np.argsort(-probabilities)[:5]
        return {"predictions": [{"index": int(i), "probability": float(probabilities[i])} for i in order]}
