"""The gateway and a model in one process that AWS Lambda calls: no model server, no gRPC, no TensorFlow."""
