"""The network on CUDA kernels: on a GPU, or on the emulator."""
