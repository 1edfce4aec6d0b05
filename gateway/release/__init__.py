"""`python -m gateway.release`: says which version answers, tries others beside it, and remembers it all."""
