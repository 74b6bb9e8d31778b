"""What the CPU runtime costs and saves, beside what else runs the same networks: `python -m benchmarks --help`."""
