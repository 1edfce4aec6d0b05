"""The measurements that the README quotes, each one command. Ratios are taken within one run, rounds interleaved."""
