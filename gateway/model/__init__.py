"""The model server as the gateway sees it: which versions may answer, and asking one."""
