"""Checkpoints of other implementations, to and from ours."""
