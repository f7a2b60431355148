"""The state that training carries from step to step, and a batch of examples."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.core import unfreeze

from resnet_jax.training.jax_settings import compiler_options

EVALUATED_ALONE = optax.identity()  # one for all states: another function is another program


class Batch(NamedTuple):
    """Preprocessed images, ``float[N, H, W, C]``, and their labels, ``int32[N]``, for one step."""

    images: jax.Array  # uint8 until the devices preprocess them
    labels: jax.Array  # `train_step` also takes soft ones, float[N, K]; `eval_step` ignores -1


class TrainState(struct.PyTreeNode):
    """Parameters, running statistics and optimiser state; ``apply_fn`` and ``tx`` are static.

    >>> import jax, jax.numpy as jnp, optax, resnet_jax as rj
    >>> state = rj.TrainState.create(
    ...     rj.ResNet18(num_classes=10, width=8), optax.sgd(0.1), jax.random.key(0),
    ...     jnp.zeros((1, 28, 28, 1)),
    ... )
    >>> int(state.step)
    0

    Attributes:
        step: ``int32[]``, updates done.
        params: the network's parameters.
        batch_stats: batch norm's running statistics; empty for a network without batch norm.
        opt_state: the optimiser's state.
        ema: moving averages of ``params`` and ``batch_stats``, or None.
        first_bad_step: ``int32[]``, the first step whose loss or gradient was not finite; -1 if
            none. It stays on the device, so that the check costs no transfer at each step.
        apply_fn: the model's ``apply``.
        tx: the optimiser.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    first_bad_step: jax.Array
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        model: nn.Module,
        tx: optax.GradientTransformation,
        key: jax.Array,
        images: jax.Array,
        *,
        ema: bool = False,
    ) -> Self:
        """Return a state at step 0 with parameters drawn from ``key``.

        Args:
            model: a `resnet_jax.ResNet`, or any Linen module called with ``train=``.
            tx: an optax optimiser.
            key: seed of the parameters.
            images: ``float[N, H, W, C]``; only the shape matters.
            ema: keep moving averages of the weights.
        """
        init = partial(model.init, train=False)
        make = partial(cls.of_variables, model, tx=tx, ema=ema)
        # Under `jax.eval_shape` or jit, new arrays are traced, and a nested jit takes no options.
        if any(isinstance(x, jax.core.Tracer) for x in (key, images, jnp.zeros(()))):
            return make(init(key, images))
        # Jitted, as hundreds of small random draws are slow one by one; apart from ``make``, so
        # that the program in JAX's cache serves every optimiser.
        variables = jax.jit(init, compiler_options=compiler_options(1))(key, images)
        return jax.jit(make)(variables)

    @classmethod
    def of_variables(
        cls,
        model: nn.Module,
        variables: Mapping[str, Any],
        tx: optax.GradientTransformation | None = None,
        *,
        ema: bool = False,
    ) -> Self:
        """Return a state at step 0 that holds ``variables``; without ``tx``, for evaluation only.

        The variables are not copied: a step to which the state is donated deletes them.
        """
        variables = unfreeze(nn.meta.unbox(variables))  # without boxes of `nn.with_partitioning`
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        averaged = {"params": params, "batch_stats": batch_stats}

        def copied(x: jax.Array) -> jax.Array:  # float32 or wider: bfloat16 loses what a step adds
            x = jnp.array(x)
            real = jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if real else x

        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            # Copies: a donated buffer must not be passed twice, and some optimisers keep `params`.
            opt_state=tx.init(jax.tree.map(jnp.array, params)) if tx else optax.EmptyState(),
            ema=jax.tree.map(copied, averaged) if ema else None,
            first_bad_step=jnp.full((), -1, jnp.int32),
            apply_fn=model.apply,
            tx=tx or EVALUATED_ALONE,
        )

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that evaluation uses: the averaged ones where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}
