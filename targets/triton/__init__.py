"""NVIDIA and AMD GPUs: Triton kernels compiled ahead of time, launched through the driver alone."""
