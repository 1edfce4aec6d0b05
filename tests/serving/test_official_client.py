"""The embedded server as the official tensorflow-serving-api stubs see it: every code and text that was observed.

Source of the expectations: TensorFlow Serving 2.18.1 on the wire; where it differs, the docstring says so.
"""

import shutil
import threading
import time

import grpc
import numpy as np
import pytest

from serving.__main__ import load_version
from serving.lifecycle import Lifecycle
from serving.service import Server, Service
from serving.settings import Settings

pytestmark = pytest.mark.tensorflow


class Client:
    """The official stubs, and requests in one line each."""

    def __init__(self, address):
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options)
        prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        model = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self._predict, self._metadata = prediction.Predict, prediction.GetModelMetadata
        self._status = model.GetModelStatus
        self.classify = prediction.Classify

    def predict(self, *, output_filter=(), inputs, **spec):
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self.spec(**spec), output_filter=output_filter)
        for alias, value in inputs.items():
            request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
        return self._predict(request, timeout=20)

    def metadata(self, fields=("signature_def",), **spec):
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=self.spec(**spec), metadata_field=fields)
        return self._metadata(request, timeout=5)

    def status(self, **spec):
        from tensorflow_serving.apis import get_model_status_pb2

        return self._status(get_model_status_pb2.GetModelStatusRequest(model_spec=self.spec(**spec)), timeout=5)

    def states(self, name="tiny"):
        try:
            versions = self.status(name=name).model_version_status
        except grpc.RpcError:
            return []
        return [(v.version, type(v).State.Name(v.state)) for v in versions]

    def wait_for(self, state, name="tiny"):
        deadline = time.monotonic() + 10
        while state not in (states := self.states(name)):
            assert time.monotonic() < deadline, states
            time.sleep(0.02)

    @staticmethod
    def spec(name=None, version=None, label=None, signature=""):
        from google.protobuf.wrappers_pb2 import Int64Value
        from tensorflow_serving.apis import model_pb2

        if name is None:
            return None
        spec = model_pb2.ModelSpec(name=name, signature_name=signature)
        if version is not None:
            spec.version.CopyFrom(Int64Value(value=version))
        if label is not None:
            spec.version_label = label
        return spec


class Serving:
    """A server in this process over base paths, which looks at the disk all the time."""

    def __init__(self, *base_paths, flags=()):
        config = "".join(
            f'config {{ name: "{path.name}" base_path: "{path}" model_platform: "tensorflow" }}' for path in base_paths
        )
        config_file = base_paths[0].parent / "models.config"
        config_file.write_text(f"model_config_list {{ {config} }}")
        settings = Settings.from_argv([f"--model_config_file={config_file}", "--grpc_max_threads=16", *flags])
        self._lifecycle = Lifecycle(
            settings.models,
            lambda directory: load_version(directory, settings),
            poll_wait_s=0.02,
            max_retries=settings.max_num_load_retries,
            retry_interval_s=settings.load_retry_interval_micros / 1e6,
        )
        self._lifecycle.start()
        assert self._lifecycle.wait_until_available(threading.Event())
        self._server = Server(Service(self._lifecycle), ["127.0.0.1:0"], settings.grpc_max_threads)
        self.client = Client(f"127.0.0.1:{self._server.ports[0]}")

    def stop(self):
        self.client.channel.close()
        self._server.drain(0)
        self._lifecycle.stop()


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
        types=(
            lambda h, i, b: {"h": h, "i": i, "b": b},
            [
                tf.TensorSpec((None,), tf.float16, name="h"),
                tf.TensorSpec((None,), tf.int64, name="i"),
                tf.TensorSpec((None,), tf.bool, name="b"),
            ],
        ),
        anyrank=(lambda x: {"y": x}, [tf.TensorSpec(None, tf.float32, name="x")]),
    )
    return store


@pytest.fixture(scope="module")
def client(models):
    """A client of a server with both models."""
    serving = Serving(models / "tiny", models / "odd")
    yield serving.client
    serving.stop()


@pytest.fixture
def swapping(models):
    """A store of its own with tiny/1, and the client of a server over it; broken versions are retried once, soon."""
    store = models.parent / f"swapping-{time.monotonic_ns()}"
    shutil.copytree(models / "tiny", store / "tiny")
    serving = Serving(store / "tiny", flags=["--max_num_load_retries=1", "--load_retry_interval_micros=20000"])
    yield store / "tiny", serving.client
    serving.stop()


IMAGES = np.zeros((1, 16, 16, 3), np.uint8)
X = np.ones((2, 3), np.float32)


def failure(call, **arguments):
    with pytest.raises(grpc.RpcError) as raised:
        call(**arguments)
    return raised.value.code().name, raised.value.details()


def broken_tensor():
    import tensorflow as tf

    proto = tf.make_tensor_proto(X)
    proto.tensor_content = proto.tensor_content[:-1]
    return proto


def test_an_answer(client):
    """The response holds typed values, and the spec with version and signature filled in."""
    response = client.predict(name="tiny", inputs={"images": np.concatenate([IMAGES, IMAGES])})
    assert len(response.outputs["probabilities"].float_val) == 6
    assert sum(response.outputs["probabilities"].float_val) == pytest.approx(2)
    assert (response.model_spec.name, response.model_spec.version.value) == ("tiny", 1)
    assert (response.model_spec.signature_name, response.model_spec.version_label) == ("serving_default", "")
    assert client.predict(name="tiny", version=1, inputs={"images": IMAGES}).model_spec.version.value == 1


def test_strings_and_filters(client):
    """String tensors go both ways, and output_filter picks outputs."""
    response = client.predict(name="tiny", signature="describe", inputs={"query": [b"", b""]})
    assert len(response.outputs["contract"].string_val) == 2
    zero = client.predict(name="odd", signature="zero", inputs={}, output_filter=["labels"])
    assert {alias: list(tensor.string_val) for alias, tensor in zero.outputs.items()} == {"labels": [b"a", b"\xff\x00"]}


def test_types_go_both_ways(client):
    """float16, int64 and bool come back in the fields of their types."""
    import tensorflow as tf

    sent = {"h": np.float16([1.5, -2]), "i": np.int64([2**40, -1]), "b": np.array([True, False])}
    response = client.predict(name="odd", signature="types", inputs=sent)
    for alias, array in sent.items():
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs[alias]), array)
    assert response.outputs["h"].half_val and response.outputs["i"].int64_val and response.outputs["b"].bool_val


def test_a_large_message(client):
    """More than gRPC's usual 4 MiB pass in both directions."""
    response = client.predict(name="odd", signature="anyrank", inputs={"x": np.ones(1_500_000, np.float32)})
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
        ({"name": "odd", "label": "stable"}, "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
        ({"name": "nope", "label": "stable"}, "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
    ],
)
def test_a_model_that_is_not_there(client, spec, code, message):
    """Predict and GetModelMetadata find the model, or say the same about it."""
    assert failure(client.predict, inputs={"x": X}, **spec) == (code, message)
    assert failure(client.metadata, **spec) == (code, message)


SIZE = "input size does not match signature: "
ALIAS = "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value provided. "


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        ({"signature": "nosig"}, "FAILED_PRECONDITION", 'Serving signature key "nosig" not found.'),
        (
            {"inputs": {}},
            "INVALID_ARGUMENT",
            f"{SIZE}0!=1 len({{}}) != len({{x}}). Sent extra: {{}}. Missing but required: {{x}}.",
        ),
        (
            {"signature": "two", "inputs": {"a": X}},
            "INVALID_ARGUMENT",
            f"{SIZE}1!=2 len({{a}}) != len({{a,b}}). Sent extra: {{}}. Missing but required: {{b}}.",
        ),
        (
            {"inputs": {"x": X, "z": X}},
            "INVALID_ARGUMENT",
            f"{SIZE}2!=1 len({{x,z}}) != len({{x}}). Sent extra: {{z}}. Missing but required: {{}}.",
        ),
        (
            {"signature": "zero", "inputs": {"x": X}},
            "INVALID_ARGUMENT",
            f"{SIZE}1!=0 len({{x}}) != len({{}}). Sent extra: {{x}}. Missing but required: {{}}.",
        ),
        (
            {"inputs": {"z": X}},
            "INVALID_ARGUMENT",
            f"{ALIAS}Inputs expected to be in the request {{z}}, or default input alias set: ",
        ),
        (
            {"inputs": {"x": X.astype(np.float64)}},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        ({"inputs": {"x": [[b"a"]]}}, "INVALID_ARGUMENT", "Expects arg[0] to be float but string is provided"),
        ({"inputs": {"x": X.astype(np.int32)}}, "INVALID_ARGUMENT", "Expects arg[0] to be float but int32 is provided"),
        ({"inputs": {"x": broken_tensor}}, "INVALID_ARGUMENT", "tensor parsing error: x"),
        (
            {"output_filter": ["nope"]},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
        ),
        ({"output_filter": ["y", "y"]}, "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
    ],
)
def test_a_request_that_does_not_fit(client, request_, code, message):
    """Predict refuses it with the code and the text of TensorFlow Serving."""
    request_ = {"name": "odd", "inputs": {"x": X}, **request_}
    request_["inputs"] = {alias: value() if callable(value) else value for alias, value in request_["inputs"].items()}
    assert failure(client.predict, **request_) == (code, message)


@pytest.mark.parametrize("shape", [(2, 5), (3,), (), (1, 1, 3), (0, 3)])
def test_a_wrong_shape_is_refused(client, shape):
    """Unlike in TensorFlow Serving, where the graph may answer, fail or abort the process."""
    assert failure(client.predict, name="odd", inputs={"x": np.ones(shape, np.float32)}) == (
        "INVALID_ARGUMENT",
        f"Expected x of shape (n, 3) with n >= 1. Received: {shape}",
    )


def test_a_failure_in_the_graph_keeps_its_code_and_text(client):
    """An image that does not decode inside the graph is INVALID_ARGUMENT with the operation's words."""
    code, message = failure(client.predict, name="odd", signature="decode", inputs={"image": [b"not an image"]})
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
    assert sorted(signatures.signature_def) == ["anyrank", "decode", "serving_default", "two", "types", "zero"]
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
    for spec in ({}, {"version": 1}, {"label": "any"}):
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

    with pytest.raises(grpc.RpcError) as raised:
        client.classify(classification_pb2.ClassificationRequest())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


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
    """Four clients in tight loops see no error while versions come and go, and each answer is of the version it says.

    Odd versions are TFLite, even ones SavedModels that answer otherwise.
    """
    base_path, client = swapping
    uniform_version(base_path / "staged")
    first = client.predict(name="tiny", inputs={"images": IMAGES}).outputs["probabilities"].float_val[0]
    assert abs(first - 1 / 3) > 1e-4
    expected = {1: first, 0: 1 / 3}
    answers, failures, done = [], [], threading.Event()

    def ask():
        while not done.is_set():
            try:
                response = client.predict(name="tiny", inputs={"images": IMAGES})
                number = response.model_spec.version.value
                answers.append((number, response.outputs["probabilities"].float_val[0]))
            except Exception as exc:
                failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2, 9):
        shutil.copytree(base_path / ("1" if number % 2 else "staged"), base_path / f"{number}.tmp")
        (base_path / f"{number}.tmp").rename(base_path / str(number))
        client.wait_for((number, "AVAILABLE"))
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert {number for number, _ in answers} >= {1, 8}
    assert all(value == pytest.approx(expected[number % 2], abs=1e-5) for number, value in answers)
    client.wait_for((6, "END"))
    assert client.states() == [
        (8, "AVAILABLE"), (7, "AVAILABLE"), (6, "END"), (5, "END"), (4, "END"), (3, "END"), (2, "END"), (1, "END"),
    ]  # fmt: skip
    assert failure(client.predict, name="tiny", version=1, inputs={"images": IMAGES}) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(tiny, 1)",
    )


def test_a_broken_version_leaves_the_old_one_alone(swapping):
    """A version without a model ends with its error in the status; odd names are ignored; 0011 is version 11."""
    base_path, client = swapping
    for name in ("v2", "2.tmp", "best", "3"):
        (base_path / name).mkdir()
    client.wait_for((3, "END"))
    assert client.states() == [(3, "END"), (1, "AVAILABLE")]
    (failed,) = client.status(name="tiny", version=3).model_version_status
    assert failed.status.error_code == 5
    assert failed.status.error_message.startswith(
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called `saved_model.pb`"
    )
    shutil.copytree(base_path / "1", base_path / "copy")
    (base_path / "copy").rename(base_path / "0011")
    client.wait_for((11, "AVAILABLE"))
    assert client.predict(name="tiny", inputs={"images": IMAGES}).model_spec.version.value == 11


def test_rollback_and_an_emptied_store(swapping):
    """Removing the newest goes back to the one before; removing all leaves nothing, until a version returns."""
    base_path, client = swapping
    shutil.copytree(base_path / "1", base_path / "copy")
    (base_path / "copy").rename(base_path / "2")
    client.wait_for((2, "AVAILABLE"))
    (base_path / "2").rename(base_path / "away")
    client.wait_for((2, "END"))
    assert client.predict(name="tiny", inputs={"images": IMAGES}).model_spec.version.value == 1
    (base_path / "1").rename(base_path / "gone")
    client.wait_for((1, "END"))
    assert failure(client.predict, name="tiny", inputs={"images": IMAGES}) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(tiny)",
    )
    (base_path / "away").rename(base_path / "2")
    client.wait_for((2, "AVAILABLE"))
    assert client.predict(name="tiny", inputs={"images": IMAGES}).model_spec.version.value == 2
