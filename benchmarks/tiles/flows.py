# ruff: noqa: RUF001  (signs of mathematics)
"""What the training operators keep and make again: the way of the data, forward and back."""

from __future__ import annotations

from benchmarks.tiles.panels import Panel, picture


def chain_flow() -> str:
    """A stage of sepconv_train or transform_train."""
    forward = Panel("Forward", "a stage: raw is stored, nothing behind a BatchNorm is; whoever reads raw applies it")
    forward.flow(
        [
            [("x, or raw of the stage before", "memory")],
            [("BatchNorm and ReLU, as it is read", "registers")],
            [("depthwise, of a tile", "L1")],
            [("product: raw, kept", "memory"), ("sums of a tile or band", "registers")],
            [("", ""), ("mean, 1/σ: kept", "memory")],
        ]
    )
    back = Panel("Back", "g: the gradient behind the BatchNorm; gain, slope: two numbers of a channel")
    back.flow(
        [
            [("raw, g", "memory")],
            [("gain (g - mean g) + slope (raw - mean)", "registers")],
            [("× W, transposed", "registers"), ("∑ × depthwise, made again", "registers")],
            [("g of the depthwise", "memory"), ("g of W: parts", "memory")],
            [("transposed depthwise, taps, sums for the BatchNorm before", "registers")],
            [("g behind the BatchNorm before", "memory")],
        ]
    )
    return picture("A chain of training stages", "sepconv_train, transform_train, and a node's cell.", [forward, back])


def node_flow() -> str:
    """A node with both paths."""
    forward = Panel("Forward", "H = ReLU(x + factor · BatchNorm(y)) is stored nowhere")
    forward.flow(
        [
            [("x", "memory"), ("y: raw of the cell's last stage", "memory")],
            [("H", "registers")],
            [("keep = α H", "memory"), ("up: H × W", "registers"), ("down: H × W, every second pixel", "registers")],
            [("", ""), ("raw, sums", "memory"), ("raw, sums", "memory")],
            [("", ""), ("α ReLU of BatchNorm", "memory"), ("α ReLU of BatchNorm", "memory")],
        ]
    )
    back = Panel("Back", "one gradient of H, out of three")
    back.flow(
        [
            [("g of keep", "memory"), ("g, raw of up", "memory"), ("g, raw of down", "memory")],
            [("α g", "registers"), ("× W, transposed", "registers"), ("× W, transposed", "registers")],
            [("the sum, where H > 0", "memory")],
            [("the chain's backward", "registers"), ("alphas: ∑ g × what they weigh", "registers")],
            [("g of x", "memory"), ("g of alphas", "memory")],
        ]
    )
    return picture("node_train: what is behind the cell", "x, y and the paths' raw outputs are kept.", [forward, back])


def gate_flow() -> str:
    """Both directions."""
    forward = Panel("Forward", "what is behind BatchNorm and ReLU is only ever averaged, so it is never stored")
    forward.flow(
        [
            [("x", "memory")],
            [("product: raw, kept", "memory"), ("mean, 1/σ: kept", "memory")],
            [("b = scale · raw + shift, as it is read", "registers")],
            [("∑ ReLU(b)", "registers"), ("pixels with b > 0", "registers"), ("∑ raw - mean there", "registers")],
            [("three numbers of each sample and channel: kept", "memory")],
            [("mean → 1×1 → alphas", "registers")],
        ]
    )
    back = Panel(
        "Back", "all pixels of a sample and channel have one gradient: no pass over the map for BatchNorm's sums"
    )
    back.flow(
        [
            [("g of the alphas", "memory"), ("the three numbers", "memory")],
            [("g of every pixel above 0; the sums of BatchNorm's backward", "registers")],
            [("raw, read once more: its gradient", "registers")],
            [("× W, transposed: g of x", "memory"), ("∑ × x: g of W, parts", "memory")],
        ]
    )
    return picture("gate_train: three numbers instead of a map", "Of each sample and channel.", [forward, back])
