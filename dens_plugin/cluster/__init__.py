"""Runs on a Slurm cluster: what a site offers, what is to run, and the job that survives preemption."""
