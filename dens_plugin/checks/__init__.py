"""A config and what it names, looked at before the first step: every check once."""
