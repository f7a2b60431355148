"""Export a residual network as an ONNX graph: a Conv node for each convolution, with its name.

The graph is written node by node rather than converted, so that it reads like the network and no
converter changes the padding.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import ResNetJaxError, importing
from resnet_jax.interop.network import Network
from resnet_jax.models import UNITS, BatchNorm, ResNet, norm_of
from resnet_jax.storage import PathLike, write_whole

# Both are old enough for any runtime of recent years.
OPSET, IR_VERSION = 17, 8
OUTPUTS = ("logits", "probabilities")
NEEDED = "export to ONNX", "'resnet_jax[onnx]'"


def export_onnx(path: PathLike, network: Network) -> None:
    """Write a network in float32 as ONNX, if the export's outputs agree with the network's.

    Input ``images``: ``uint8[N, H, W, C]``; outputs ``logits`` and ``probabilities``:
    ``float32[N, K]``. The file's metadata are the network's, as JSON.

    Raises:
        ResNetJaxError: onnx or onnxruntime is missing, a unit or a norm is not one of the
            package's, or the export differs.
    """
    content = to_onnx(network)
    with jax.default_matmul_precision("highest"):  # as in the file, whatever the run's setting
        network.check("onnx", runner(content))
    write_whole(path, content)


def to_onnx(network: Network) -> bytes:
    graph = _Graph(network.variables)
    x = graph.preprocess("images", network.preprocessing)
    x = graph.network(network.model, x)
    graph.add("Softmax", [x], "probabilities", axis=-1)
    return graph.serialize(network)


def runner(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function that runs a serialised model with onnxruntime on a CPU."""
    with importing(*NEEDED):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(OUTPUTS, session.run(OUTPUTS, {"images": images}), strict=True))


class _Graph:
    """A graph built in the order of execution; a node, its output and its layer share a name."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        with importing(*NEEDED):
            import onnx
        self.onnx: Any = onnx
        self.values: dict[str, np.ndarray] = {}  # parameters and statistics, by name
        for collection in variables.values():
            self.values |= traverse_util.flatten_dict(collection, sep="/")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        node = self.onnx.helper.make_node(op, inputs, [name], name=name, **attributes)
        self.nodes.append(node)
        return name

    def constant(self, name: str, value: Any) -> str:
        array = np.ascontiguousarray(value, np.float32)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def stored(self, layer: str, *parts: str) -> list[str]:
        names = [f"{layer}/{part}" for part in parts]
        return [self.constant(name, self.values[name]) for name in names]

    def preprocess(self, x: str, settings: Preprocessing) -> str:
        """Apply a `Preprocessing`, from uint8 NHWC to float32 NCHW."""
        x = self.add("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
        x = self.add("Cast", [x], "float", to=self.onnx.TensorProto.FLOAT)
        size, shape = settings.image_size, settings.image_shape[:2]
        if size is not None and shape != (size, size):
            # Resizing or cropping is one product for the rows and one for the columns. Resizing
            # matrices come from JAX, so that antialiasing and edges are the same.
            rows, columns = (_resizing(before, size, settings.center_crop) for before in shape)
            x = self.add("MatMul", [self.constant("resize_rows/weight", rows), x], "resize_rows")
            weight = self.constant("resize_columns/weight", columns.T)
            x = self.add("MatMul", [x, weight], "resize_columns")
        x = self.add("Div", [x, self.constant("scale/value", 255.0)], "scale")
        for op, name, value in (("Sub", "mean", settings.mean), ("Div", "std", settings.std)):
            constant = self.constant(f"{name}/value", np.reshape(value, (-1, 1, 1)))
            x = self.add(op, [x, constant], name)
        return x

    def network(self, model: ResNet, x: str) -> str:
        norm = norm_of(model)
        if model.unit not in UNITS or not isinstance(norm, BatchNorm):
            parts = f"units {model.unit.__name__} with {type(norm).__name__}"
            raise ResNetJaxError(f"the ONNX writer does not know {parts}: export stablehlo")
        self.epsilon = norm.epsilon
        if model.stem == "deep":
            for k, stride in ((1, 2), (2, 1)):
                x = self.conv(x, f"stem/conv{k}", stride)
                x = self.relu(self.norm(x, f"stem/norm{k}"))
        x = self.conv(x, "stem/conv", stride=2 if model.stem == "imagenet" else 1)
        if model.stem != "conv":
            x = self.relu(self.norm(x, "stem/norm"))
        if model.stem in ("imagenet", "deep"):
            window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            x = self.add("MaxPool", [x], "stem/pool", **window)
        for stage, size in enumerate(model.stage_sizes, start=1):
            for index in range(1, size + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                x = self.unit(x, f"stage{stage}_unit{index}", stride, model)
        if model.unit.preactivation:
            x = self.relu(self.norm(x, "norm"))
        x = self.add("Flatten", [self.add("GlobalAveragePool", [x], "pool")], "features")
        return self.add("Gemm", [x, *self.stored("head", "kernel", "bias")], "logits")

    def unit(self, x: str, name: str, stride: int, model: ResNet) -> str:
        """Add one of `UNITS`; stride and groups apply to its first 3x3 convolution."""
        before, bottleneck = model.unit.preactivation, f"{name}/conv3/kernel" in self.values
        count, strided = (3, 2) if bottleneck else (2, 1)
        y = activated = self.relu(self.norm(x, f"{name}/norm1")) if before else x
        for k in range(1, count + 1):
            y = self.relu(self.norm(y, f"{name}/norm{k}")) if before and k > 1 else y
            groups = model.groups if bottleneck and k == strided else 1
            y = self.conv(y, f"{name}/conv{k}", stride if k == strided else 1, groups)
            y = y if before else self.norm(y, f"{name}/norm{k}")
            y = y if before or k == count else self.relu(y)
        if model.residual:
            x = self.shortcut(x, activated, name, stride, count)
            y = self.add("Add", [y, x], f"{name}/sum")
        return y if before else self.relu(y)

    def shortcut(self, x: str, activated: str, name: str, stride: int, count: int) -> str:
        for kind in ("shortcut", "average"):
            if f"{name}/{kind}_conv/kernel" in self.values:
                if kind == "average" and stride > 1:
                    window = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
                    activated = self.add("AveragePool", [activated], f"{name}/average", **window)
                    stride = 1
                x = self.conv(activated, f"{name}/{kind}_conv", stride)
                norm = f"{name}/{kind}_norm"
                return self.norm(x, norm) if f"{norm}/scale" in self.values else x
        before = self.values[f"{name}/conv1/kernel"].shape[2]
        after = self.values[f"{name}/conv{count}/kernel"].shape[3]
        if stride == 1 and before == after:
            return x
        # A 1x1 identity kernel takes every second pixel and gives zeros for the new channels.
        self.values[f"{name}/pad/kernel"] = np.eye(before, after)[None, None]
        return self.conv(x, f"{name}/pad", stride)

    def relu(self, x: str) -> str:
        return self.add("Relu", [x], f"{x}/relu")

    def conv(self, x: str, name: str, stride: int, groups: int = 1) -> str:
        kernel = self.values[f"{name}/kernel"]
        side = kernel.shape[0]
        weight = self.constant(f"{name}/kernel", np.transpose(kernel, (3, 2, 0, 1)))
        window = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [side // 2] * 4}
        return self.add("Conv", [x, weight], name, group=groups, **window)

    def norm(self, x: str, name: str) -> str:
        inputs = self.stored(name, "scale", "bias", "mean", "var")
        return self.add("BatchNormalization", [x, *inputs], name, epsilon=self.epsilon)

    def serialize(self, network: Network) -> bytes:
        onnx, make = self.onnx, self.onnx.helper
        uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
        value = make.make_tensor_value_info
        images = value("images", uint8, ["N", *network.preprocessing.image_shape])
        outputs = [value(name, float32, ["N", network.model.num_classes]) for name in OUTPUTS]
        graph = make.make_graph(self.nodes, "resnet", [images], outputs, self.constants)
        versions = {"ir_version": IR_VERSION, "opset_imports": [make.make_opsetid("", OPSET)]}
        model = make.make_model(graph, producer_name="resnet_jax", **versions)
        make.set_model_props(model, {k: json.dumps(v) for k, v in network.metadata().items()})
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _resizing(before: int, after: int, crop: bool) -> np.ndarray:
    """Return float32[after, before], the matrix that resizes or crops one axis."""
    if crop:
        return np.eye(after, before, (before - after) // 2, dtype=np.float32)
    eye = np.eye(before, dtype=np.float32)
    return np.asarray(jax.image.resize(eye, (after, before), "bilinear"))
