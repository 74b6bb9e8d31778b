"""The network on the CPU kernels."""
