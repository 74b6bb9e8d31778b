"""The operators in Triton: for every GPU that it serves, and, interpreted, a second opinion on the CPU.

`dynroute_triton::<op>` are torch's `triton_op`: compilers and exporters see into them. `dynroute.ops.backends` imports
them when one is first asked for: so is Triton itself, and not before.
"""
