"""What the tests of gRPC and of REST share: servers, what asks them, and signatures for a fake engine."""

import json
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial

import grpc
import pytest

from contract import messages_pb2 as messages
from serving.engines import open_engine
from serving.lifecycle import Lifecycle
from serving.rest import RestServer
from serving.service import Server
from serving.settings import Settings


@contextmanager
def serving(*base_paths):
    """Run a server in this process that looks at the disk all the time; yield its ports, of gRPC and of REST."""
    models = tuple(messages.ModelConfig(name=path.name, base_path=str(path)) for path in base_paths)
    settings = Settings(models=models, file_system_poll_wait_seconds=0.02, grpc_max_threads=16)
    lifecycle = Lifecycle(settings, partial(open_engine, engine="auto", threads=1))
    lifecycle.start()
    assert lifecycle.wait_until_available(threading.Event())
    server, rest = Server(lifecycle, ["127.0.0.1:0"], settings), RestServer(lifecycle, "127.0.0.1", 0)
    yield server.ports[0], rest.server_port
    server.drain(0)
    rest.shutdown()
    rest.server_close()
    lifecycle.stop()


def predict(channel):
    """Return a function that asks for a prediction, by a message or by any bytes."""
    return channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=messages.PredictResponse.FromString,
    )


def failure(call, *arguments, **options):
    """Return the code and the text of a call by gRPC that fails."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments, **options)
    return raised.value.code().name, raised.value.details()


def by_rest(port, path, body=None):
    """Ask for a path, with a body by POST; return the status and the JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


def echo(**tensors):
    """Return a signature that answers its inputs; each is given by its type and its sizes, of which -1 is any."""
    infos = {}
    for alias, (dtype, *sizes) in tensors.items():
        dims = [messages.TensorShapeProto.Dim(size=size) for size in sizes]
        infos[alias] = messages.TensorInfo(dtype=dtype, tensor_shape=messages.TensorShapeProto(dim=dims))
    return messages.SignatureDef(inputs=infos, outputs=infos, method_name="tensorflow/serving/predict")


@pytest.fixture
def lifecycle(tmp_path, engine):
    """Version 7 of model m, available, run by the test file's `engine`."""
    (tmp_path / "m" / "7").mkdir(parents=True)
    model = messages.ModelConfig(name="m", base_path=str(tmp_path / "m"))
    lifecycle = Lifecycle(Settings(models=(model,)), lambda directory: engine)
    lifecycle.start()
    assert lifecycle.wait_until_available(threading.Event())
    yield lifecycle
    lifecycle.stop()
