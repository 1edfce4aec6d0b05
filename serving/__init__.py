"""The embedded model server: TensorFlow Serving's gRPC API, directory layout and flags in a small Python process.

`python -m serving --model_name=flowers --model_base_path=/models/flowers` answers Predict, GetModelMetadata and
GetModelStatus with the codes and messages of TensorFlow Serving, so that a client cannot tell the two apart. People can
ask by REST. Left out: Classify, Regress, MultiInference, version labels, batching, reloading the configuration.
Of a model with signatures for those, Predict answers, as the original does.

Different on purpose:

- An input of the wrong shape is INVALID_ARGUMENT if the signature declares three dimensions or more, or on TFLite.
  TensorFlow Serving runs the graph, which may abort the process.
- SIGTERM lets requests finish.
- A port in use is a start error.
- The last two versions stay loaded.
- While one version waits for a retry, others load.
- The status of a version says what runs it, and why.

`__main__` starts and stops it, `settings` reads the flags, `versions` chooses which versions to load, `lifecycle` loads
and unloads them, `choice` finds out what runs one fastest, `engines` runs them, `warmup` runs them before the first
client, `prediction` checks and answers one request, `service` speaks gRPC, `rest` speaks REST, `errors` names every
failure.
"""
