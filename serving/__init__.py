"""The embedded model server: TensorFlow Serving's gRPC API, directory layout and flags in a small Python process.

`python -m serving --model_name=flowers --model_base_path=/models/flowers` answers Predict, GetModelMetadata and
GetModelStatus with the codes and messages of TensorFlow Serving, so that a client cannot tell the two apart; so does
REST, for people. Left out: Classify, Regress, MultiInference, version labels, batching, reloading the configuration.

Different on purpose: an input of the wrong shape is INVALID_ARGUMENT (TensorFlow Serving hands it to the graph, which
may abort the process), SIGTERM drains, a taken port is a start error, the last two versions stay loaded, and a version
that has to be retried holds up no other.

`__main__` starts and stops it, `settings` reads the flags, `versions` finds versions on disk, `lifecycle` loads and
unloads them, `engines` runs them, `warmup` runs them once before the first client, `prediction` checks and answers one
request, `service` speaks gRPC, `rest` speaks REST, `errors` names every failure.
"""
