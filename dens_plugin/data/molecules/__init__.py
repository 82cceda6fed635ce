"""Molecules and crystals of a user's own, and published sets of them: ``dens data molecules``."""
