"""Residual networks, to be read beside He et al. 2015 (arXiv 1512.03385) and 2016 (1603.05027).

    images -> stem -> stage1, stage2, .. (residual units) -> global average pool -> head -> logits

The layout is torchvision's: explicit padding, no bias before batch norm, and in a bottleneck the
stride on the 3x3 convolution ("ResNet v1.5"; the paper has it on the first 1x1).
"""

from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from resnet_jax import ops
from resnet_jax.config import Initialisation, Lowering, Shortcut, StemKind
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models.layers import BatchNorm, Conv, Initializer, he_fan_out, torch_default

Layer = Callable[..., Any]
Images = Shaped[Array | np.ndarray, "n h w c"]


class Unit(nn.Module):
    """Base class of residual units, with the attributes that they share.

    A unit maps ``[N, H, W, C]`` to ``[N, ceil(H/strides), ceil(W/strides), features]``; a
    bottleneck's output has ``wide`` channels. The call's ``train`` is batch norm's mode. `ResNet`
    explains the other fields.

    Attributes:
        features: channels of the unit's 3x3 convolutions.
        conv: makes a convolution from ``(features, kernel_size, strides, groups=..., name=...)``.
        norm: makes a normalisation from ``(scale_init=..., name=...)``.
        strides: step of the unit's strided convolution, in pixels.
        expansion: of the class; a bottleneck's ``wide`` is ``expansion * features / widening``.
        preactivation: of the class; if True, the network adds norm and ReLU after the last unit.
    """

    expansion: ClassVar[int] = 1
    preactivation: ClassVar[bool] = False

    features: int
    conv: Layer
    norm: Layer
    strides: int = 1
    residual: bool = True
    zero_init_last: bool = False
    shortcut: Shortcut = "projection"
    widening: int = 1
    groups: int = 1

    @property
    def wide(self) -> int:
        """Number of output channels of a bottleneck."""
        return self.expansion * self.features // self.widening

    @property
    def last_scale_init(self) -> Initializer:
        """Initialiser of the scale of the norm that ends the residual branch."""
        return nn.initializers.zeros if self.zero_init_last else nn.initializers.ones


class BasicUnit(Unit):
    """Two 3x3 convolutions and the shortcut (arXiv 1512.03385, figure 5 left).

    ``y = relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))``
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.features, 3, self.strides, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train=train))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2", scale_init=self.last_scale_init)(y, train=train)
        return nn.relu(y + _shortcut(self, x, y, train=train) if self.residual else y)


class BottleneckUnit(Unit):
    """1x1 to fewer channels, 3x3, 1x1 to four times as many (arXiv 1512.03385, figure 5 right).

    With groups it is ResNeXt's unit (arXiv 1611.05431, figure 3c).
    """

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = self.conv(self.features, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y, train=train))
        y = self.conv(self.features, 3, self.strides, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y, train=train))
        y = self.conv(self.wide, 1, name="conv3")(y)
        y = self.norm(name="norm3", scale_init=self.last_scale_init)(y, train=train)
        return nn.relu(y + _shortcut(self, x, y, train=train) if self.residual else y)


def _shortcut(
    unit: Unit, x: jax.Array, y: jax.Array, activated: jax.Array | None = None, *, train: bool
) -> jax.Array:
    """Return ``x`` if shapes agree (not in option C), otherwise the `ResNet.shortcut` of it.

    A pre-activation unit projects ``activated`` instead of ``x``, and no norm follows.
    """
    if x.shape[1:] == y.shape[1:] and unit.shortcut != "projection-all":
        return x
    if unit.shortcut == "pad":
        x = x[:, :: unit.strides, :: unit.strides]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
    x = x if activated is None else activated
    name, strides = "shortcut", unit.strides
    if unit.shortcut == "average":
        name, strides = "average", 1
        if unit.strides > 1:  # an odd last row or column is averaged alone
            window, (_, *size, _) = (unit.strides, unit.strides), x.shape
            padding = [(0, -n % unit.strides) for n in size]
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            x = nn.avg_pool(x, window, window, padding, count_include_pad=False)
    x = unit.conv(y.shape[-1], 1, strides, name=f"{name}_conv")(x)
    return x if activated is not None else unit.norm(name=f"{name}_norm")(x, train=train)


class PreActivationUnit(Unit):
    """Norm and ReLU before each 3x3 convolution, nothing after the sum (arXiv 1603.05027, fig. 4e).

    ``y = conv2(relu(norm2(conv1(relu(norm1(x)))))) + shortcut``, where the shortcut is ``x``, or
    a 1x1 projection of ``relu(norm1(x))`` where the shapes differ, as in the paper's own code.
    """

    preactivation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activated = nn.relu(self.norm(name="norm1")(x, train=train))
        y = self.conv(self.features, 3, self.strides, name="conv1")(activated)
        y = nn.relu(self.norm(name="norm2")(y, train=train))
        y = self.conv(self.features, 3, name="conv2", **_zero_kernel(self))(y)
        return y + _shortcut(self, x, y, activated, train=train) if self.residual else y


class PreActivationBottleneckUnit(Unit):
    """Norm and ReLU before each of a bottleneck's convolutions (arXiv 1603.05027, section 4.1)."""

    expansion: ClassVar[int] = 4
    preactivation: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        activated = nn.relu(self.norm(name="norm1")(x, train=train))
        y = self.conv(self.features, 1, name="conv1")(activated)
        y = nn.relu(self.norm(name="norm2")(y, train=train))
        y = self.conv(self.features, 3, self.strides, groups=self.groups, name="conv2")(y)
        y = nn.relu(self.norm(name="norm3")(y, train=train))
        y = self.conv(self.wide, 1, name="conv3", **_zero_kernel(self))(y)
        return y + _shortcut(self, x, y, activated, train=train) if self.residual else y


def _zero_kernel(unit: Unit) -> dict[str, Initializer]:
    """Return options by which `zero_init_last` zeroes the last kernel, as no norm follows it."""
    return {"kernel_init": nn.initializers.zeros} if unit.zero_init_last else {}


class Stem(nn.Module):
    """The layers from pixels to the first feature map (arXiv 1512.03385, table 1: conv1, max-pool).

    ``"imagenet"``: 7x7 convolution of stride 2, norm, ReLU, 3x3 max-pool of stride 2, to a quarter
    of the image's side. ``"deep"``: three 3x3 convolutions instead of the 7x7, the first two with
    half the features (arXiv 1812.01187, figure 2b). ``"small"``: 3x3 convolution, norm, ReLU, at
    the image's size, as in the paper's section 4.2 for CIFAR-10. ``"conv"``: the 3x3 convolution
    alone, for pre-activation units, which begin with norm and ReLU.
    """

    kind: StemKind
    features: int
    conv: Layer
    norm: Layer
    lowering: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map ``[N, H, W, C]`` to ``[N, H', W', features]``."""
        if self.kind == "conv":
            return self.conv(self.features, 3, name="conv")(x)
        if self.kind == "deep":
            for k, strides in ((1, 2), (2, 1)):
                x = self.conv(self.features // 2, 3, strides, name=f"conv{k}")(x)
                x = nn.relu(self.norm(name=f"norm{k}")(x, train=train))
        kernel_size, strides = (7, 2) if self.kind == "imagenet" else (3, 1)
        x = self.conv(self.features, kernel_size, strides, name="conv")(x)
        x = nn.relu(self.norm(name="norm")(x, train=train))
        if self.kind != "small":
            x = ops.max_pool(x, window=3, stride=2, padding=1, lowering=self.lowering)
        return x


class ResNet(nn.Module):
    """A residual network, or its plain twin without shortcuts.

    >>> import jax, jax.numpy as jnp, resnet_jax as rj
    >>> model = rj.ResNet18(num_classes=10)
    >>> images = jnp.zeros((2, 28, 28, 1))
    >>> variables = model.init(jax.random.key(0), images, train=False)
    >>> model.apply(variables, images, train=False).shape
    (2, 10)

    Attributes:
        stage_sizes: units in each stage; stages after the first halve the map and double the width.
        unit: the class of the units, such as `BasicUnit`, or a `Unit` of your own.
        num_classes: number of logits; 0 leaves out the head and gives the pooled vector.
        width: features of the stem and of the first stage.
        residual: ``False`` gives the plain network: same layers, no shortcut, no projection.
        stem: ``"imagenet"``, ``"deep"``, ``"small"`` or ``"conv"``, see `ModelConfig`.
        shortcut: kind where the shapes differ (arXiv 1512.03385, section 4.1): ``"projection"``, a
            1x1 convolution (option B); ``"projection-all"``, one in every unit (C); ``"pad"``,
            every second pixel and zeros for the new channels (A, no parameters); ``"average"``, a
            2x2 average before the projection (arXiv 1812.01187, figure 2c).
        widening: factor on the channels of the units' 3x3 convolutions (arXiv 1605.07146); a
            bottleneck's output keeps its width.
        groups: number of groups of a bottleneck's 3x3 convolution (arXiv 1611.05431).
        initializer: of the convolutions: ``"he"`` (fan-out, as in torchvision's networks) or
            ``"torch"`` (PyTorch's default). The head always has PyTorch's default.
        zero_init_last: starts each residual branch at zero, so that a unit begins as its shortcut
            (arXiv 1706.02677, section 5.1).
        norm: class of the normalisation: `BatchNorm`, or `Affine` for a network without any.
        frozen_stages: for fine-tuning: the stem and this many stages have no gradient, and their
            batch norm stays in evaluation mode; if it is all stages, only the head is trained.
            None: nothing is frozen, not even the stem. Weight decay needs no gradient: in your own
            loop, and in a run of a module around this network, give an optimiser that does not
            decay them (`optax.masked`).
        lowering: how convolutions are computed, see `resnet_jax.ops.conv2d`. Forward-mode
            derivatives need `"reference"`: ``model.clone(lowering="reference")``.
        remat: ``True`` computes each unit a second time for the gradient, see `ModelConfig`.
        dtype: type of the computation; statistics, pooling and head stay in at least float32.
        param_dtype: type of the parameters.
    """

    stage_sizes: Sequence[int]
    unit: type[Unit]
    num_classes: int = 10
    width: int = 64
    residual: bool = True
    stem: StemKind = "imagenet"
    shortcut: Shortcut = "projection"
    widening: int = 1
    groups: int = 1
    initializer: Initialisation = "he"
    zero_init_last: bool = False
    norm: Layer = BatchNorm
    frozen_stages: int | None = None
    lowering: Lowering = "auto"
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        self.stage_sizes = tuple(self.stage_sizes)  # hashable, for `jax.jit`
        choices = {"stem": StemKind, "shortcut": Shortcut, "initializer": Initialisation}
        for name, kinds in choices.items():
            if (given := getattr(self, name)) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise ResNetJaxError(f"{name} is {given!r}: give one of {known}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Float[Array, "n ..."]:
        """Compute logits.

        Args:
            images: ``float[N, H, W, C]``, normalised; any size and number of channels.
            train: batch norm's mode: True uses the batch's statistics (``mutable=["batch_stats"]``
                returns the updated running ones), False the running ones.

        Returns:
            ``float32[N, num_classes]``, or with 0 classes ``float32[N, C]``, where C is the number
            of the last unit's channels; float64 when ``dtype`` is float64.
        """
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kernel_init = torch_default if self.initializer == "torch" else he_fan_out
        conv = partial(Conv, lowering=self.lowering, kernel_init=kernel_init, **types)
        norm = partial(self.norm, **types)

        stages = len(self.stage_sizes)
        if self.frozen_stages is not None and not 0 <= self.frozen_stages <= stages:
            raise ResNetJaxError(f"frozen_stages must be 0 to {stages}, got {self.frozen_stages}")
        frozen = -1 if self.frozen_stages is None else self.frozen_stages
        stem = Stem(self.stem, self.width, conv, norm, self.lowering, name="stem")
        x = stem(jnp.asarray(images), train=train and frozen < 0)
        for stage, size in enumerate(self.stage_sizes):
            if stage == frozen:
                x = jax.lax.stop_gradient(x)
            apply = partial(self.unit.__call__, train=train and stage >= frozen)
            update_wrapper(apply, self.unit.__call__)  # by its name Linen knows the method
            for index in range(size):
                unit = self.unit(
                    features=self.width * 2**stage * self.widening,
                    conv=conv,
                    norm=norm,
                    strides=2 if stage > 0 and index == 0 else 1,
                    residual=self.residual,
                    zero_init_last=self.zero_init_last,
                    shortcut=self.shortcut,
                    widening=self.widening,
                    groups=self.groups,
                    name=f"stage{stage + 1}_unit{index + 1}",
                )
                x = (nn.remat(apply) if self.remat else apply)(unit, x)
        if self.unit.preactivation:
            x = nn.relu(norm(name="norm")(x, train=train and frozen < stages))
        if frozen == stages:
            x = jax.lax.stop_gradient(x)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32)).mean(axis=(1, 2))
        if not self.num_classes:
            return x
        # PyTorch draws a dense layer's bias from its kernel's range, set by the number of inputs.
        bound = x.shape[-1] ** -0.5
        return nn.Dense(
            self.num_classes,
            kernel_init=torch_default,
            bias_init=partial(jax.random.uniform, minval=-bound, maxval=bound),
            dtype=x.dtype,
            param_dtype=self.param_dtype,
            name="head",
        )(x)
