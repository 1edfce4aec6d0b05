"""Every way in which a request, a load or a start can fail, by status code. Free of gRPC."""

from __future__ import annotations

from contract.messages_pb2 import Code


class ServingError(Exception):
    """A failure with a code and a message for the person who sees it.

    ServingError
    ├── InvalidArgumentError      the request, a flag or a configuration is wrong
    ├── NotFoundError             no such model, version or model file
    ├── FailedPreconditionError   no such signature, or a package that the model needs is missing
    ├── DeadlineExceededError     the client's deadline passed while the request waited
    ├── UnimplementedError        a feature of TensorFlow Serving that is not here
    ├── DataLossError             a file is truncated or corrupt
    ├── BusyError                 as many predictions as are allowed are under way
    ├── UnavailableError          the server cannot listen on its address
    └── GraphError                the model itself failed; carries the code that the runtime gave
    """

    code: Code = Code.UNKNOWN


class InvalidArgumentError(ServingError):
    code = Code.INVALID_ARGUMENT


class NotFoundError(ServingError):
    code = Code.NOT_FOUND


class FailedPreconditionError(ServingError):
    code = Code.FAILED_PRECONDITION


class DeadlineExceededError(ServingError):
    code = Code.DEADLINE_EXCEEDED


class UnimplementedError(ServingError):
    code = Code.UNIMPLEMENTED


class DataLossError(ServingError):
    code = Code.DATA_LOSS


class BusyError(ServingError):
    code = Code.RESOURCE_EXHAUSTED


class UnavailableError(ServingError):
    code = Code.UNAVAILABLE


class GraphError(ServingError):
    """The model itself failed, while it was loaded or run."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
