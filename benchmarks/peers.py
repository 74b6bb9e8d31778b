"""The dense network as others run it: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO.

Every peer gets the same module, the same input and as many threads as torch has. Its output is compared with the
definition's; a float32 peer that differs by more than F32_ERROR of the largest value gets no time.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Settings
from benchmarks.machine import cpu_flags
from dynroute.models import DynamicNetwork
from dynroute.models.layers import upsample
from dynroute.space.wiring import DOWN, KEEP, UP

F32_ERROR = 1e-4
BF16_ERROR = 0.5  # reported apart, for its speed; only nonsense is refused
EAGER, EAGER_NHWC, COMPILED = "eager", "eager_channels_last", "torch_compile"
ONNXRUNTIME, OPENVINO, OPENVINO_BF16 = "onnxruntime", "openvino", "openvino_bf16"
OPSET = 18


class DenseNetwork(nn.Module):
    """All paths open, no gates: what a user of plain PyTorch would write for Network-Fix."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__()
        self.space, self.stem, self.decoder = net.space, net.stem, net.decoder
        self.rows = nn.ModuleList(nn.ModuleList(row) for row in net.rows())

    def forward(self, images: Tensor) -> Tensor:
        """images [N,3,H,W], H and W multiples of 32 -> logits [N,K,H,W]."""
        inputs = [self.stem(images)]
        for r, nodes in enumerate(self.rows):
            outputs = []
            for node, x in zip(nodes, inputs):
                h = F.relu(node.cell(x))
                out: list[Tensor | None] = [None, h, None]
                if node.node.paths[UP]:
                    out[UP] = upsample(node.up(h), 2)
                if node.node.paths[DOWN]:
                    out[DOWN] = node.down(h)
                outputs.append(out)
            if r + 1 == len(self.rows):
                break
            inputs = []
            for node in self.space[r + 1]:
                s = node.scale
                terms = [outputs[at][p] for p, at in ((DOWN, s - 1), (KEEP, s), (UP, s + 1)) if node.sources[p]]
                x = terms[0]
                for term in terms[1:]:
                    x = x + term
                inputs.append(x)
        return self.decoder([out[KEEP] for out in outputs])


@dataclass
class Peers:
    """Callables by name; each one's relative error; why the others are not there."""

    jobs: dict[str, Callable[[], object]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def relative_error(got: Any, wanted: Tensor) -> float:
    """Largest difference over the largest value of `wanted`; infinite for another shape or NaN."""
    got = torch.as_tensor(got)
    if got.shape != wanted.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def admit(peers: Peers, name: str, job: Callable[[], Any], wanted: Tensor, limit: float = F32_ERROR) -> None:
    """Takes a callable in if its output is right, else says in `absent` how wrong it is."""
    error = relative_error(job(), wanted)
    peers.errors[name] = error
    if error <= limit:
        peers.jobs[name] = job
    else:
        peers.absent[name] = f"no time: its output differs by {error:.2g} of the largest value, more than {limit:g}"


def make_peers(
    module: nn.Module, x: Tensor, wanted: Tensor, settings: Settings, skip: dict[str, str] | None = None
) -> Peers:
    """All peers of a module on one input.

    Args:
        module: in evaluation mode, one input and one output.
        x: [N,C,H,W]; wanted: the definition's output for it.
        skip: peers to leave out, with the reason.
    """
    peers = Peers()
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        EAGER: lambda: _eager(module, x, False),
        EAGER_NHWC: lambda: _eager(module, x, True),
        COMPILED: lambda: _compiled(module, x, settings),
        ONNXRUNTIME: lambda: _onnxruntime(_static_onnx(module, x, settings), x),
        OPENVINO: lambda: _openvino(_static_onnx(module, x, settings), x, "f32"),
        OPENVINO_BF16: lambda: _openvino(_static_onnx(module, x, settings), x, "bf16"),
    }
    for name, make in makers.items():
        reason = (skip or {}).get(name) or (None if settings.wants(name) else "not asked for") or _why_not(name)
        if reason:
            peers.absent[name] = reason
            continue
        settings.say(name)
        try:
            job = make()
            admit(peers, name, job, wanted, BF16_ERROR if name == OPENVINO_BF16 else F32_ERROR)
        except Exception as error:  # a peer that breaks is a result, not the end of the run
            peers.absent[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
    return peers


def _why_not(name: str) -> str | None:
    if name == OPENVINO_BF16 and not cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return "this machine has neither AMX nor AVX-512 BF16"
    wanted = {ONNXRUNTIME: ("onnxruntime",), OPENVINO: ("openvino",), OPENVINO_BF16: ("openvino",)}.get(name, ())
    for package in (*wanted, "onnx", "onnxscript") if wanted else ():
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"not installed: {error}"
    return None


def _eager(module: nn.Module, x: Tensor, channels_last: bool) -> Callable[[], Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # weights are converted once, as a user would; the copy keeps the caller's own as they are
    ready = copy.deepcopy(module).to(memory_format=layout)  # type: ignore[call-overload]
    images = x.contiguous(memory_format=layout)

    def run() -> Tensor:
        with torch.inference_mode():
            return ready(images)

    return run


def _compiled(module: nn.Module, x: Tensor, settings: Settings) -> Callable[[], Tensor]:
    settings.say("torch.compile: compiling, which takes minutes for a whole network")
    torch.compiler.reset()
    ready = torch.compile(copy.deepcopy(module).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    images = x.contiguous(memory_format=torch.channels_last)

    def run() -> Tensor:
        with torch.inference_mode():
            return ready(images)

    run()
    return run


def _exported(module: nn.Module, x: Tensor, settings: Settings) -> Path:
    """The module as ONNX with N, H and W open, made once for its weights and code."""
    digest = hashlib.sha256(f"{torch.__version__} {OPSET} {module}".encode())
    digest.update(inspect.getsource(type(module)).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    folder = settings.cache / f"{type(module).__name__}-{digest.hexdigest()[:16]}"
    path = folder / "model.onnx"
    if path.is_file():
        return path
    settings.say("exporting to ONNX, about a minute for a whole network")
    folder.mkdir(parents=True, exist_ok=True)
    step = 32 if isinstance(module, DenseNetwork) else 1
    size = [torch.export.Dim(name, min=2, max=8192 // step) for name in ("h", "w")]
    shapes = ({0: torch.export.Dim("n", min=1, max=64), 2: step * size[0], 3: step * size[1]},)
    # two samples: with one, the exporter would take the 1 for a constant
    example = torch.zeros(2, x.shape[1], 4 * step, 8 * step)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            copy.deepcopy(module), (example.clone(),), path, input_names=["x"], output_names=["y"],
            opset_version=OPSET, dynamo=True, dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    return path


def _static_onnx(module: nn.Module, x: Tensor, settings: Settings) -> Path:
    """The same with its sizes fixed: runtimes plan memory and layouts better when they know them."""
    import onnx

    path = _exported(module, x, settings)
    fixed = path.with_name("x".join(map(str, x.shape)) + ".onnx")
    if not fixed.is_file():
        model = onnx.load(str(path), load_external_data=False)  # the copy lies beside it and shares its weights
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, x.shape):
            dim.dim_value = size
        model.graph.output[0].type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        onnx.save(model, str(fixed))
    return fixed


def _onnxruntime(path: Path, x: Tensor) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"x": x.contiguous().numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(path: Path, x: Tensor, precision: str) -> Callable[[], Any]:
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RuntimeError("OpenVINO has no bf16 on this machine")
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    images = x.contiguous().numpy()
    return lambda: compiled([images])[0]
