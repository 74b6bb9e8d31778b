"""The training operators in Triton: BatchNorm by the batch's statistics, backwards that make again what was not kept.

`source` says how a kernel reads a map that lies behind a BatchNorm, `samples` which samples take part; `forward`,
`norm` and `backward` are the kernels of a stage, of which `chain`, `node` and `gate` make operators.
"""
