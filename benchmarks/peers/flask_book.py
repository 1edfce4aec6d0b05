"""The gateway of the book Machine Learning Bookcamp, chapter 9: `gunicorn flask_book:app`, in front of a model server.

As there: keras-image-helper fetches and decodes, float32 goes over gRPC, TensorFlow's messages come without TensorFlow,
and the names of the tensors stand in the code. The helper leaves the pixels alone, since the model scales them itself.
"""

import os

import grpc
import numpy as np
from flask import Flask, jsonify, request
from keras_image_helper import create_preprocessor
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

channel = grpc.insecure_channel(os.environ["TF_SERVING_HOST"])
stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
preprocessor = create_preprocessor(lambda pixels: pixels, target_size=(224, 224))
app = Flask("gateway")


def np_to_protobuf(data):
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in data.shape]
    shape = tensor_shape_pb2.TensorShapeProto(dim=dims)
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_shape=shape, tensor_content=data.tobytes())


@app.route("/predict", methods=["POST"])
def predict():
    pixels = preprocessor.from_url(request.get_json()["url"])
    query = predict_pb2.PredictRequest()
    query.model_spec.name = "imagenet"
    query.model_spec.signature_name = "serving_default"
    query.inputs["pixels"].CopyFrom(np_to_protobuf(pixels))
    probabilities = np.array(stub.Predict(query, timeout=20.0).outputs["output_0"].float_val)
    order = np.argsort(-probabilities)[:5]
    return jsonify({"predictions": [{"index": int(i), "probability": float(probabilities[i])} for i in order]})
