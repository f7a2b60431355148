"""A residual network as an ONNX graph: one Conv node for each convolution, names as ours.

Written node by node rather than converted: the graph reads like the network, and no converter's
idea of padding comes between. `resnet_jax.interop.artifact` compares it with the reference path.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import BasicUnit, BatchNorm, BottleneckUnit, PreActivationUnit, ResNet

# Both old enough for any runtime of the last years.
OPSET, IR_VERSION = 17, 8


def to_onnx(model: ResNet, variables: Any, facts: Mapping[str, Any]) -> bytes:
    """The network as a serialised ONNX model, in float32.

    Input ``images``: ``uint8[N, H, W, C]``; outputs ``logits`` and ``probabilities``:
    ``float32[N, K]``. The facts (`resnet_jax.interop.artifact.describe`) are its metadata, as JSON.

    Raises:
        ResNetJaxError: the package onnx is not installed, or the unit is not one of ours.
    """
    graph = _Graph(variables)
    x = graph.preprocess("images", facts["preprocessing"])
    x = graph.network(model, x)
    graph.add("Softmax", [x], "probabilities", axis=-1)
    return graph.serialize(facts["preprocessing"]["image_shape"], model.num_classes, facts)


def runner(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Runs a serialised model with onnxruntime on a CPU."""
    onnxruntime = _import("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = ["logits", "probabilities"]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


class _Graph:
    """Nodes in the order in which they run. A node, its output and its layer share a name."""

    def __init__(self, variables: Any) -> None:
        self.onnx = _import("onnx")
        self.params, self.statistics = variables["params"], variables["batch_stats"]
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

    def preprocess(self, x: str, settings: Mapping[str, Any]) -> str:
        """What `resnet_jax.data.augment.preprocess` does, from uint8 NHWC to float32 NCHW."""
        x = self.add("Transpose", [x], "channels_first", perm=[0, 3, 1, 2])
        x = self.add("Cast", [x], "float", to=self.onnx.TensorProto.FLOAT)
        height, width, _ = settings["image_shape"]
        size, crop = settings["resize"], settings["center_crop"]
        if size is not None and (height, width) != (size, size):
            # Bilinear resizing is one product for the rows and one for the columns. Taken from
            # JAX itself, so that low-passing and edges are the same. So is cutting out.
            bring = _cutting if crop else _resizing
            rows, columns = (bring(before, size) for before in (height, width))
            x = self.add("MatMul", [self.constant("resize_rows/weight", rows), x], "resize_rows")
            weight = self.constant("resize_columns/weight", columns.T)
            x = self.add("MatMul", [x, weight], "resize_columns")
        x = self.add("Div", [x, self.constant("scale/value", 255.0)], "scale")
        for op, name in (("Sub", "mean"), ("Div", "std")):
            constant = self.constant(f"{name}/value", np.reshape(settings[name], (-1, 1, 1)))
            x = self.add(op, [x, constant], name)
        return x

    def network(self, model: ResNet, x: str) -> str:
        small = model.stem == "small"
        x = self.conv(x, "stem/conv", stride=1 if small else 2)
        x = self.relu(self.norm(x, "stem/norm"))
        if not small:
            window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
            x = self.add("MaxPool", [x], "stem/pool", **window)
        units = {BasicUnit: self.unit, BottleneckUnit: self.unit, PreActivationUnit: self.preact}
        if model.unit not in units:
            raise ResNetJaxError(
                f"the ONNX writer does not know the unit {model.unit.__name__}: export stablehlo"
            )
        for stage, size in enumerate(model.stage_sizes, start=1):
            for index in range(1, size + 1):
                stride = 2 if stage > 1 and index == 1 else 1
                name = f"stage{stage}_unit{index}"
                x = units[model.unit](x, name, stride, model.residual)
        if model.unit.preactivation:
            x = self.relu(self.norm(x, "norm"))
        x = self.add("Flatten", [self.add("GlobalAveragePool", [x], "pool")], "features")
        head = self.params["head"]
        kernel, bias = (self.constant(f"head/{part}", head[part]) for part in ("kernel", "bias"))
        return self.add("Gemm", [x, kernel, bias], "logits")

    def unit(self, x: str, name: str, stride: int, residual: bool) -> str:
        """`BasicUnit` and `BottleneckUnit`: the stride is on the first 3x3."""
        y, count = x, sum(layer.startswith("norm") for layer in self.params[name])
        for k in range(1, count + 1):
            strided = k == (1 if count == 2 else 2)
            y = self.conv(y, f"{name}/conv{k}", stride if strided else 1)
            y = self.norm(y, f"{name}/norm{k}")
            y = self.relu(y) if k < count else y
        if residual:
            if "shortcut_conv" in self.params[name]:
                x = self.conv(x, f"{name}/shortcut_conv", stride)
                x = self.norm(x, f"{name}/shortcut_norm")
            y = self.add("Add", [y, x], f"{name}/sum")
        return self.relu(y)

    def preact(self, x: str, name: str, stride: int, residual: bool) -> str:
        """`PreActivationUnit`."""
        activated = self.relu(self.norm(x, f"{name}/norm1"))
        y = self.conv(activated, f"{name}/conv1", stride)
        y = self.conv(self.relu(self.norm(y, f"{name}/norm2")), f"{name}/conv2", 1)
        if not residual:
            return y
        if "shortcut_conv" in self.params[name]:
            x = self.conv(activated, f"{name}/shortcut_conv", stride)
        return self.add("Add", [y, x], f"{name}/sum")

    def relu(self, x: str) -> str:
        return self.add("Relu", [x], f"{x}/relu")

    def conv(self, x: str, name: str, stride: int) -> str:
        kernel = _find(self.params, name)["kernel"]
        side = kernel.shape[0]
        weight = self.constant(f"{name}/kernel", np.transpose(kernel, (3, 2, 0, 1)))
        return self.add(
            "Conv",
            [x, weight],
            name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            pads=[side // 2] * 4,
        )

    def norm(self, x: str, name: str) -> str:
        numbers = {**_find(self.params, name), **_find(self.statistics, name)}
        order = ("scale", "bias", "mean", "var")
        inputs = [self.constant(f"{name}/{part}", numbers[part]) for part in order]
        return self.add("BatchNormalization", [x, *inputs], name, epsilon=BatchNorm.epsilon)

    def serialize(self, shape: Sequence[int], num_classes: int, facts: Mapping[str, Any]) -> bytes:
        onnx, make = self.onnx, self.onnx.helper
        uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
        graph = make.make_graph(
            self.nodes,
            "resnet",
            [make.make_tensor_value_info("images", uint8, ["N", *shape])],
            [
                make.make_tensor_value_info(name, float32, ["N", num_classes])
                for name in ("logits", "probabilities")
            ],
            self.constants,
        )
        model = make.make_model(
            graph,
            producer_name="resnet_jax",
            ir_version=IR_VERSION,
            opset_imports=[make.make_opsetid("", OPSET)],
        )
        make.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _find(tree: Any, name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _resizing(before: int, after: int) -> np.ndarray:
    """float32[after, before]: the matrix by which ``jax.image.resize`` resizes one axis."""
    return np.asarray(
        jax.image.resize(np.eye(before, dtype=np.float32), (after, before), "bilinear")
    )


def _cutting(before: int, after: int) -> np.ndarray:
    """float32[after, before]: the matrix that takes the middle of an axis."""
    return np.eye(after, before, (before - after) // 2, dtype=np.float32)


def _import(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise ResNetJaxError(
            f"export to ONNX needs the package {package}: `pip install 'resnet_jax[onnx]'`"
        ) from error
