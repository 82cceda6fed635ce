"""The same arithmetic for other machines than plain torch is for: loops for a CPU, Triton's kernels for a GPU."""
