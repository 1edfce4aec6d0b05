"""Networks that can be trained or released, and files of them."""
