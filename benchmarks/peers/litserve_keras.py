"""LitServe with Keras, in batches of up to 8 that wait 10 ms: `python litserve_keras.py`.

Source: LitServe's documentation, "Speed up serving by 200x", whose server classifies images too and is batched next.
"""

import os
from io import BytesIO

import keras
import litserve as ls
import numpy as np
import requests
import tensorflow as tf
from PIL import Image


class Classifier(ls.LitAPI):
    def setup(self, device):
        self.model = tf.function(keras.models.load_model(os.environ["MODEL"]), reduce_retracing=True)

    def decode_request(self, request):
        response = requests.get(request["url"], timeout=10)
        img = Image.open(BytesIO(response.content)).convert("RGB").resize((224, 224))
        return np.asarray(img, dtype="float32")

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, pixels):
        return self.model(pixels).numpy()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        order = np.argsort(-output)[:5]
        return {"predictions": [{"index": int(i), "probability": float(output[i])} for i in order]}


if __name__ == "__main__":
    api = Classifier(max_batch_size=8, batch_timeout=0.01)
    ls.LitServer(api, accelerator="cpu").run(port=int(os.environ["PORT"]), generate_client_file=False)
