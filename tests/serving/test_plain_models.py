"""SavedModels that are no image classifiers: TensorFlow Serving's own test models, and inputs of other ranks."""

import grpc
import numpy as np
import pytest

from contract import messages_pb2 as messages
from contract.tensor import to_array, to_proto
from tests.serving.conftest import by_rest, predict, serving

pytestmark = pytest.mark.tensorflow


def save_half_plus(path, offset):
    """Write `half_plus_two` or `half_plus_three`: TensorFlow 1's format, variables, and an input of shape (n, 1).

    Source: tensorflow/serving 2.20, servables/tensorflow/testdata/saved_model_half_plus_two.py.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = v1.Variable(0.5, use_resource=False), v1.Variable(float(offset), use_resource=False)
        examples = v1.placeholder(tf.string, [None], name="tf_example")
        parsed = v1.parse_example(examples, {"x": v1.FixedLenFeature([1], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        y = tf.add(tf.multiply(a, x), b, name="y")
        define, info = v1.saved_model.signature_def_utils.build_signature_def, v1.saved_model.utils.build_tensor_info
        signatures = {
            "serving_default": define({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"),
            "regress_x_to_y": define({"inputs": info(examples)}, {"outputs": info(y)}, "tensorflow/serving/regress"),
        }
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


def save_ranks(path):
    """Write a model with a signature for each rank that an input may have."""
    import tensorflow as tf

    module = tf.Module()
    module.half = tf.Variable(0.5)
    shapes = {"scalar": (), "vector": (None,), "fixed": (2,), "rows": (None, 3), "any": None}
    signatures = {
        name: tf.function(lambda x: {"y": x * module.half + 2.0}, [tf.TensorSpec(shape, tf.float32, name="x")])
        for name, shape in shapes.items()
    }
    tf.saved_model.save(module, str(path), {"serving_default": signatures["vector"], **signatures})


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """The ports of gRPC and REST of a server with all models."""
    store = tmp_path_factory.mktemp("plain")
    save_half_plus(store / "half_plus_two" / "123", 2)
    save_half_plus(store / "half_plus_three" / "123", 3)
    save_ranks(store / "ranks" / "1")
    with serving(*store.iterdir()) as ports:
        yield ports


@pytest.fixture
def ask(ports):
    """A function that asks for a path of the models by REST, with a body by POST."""
    return lambda path, body=None: by_rest(ports[1], f"/v1/models/{path}", body)


@pytest.mark.parametrize(("model", "offset"), [("half_plus_two", 2), ("half_plus_three", 3)])
@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"instances": [1.0, 2.0, 5.0]}, {"predictions": [0.5, 1.0, 2.5]}),
        ({"instances": [[1.0], [2.0]]}, {"predictions": [[0.5], [1.0]]}),
        ({"instances": [{"x": [1.0]}, {"x": [2.0]}]}, {"predictions": [[0.5], [1.0]]}),
        ({"inputs": 5}, {"outputs": 2.5}),
        ({"inputs": [1.0, 2.0]}, {"outputs": [0.5, 1.0]}),
        ({"inputs": {"x": [[[1.0, 2.0]]]}}, {"outputs": [[[0.5, 1.0]]]}),
    ],
)
def test_half_plus(ask, model, offset, body, answer):
    """Its input is of shape (n, 1), and TensorFlow Serving takes any that the graph does."""
    status, received = ask(f"{model}:predict", body)
    assert (status, received.keys()) == (200, answer.keys())
    (expected,), (values,) = answer.values(), received.values()
    np.testing.assert_array_equal(values, np.add(expected, offset))


@pytest.mark.parametrize("signature", ["scalar", "vector", "fixed", "rows", "any"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 3), (0, 3), (1, 2, 3)])
def test_any_rank_goes_to_the_graph(ports, signature, shape):
    """By gRPC: up to two declared dimensions, no shape is refused that the graph can compute."""
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="ranks", signature_name=signature))
    request.inputs["x"].CopyFrom(to_proto(x))
    with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
        np.testing.assert_array_equal(to_array(predict(channel)(request, timeout=10).outputs["y"]), x * 0.5 + 2)


def test_the_metadata_by_rest_is_the_originals(ask, ports):
    """The JSON that TensorFlow Serving makes of its own messages, unset fields included."""
    from google.protobuf.json_format import MessageToDict
    from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    for model in ("half_plus_two", "ranks"):
        request.model_spec.name = model
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            response = stub.GetModelMetadata(request, timeout=10)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert response.metadata["signature_def"].Unpack(signatures)
        expected = MessageToDict(
            signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        number = response.model_spec.version.value
        for path in (f"{model}/metadata", f"{model}/versions/{number}/metadata"):
            status, answer = ask(path)
            assert status == 200
            assert answer["model_spec"] == {"name": model, "signature_name": "", "version": str(number)}
            assert answer["metadata"] == {"signature_def": expected}
    x = ask("half_plus_two/metadata")[1]["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    dims = [{"size": "-1", "name": ""}, {"size": "1", "name": ""}]
    assert x == {"dtype": "DT_FLOAT", "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": "x:0"}
