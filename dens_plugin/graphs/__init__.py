"""What was computed once, recorded with its kernels and replayed: torch's CUDA graphs, and the memory they hold."""
