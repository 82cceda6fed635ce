"""A trained model at work: the calculator, predictions for a data set, dynamics."""
