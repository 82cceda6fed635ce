"""Batches made one size by ghosts that count nowhere, so that what a GPU did for one can be replayed for another."""
