"""Training methods, each in one file; torch only."""
