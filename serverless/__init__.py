"""The gateway and a model in one process for AWS Lambda: no model server, no gRPC, no TensorFlow."""
