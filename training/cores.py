"""The cores that this process may use, and how many of TFLite's interpreters share them."""

from serving.settings import cores

CORES = cores()
_MOST_INTERPRETERS = 16  # each has its own copy of the weights, 30 MB of EfficientNet-Lite0 with what it computes
THREADS = -(-CORES // _MOST_INTERPRETERS)  # of each
INTERPRETERS = CORES // THREADS
