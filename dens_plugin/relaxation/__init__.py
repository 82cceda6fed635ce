"""Relaxing the structures of a data set with a trained model."""
