"""What training, serving and the gateway agree on: pixels, tensors and names.

A model version carries every fact about itself inside its files, under three signatures:

| signature           | input                                            | output                                     |
|---------------------|--------------------------------------------------|--------------------------------------------|
| `serving_default`   | `images` uint8 (n, h, w, 3), RGB, 0-255, resized | `probabilities` float32 (n, k)             |
| `export_<identity>` | the same                                         | the same, `identity` int64 (n): its bits   |
| `describe`          | `query` string (n)                               | `contract` string (n), the same JSON       |

A version's number says where an export lies, its identity which export it is: 64 random bits that each export makes
once. A gateway asks by the identity, so another export that has come to lie under the same number cannot answer; the
answer repeats it. Exports made before November 2026 have no identity, and are asked by `serving_default`.

Normalisation is in the graph, so pixels travel as uint8: a quarter of the bytes of float32. `describe` takes and
returns one string a row because TensorFlow Serving refuses anything else once batching is on.

The JSON is `contract.document.Contract`: classes in output order (the index is the identity, names may repeat), how an
image becomes pixels (`ImageSpec`, executed by `contract.image.decode` in training and in the gateway alike), how the
model was made, its metrics, and golden examples: encoded images with the probabilities that this very file gave when
it was exported. A gateway replays them before it trusts a version.

No network, no TensorFlow and no settings in this package.
"""
