"""Data sets: raw releases and made-up data to LMDB files, and a look at them before a run."""
