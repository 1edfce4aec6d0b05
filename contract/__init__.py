"""What training, serving and the gateway agree on: pixels, tensors and names.

The files of a version contain every fact about it. They have three signatures:

| signature           | input                                            | output                                     |
|---------------------|--------------------------------------------------|--------------------------------------------|
| `serving_default`   | `images` uint8 (n, h, w, 3), RGB, 0-255, resized | `probabilities` float32 (n, k)             |
| `export_<identity>` | the same                                         | the same, `identity` int64 (n): its bits,  |
|                     |                                                  | and perhaps `novelty` float32 (n), 0 to 1  |
| `describe`          | `query` string (n)                               | `contract` string (n), the same JSON       |

A version's number is the name of its directory. Its identity is 64 random bits that each export makes once. A gateway
asks by the identity, so another export under the same number cannot answer, and the answer repeats it. Exports before
28 November 2026 have no identity; `serving_default` is asked there.

Normalisation is in the graph, so pixels travel as uint8: a quarter of the bytes of float32. `describe` takes and
returns one string for each row, because TensorFlow Serving refuses anything else once batching is on.

The JSON is `contract.document.Contract`. It contains:

- the class names in output order; a name may appear twice, the index identifies a class;
- how an image becomes pixels (`ImageSpec`), which `contract.image.decode` does in training and in the gateway alike;
- how the model was made, and its metrics;
- above which `novelty` an image is unlike all that the model was trained on, if it was trained here;
- golden examples: encoded images with the probabilities that this very file gave at export. A gateway replays them
  before it uses a version.

This package has no network, no TensorFlow and no settings of its own; `settings.py` and `client.py` read those of the
programs.
"""
