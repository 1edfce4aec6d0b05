"""What the tests of gRPC and of REST share: signatures for a fake engine, and a lifecycle that runs it."""

import threading

import pytest

from contract import messages_pb2 as messages
from serving.lifecycle import Lifecycle
from serving.settings import Settings


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
