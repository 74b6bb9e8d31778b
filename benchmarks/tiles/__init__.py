"""The pictures of docs/kernels/operators: `python -m benchmarks.tiles`."""
