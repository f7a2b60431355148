"""Pretrained variables for another number of classes or of input channels."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import ResNetJaxError
from resnet_jax.models.layers import torch_default


def with_fresh_head(
    variables: Mapping[str, Any], num_classes: int, key: jax.Array | None = None
) -> dict[str, Any]:
    """The same variables with a head of ``num_classes`` that has learnt nothing.

    It starts as in a new `resnet_jax.ResNet`, by PyTorch's default, drawn by ``key`` (default:
    ``jax.random.key(0)``).
    """
    if num_classes < 1:
        raise ResNetJaxError(f"{num_classes} classes make no sense: give at least 1")
    kernel = variables["params"]["head"]["kernel"]
    kernel_key, bias_key = jax.random.split(jax.random.key(0) if key is None else key)
    bound = kernel.shape[0] ** -0.5
    shape, dtype = (kernel.shape[0], num_classes), jnp.promote_types(kernel.dtype, jnp.float32)
    bias = jax.random.uniform(bias_key, (num_classes,), minval=-bound, maxval=bound)
    head = {
        "kernel": np.asarray(torch_default(kernel_key, shape), dtype),
        "bias": np.asarray(bias, dtype),
    }
    return {**variables, "params": {**variables["params"], "head": head}}


def with_input_channels(variables: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The same variables with a stem for images of another number of channels.

    From several to one: the kernels are summed, so that a grey image gets the logits of the same
    image repeated over the channels. From one to several: the kernel is repeated and divided by
    their number, which is the inverse.

    Raises:
        ResNetJaxError: from several to several others there is no such rule.
    """
    stem = variables["params"]["stem"]
    kernel = np.asarray(stem["conv"]["kernel"])
    given = kernel.shape[2]
    if channels == given:
        return dict(variables)
    if channels == 1:
        kernel = kernel.sum(axis=2, keepdims=True)
    elif given == 1 and channels > 1:
        kernel = np.repeat(kernel / channels, channels, axis=2)
    else:
        raise ResNetJaxError(
            f"a stem for {given} channels cannot be made one for {channels}: give {given} or 1"
        )
    stem = {**stem, "conv": {"kernel": kernel}}
    return {**variables, "params": {**variables["params"], "stem": stem}}
