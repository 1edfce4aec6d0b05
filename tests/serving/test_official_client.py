"""The embedded server as the official tensorflow-serving-api stubs see it: every code and text that was observed.

Source of the expectations: TensorFlow Serving 2.18.1 on the wire; where it differs, the docstring says so.
"""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest

from tests.programs.stack import wait_until
from tests.serving.conftest import failure, serving

pytestmark = pytest.mark.tensorflow


class Client:
    """The official stubs, and requests in one line each."""

    def __init__(self, address):
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, *, output_filter=(), inputs, **spec):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        tensors = {alias: tf.make_tensor_proto(value) for alias, value in inputs.items()}
        request = predict_pb2.PredictRequest(inputs=tensors, output_filter=output_filter, **model_spec(**spec))
        return self.prediction.Predict(request, timeout=20)

    def metadata(self, fields=("signature_def",), **spec):
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields, **model_spec(**spec))
        return self.prediction.GetModelMetadata(request, timeout=5)

    def status(self, **spec):
        from tensorflow_serving.apis import get_model_status_pb2

        request = get_model_status_pb2.GetModelStatusRequest(**model_spec(**spec))
        return self.model.GetModelStatus(request, timeout=5)

    def states(self):
        versions = self.status(name="tiny").model_version_status
        return [(v.version, type(v).State.Name(v.state)) for v in versions]

    def wait_for(self, state):
        wait_until(lambda: state in self.states(), show=self.states)


def model_spec(version=None, **fields):
    """Return a request's argument: the model that it asks for, if any."""
    from google.protobuf.wrappers_pb2 import Int64Value
    from tensorflow_serving.apis import model_pb2

    if version is not None:
        fields["version"] = Int64Value(value=version)
    return {"model_spec": model_pb2.ModelSpec(**fields)} if fields else {}


@contextmanager
def client_of(*base_paths):
    """Run a server in this process; yield a client of it."""
    with serving(*base_paths) as (port, _):
        client = Client(f"127.0.0.1:{port}")
        yield client
        client.channel.close()


def save_module(path, **signatures):
    """Save a SavedModel of functions given with their input signature."""
    import tensorflow as tf

    module = tf.Module()
    for key, (function, specs) in signatures.items():
        setattr(module, key, tf.function(function, input_signature=specs))
    tf.saved_model.save(module, str(path), signatures={key: getattr(module, key) for key in signatures})


@pytest.fixture(scope="module")
def models(tiny_store, tmp_path_factory):
    """A store with the tiny model, and `odd`: a SavedModel with the signatures that an image model does not have."""
    import tensorflow as tf

    store = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_store / "tiny" / "1", store / "tiny" / "1")
    matrix = tf.constant(np.eye(3, 4), tf.float32)
    save_module(
        store / "odd" / "1",
        serving_default=(lambda x: {"y": x @ matrix}, [tf.TensorSpec((None, 3), tf.float32, name="x")]),
        two=(
            lambda a, b: {"y": a + b},
            [tf.TensorSpec((None,), tf.float32, name="a"), tf.TensorSpec((None,), tf.float32, name="b")],
        ),
        zero=(lambda: {"labels": tf.constant([b"a", b"\xff\x00"]), "scale": tf.constant(2.0)}, []),
        decode=(
            lambda image: {"y": tf.io.decode_image(image[0])},
            [tf.TensorSpec((None,), tf.string, name="image")],
        ),
        sizes=(
            lambda x, scale: {"y": x * scale},
            [tf.TensorSpec((None, 2, None), tf.float32, name="x"), tf.TensorSpec((), tf.float32, name="scale")],
        ),
        anyrank=(lambda x: {"y": x}, [tf.TensorSpec(None, tf.float32, name="x")]),
    )
    return store


@pytest.fixture(scope="module")
def client(models):
    """A client of a server with both models."""
    with client_of(models / "tiny", models / "odd") as client:
        yield client


@pytest.fixture
def swapping(models, tmp_path):
    """Another store with tiny/1, and the client of a server for it."""
    base_path = tmp_path / "tiny"
    shutil.copytree(models / "tiny", base_path)
    with client_of(base_path) as client:
        yield base_path, client


IMAGES = np.zeros((1, 16, 16, 3), np.uint8)
X = np.ones((2, 3), np.float32)


def test_an_answer(client):
    """The response has typed values, and the spec with version and signature filled in."""
    response = client.predict(name="tiny", inputs={"images": np.concatenate([IMAGES, IMAGES])})
    assert len(response.outputs["probabilities"].float_val) == 6
    assert sum(response.outputs["probabilities"].float_val) == pytest.approx(2)
    assert (response.model_spec.name, response.model_spec.version.value) == ("tiny", 1)
    assert (response.model_spec.signature_name, response.model_spec.version_label) == ("serving_default", "")
    assert client.predict(name="tiny", version=1, inputs={"images": IMAGES}).model_spec.version.value == 1


def test_strings_and_filters(client):
    """String tensors go both ways, and output_filter picks outputs."""
    response = client.predict(name="tiny", signature_name="describe", inputs={"query": [b"", b""]})
    assert len(response.outputs["contract"].string_val) == 2
    zero = client.predict(name="odd", signature_name="zero", inputs={}, output_filter=["labels"])
    assert {alias: list(tensor.string_val) for alias, tensor in zero.outputs.items()} == {"labels": [b"a", b"\xff\x00"]}


def test_the_requests_that_an_export_records(client, models):
    """TensorFlow Serving runs them before a version is available, so each must be one that is answered."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    file = models / "tiny" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    logs = [prediction_log_pb2.PredictionLog.FromString(each.numpy()) for each in tf.data.TFRecordDataset(str(file))]
    answers = [client.prediction.Predict(log.predict_log.request, timeout=20) for log in logs]
    assert [sorted(answer.outputs) for answer in answers] == [["identity", "probabilities"], ["contract"]]


def test_a_large_message(client):
    """More than gRPC's usual 4 MiB pass in both directions."""
    response = client.predict(name="odd", signature_name="anyrank", inputs={"x": np.ones(1_500_000, np.float32)})
    assert len(response.outputs["y"].float_val) == 1_500_000


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({}, "INVALID_ARGUMENT", "Missing ModelSpec"),
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        ({"name": "odd", "version": 9}, "NOT_FOUND", "Servable not found for request: Specific(odd, 9)"),
        ({"name": "odd", "version": 0}, "NOT_FOUND", "Servable not found for request: Specific(odd, 0)"),
        ({"name": "odd", "version": -1}, "NOT_FOUND", "Servable not found for request: Specific(odd, -1)"),
        ({"name": "odd", "version_label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
        ({"name": "nope", "version_label": "x"}, "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
    ],
)
def test_a_model_that_is_not_there(client, spec, code, message):
    """Predict and GetModelMetadata find the model, or say the same about it."""
    assert failure(client.predict, inputs={"x": X}, **spec) == (code, message)
    assert failure(client.metadata, **spec) == (code, message)


SIZE = "input size does not match signature: "
ALIAS = "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value provided. "


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"inputs": {}}, SIZE + "0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}."),
        (
            {"signature_name": "two", "inputs": {"a": X}},
            SIZE + "1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}.",
        ),
        (
            {"inputs": {"x": X, "z": X}},
            SIZE + "2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}.",
        ),
        ({"signature_name": "zero"}, SIZE + "1!=0 len({x}) != len({}). Sent extra: {x}. Missing but required: {}."),
        ({"inputs": {"z": X}}, ALIAS + "Inputs expected to be in the request {z}, or default input alias set: "),
        ({"inputs": {"x": np.float64(X)}}, "Expects arg[0] to be float but double is provided"),
        ({"inputs": {"x": [[b"a"]]}}, "Expects arg[0] to be float but string is provided"),
        ({"inputs": {"x": np.int32(X)}}, "Expects arg[0] to be float but int32 is provided"),
        (
            {"output_filter": ["nope"]},
            "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
        ),
        ({"output_filter": ["y", "y"]}, "duplicate output tensor alias: y"),
    ],
)
def test_a_request_that_does_not_fit(client, request_, message):
    """Predict refuses it with the text of TensorFlow Serving."""
    assert failure(client.predict, **{"name": "odd", "inputs": {"x": X}, **request_}) == ("INVALID_ARGUMENT", message)


def test_an_unknown_signature(client):
    """Predict has another code for it."""
    assert failure(client.predict, name="odd", signature_name="nosig", inputs={}) == (
        "FAILED_PRECONDITION",
        'Serving signature key "nosig" not found.',
    )


def test_a_tensor_without_all_of_its_values(client):
    """It is refused by the name of its input."""
    import tensorflow as tf

    broken = tf.make_tensor_proto(X)
    broken.tensor_content = broken.tensor_content[:-1]
    assert failure(client.predict, name="odd", inputs={"x": broken}) == (
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    )


@pytest.mark.parametrize(
    ("shape", "messages"),
    [
        ((2, 5), ("Matrix size-incompatible: In[0]: [2,5], In[1]: [3,4]",)),
        ((3,), ("In[0] ndims must be >= 2", "In[0] and In[1] has different ndims: [3] vs. [3,4]")),
        ((1, 1, 3), ("In[0] ndims must be >= 2", "In[0] and In[1] has different ndims: [1,1,3] vs. [3,4]")),
    ],
)
def test_the_graph_says_which_shape_is_wrong(client, shape, messages):
    """As in TensorFlow Serving, the signature's shape does not count; an empty batch has an answer.

    With oneDNN, which TensorFlow uses on CPUs with AVX-512, the first message is that of its own kernel.
    """
    code, received = failure(client.predict, name="odd", inputs={"x": np.ones(shape, np.float32)})
    assert code == "INVALID_ARGUMENT" and received.startswith(tuple(f"{each}\n\t [[{{{{node " for each in messages))
    assert (
        client.predict(name="odd", inputs={"x": np.ones((0, 3), np.float32)}).outputs["y"].tensor_shape.dim[0].size == 0
    )


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 2, 3), (1, 4, 3), (0, 2, 3), ()])
def test_a_wrong_shape_of_three_dimensions_or_more_is_refused(client, shape):
    """Unlike in TensorFlow Serving, where the graph may answer wrongly or abort the process."""
    inputs = {"x": np.ones(shape, np.float32), "scale": np.ones((), np.float32)}
    message = f"Expected x of shape (n, 2, any) with n >= 1. Received: {shape}"
    received = failure(client.predict, name="odd", signature_name="sizes", inputs=inputs)
    assert received == ("INVALID_ARGUMENT", message)


def test_a_failure_in_the_graph_keeps_its_code_and_text(client):
    """An image that does not decode inside the graph is INVALID_ARGUMENT with the operation's words."""
    code, message = failure(client.predict, name="odd", signature_name="decode", inputs={"image": [b"not an image"]})
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("Unknown image file format. One of JPEG")
    assert "node decode_image/DecodeImage" in message and "[Op:" not in message


def test_metadata(client):
    """Every callable signature is listed, with types, shapes and tensor names."""
    from tensorflow_serving.apis import get_model_metadata_pb2

    response = client.metadata(name="odd")
    assert (response.model_spec.name, response.model_spec.version.value) == ("odd", 1)
    assert response.model_spec.signature_name == ""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert sorted(signatures.signature_def) == ["anyrank", "decode", "serving_default", "sizes", "two", "zero"]
    x = signatures.signature_def["serving_default"].inputs["x"]
    assert (x.name, x.dtype, [dim.size for dim in x.tensor_shape.dim]) == ("serving_default_x:0", 1, [-1, 3])
    assert signatures.signature_def["serving_default"].method_name == "tensorflow/serving/predict"
    assert signatures.signature_def["anyrank"].inputs["x"].tensor_shape.unknown_rank


def test_metadata_fields(client):
    """The fields are checked before the model is looked up."""
    assert failure(client.metadata, name="nope", fields=[]) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    assert failure(client.metadata, name="nope", fields=["foo"]) == (
        "INVALID_ARGUMENT",
        "Metadata field foo is not supported",
    )


def test_status(client):
    """One version, all versions, and a label that is ignored."""
    for spec in ({}, {"version": 1}, {"version_label": "any"}):
        (version,) = client.status(name="odd", **spec).model_version_status
        assert (version.version, version.state, version.status.error_code) == (1, 30, 0)


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ({}, "INVALID_ARGUMENT", "Missing ModelSpec"),
        ({"name": ""}, "NOT_FOUND", "Could not find any versions of model "),
        ({"name": "nope"}, "NOT_FOUND", "Could not find any versions of model nope"),
        ({"name": "odd", "version": 9}, "NOT_FOUND", "Could not find version 9 of model odd"),
    ],
)
def test_a_status_that_is_not_there(client, spec, code, message):
    """GetModelStatus has its own words for what it does not know."""
    assert failure(client.status, **spec) == (code, message)


def test_methods_that_are_not_there(client):
    """Classify and the rest are UNIMPLEMENTED."""
    from tensorflow_serving.apis import classification_pb2

    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        client.prediction.Classify(classification_pb2.ClassificationRequest())


def uniform_version(path):
    """Write a version that answers 1/3 for every class; a SavedModel alone, as other tools write them."""
    import tensorflow as tf

    save_module(
        path,
        serving_default=(
            lambda images: {"probabilities": tf.fill((tf.shape(images)[0], 3), 1 / 3)},
            [tf.TensorSpec((None, 16, 16, 3), tf.uint8, name="images")],
        ),
    )


def test_a_swap_under_load(swapping):
    """Four clients in tight loops see no error and no older version again, and each answer is of the version it says.

    Odd versions are TFLite, even ones SavedModels that answer otherwise.
    """
    base_path, client = swapping
    uniform_version(base_path / "staged")
    first = client.predict(name="tiny", inputs={"images": IMAGES}).outputs["probabilities"].float_val[0]
    assert abs(first - 1 / 3) > 1e-4
    expected = {1: first, 0: 1 / 3}
    begun, done = threading.Barrier(5), threading.Event()

    def ask():
        answers, is_last = [], False
        while not is_last:
            is_last = done.is_set()  # a request that began before may have an older version's answer
            response = client.predict(name="tiny", inputs={"images": IMAGES})
            answers.append((response.model_spec.version.value, response.outputs["probabilities"].float_val[0]))
            if len(answers) == 1:
                begun.wait(60)
        return answers

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(ask) for _ in range(4)]
        try:
            begun.wait(60)
            for number in range(2, 9):
                shutil.copytree(base_path / ("1" if number % 2 else "staged"), base_path / f"{number}.tmp")
                (base_path / f"{number}.tmp").rename(base_path / str(number))
                client.wait_for((number, "AVAILABLE"))
        finally:
            done.set()
    for answers in (each.result() for each in running):
        numbers = [number for number, _ in answers]
        assert numbers == sorted(numbers) and {1, 8} <= set(numbers)
        assert all(value == pytest.approx(expected[number % 2], abs=1e-5) for number, value in answers)
    client.wait_for((6, "END"))
    assert client.states() == [
        (8, "AVAILABLE"), (7, "AVAILABLE"), (6, "END"), (5, "END"), (4, "END"), (3, "END"), (2, "END"), (1, "END"),
    ]  # fmt: skip
    assert failure(client.predict, name="tiny", version=1, inputs={"images": IMAGES}) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(tiny, 1)",
    )
