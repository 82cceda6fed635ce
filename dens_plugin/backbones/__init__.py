"""fairchem's networks with a force encoding and a noise head, by subclassing."""
