"""A trained model at work: the calculator, dynamics."""
