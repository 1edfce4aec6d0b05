"""The gateway: an image reference in, an answer out. Fetch, decode, predict, answer; without TensorFlow."""
