"""Summaries of a network from shapes alone: its variables, and its layers in order."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from resnet_jax.models.layers import Affine, BatchNorm, Conv
from resnet_jax.models.resnet import ResNet

LAYERS = (Conv, BatchNorm, Affine, nn.Dense)


def shapes_of(
    model: nn.Module, image_shape: tuple[int, ...]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shapes of a network's variables by their paths; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    if isinstance(model, ResNet):
        model = model.clone(lowering="reference")  # the quickest to trace
    # The key is made in the traced function, so that no device is needed.
    tree = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    # A user's network may have other collections, which no run keeps.
    tree = {name: tree[name] for name in ("params", "batch_stats") if name in tree}
    return flatten_dict(jax.tree.map(np.shape, nn.meta.unbox(tree)))


def has_parameters(model: nn.Module, image_shape: tuple[int, ...], variables: Any) -> bool:
    """Return whether variables have the names and shapes of a network's."""
    return bool(flatten_dict(jax.tree.map(np.shape, variables)) == shapes_of(model, image_shape))


class LayerSummary(NamedTuple):
    """One layer on one image.

    Attributes:
        name: its path in the parameter tree, `stage1_unit1/conv1`.
        kind: `Conv 3x3/2 x32` (kernel, stride, groups), `BatchNorm`, `Affine` or `Dense`.
        output_shape: without the batch.
        parameters: trained numbers; running statistics are not counted, as in torchvision. 0 where
            a layer is called again, so that their sum counts each once.
        multiply_adds: of convolutions and dense layers, padding included, as the papers count.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> list[LayerSummary]:
    """Return the layers of a model for images of ``(H, W, C)``; shapes alone, nothing is computed.

    Only the package's layers and Flax's ``Dense`` are listed.

    >>> import resnet_jax as rj
    >>> layers = summarize(rj.ResNet18(num_classes=1000), (224, 224, 3))
    >>> sum(layer.parameters for layer in layers)
    11689512
    >>> round(sum(layer.multiply_adds for layer in layers) / 1e9, 2)
    1.81
    """
    layers: list[LayerSummary] = []
    within: set[tuple[str, ...]] = set()  # the layers whose call has begun

    def note(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        called = context.method_name == "__call__" and isinstance(layer, LAYERS)
        if not called or layer.path in within:  # it may call that of its base class
            return next_method(*args, **kwargs)
        within.add(layer.path)
        output = next_method(*args, **kwargs)
        within.remove(layer.path)
        params = nn.meta.unbox(layer.variables["params"])
        kind, name = type(layer).__name__, "/".join(layer.path)
        if isinstance(layer, Conv):
            kind = f"Conv {layer.kernel_size}x{layer.kernel_size}"
            kind += f"/{layer.strides}" if layer.strides > 1 else ""
            kind += f" x{layer.groups}" if layer.groups > 1 else ""
        again = any(name == listed.name for listed in layers)
        parameters = 0 if again else sum(leaf.size for leaf in params.values())
        positions = math.prod(output.shape[1:-1])
        multiply_adds = positions * params["kernel"].size if "kernel" in params else 0
        layers.append(LayerSummary(name, kind, tuple(output.shape[1:]), parameters, multiply_adds))
        return output

    with nn.intercept_methods(note):
        shapes_of(model, image_shape)
    return layers
