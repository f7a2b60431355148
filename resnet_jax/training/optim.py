"""Learning-rate schedules and optimisers, from optax."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax.config import OptimConfig


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step, ``0 <= step < total_steps``."""
    peak = config.learning_rate
    warmup_steps = round(config.warmup * total_steps)
    match config.schedule:
        case "one_cycle":
            # optax rounds the rise down to whole steps, and divides by the number of steps of the
            # rise and of the fall, so each needs at least one.
            rise = (min(max(warmup_steps, 1), max(total_steps - 1, 1)) + 0.5) / total_steps
            return _in_default_precision(
                optax.cosine_onecycle_schedule(
                    total_steps, peak, pct_start=rise, div_factor=25.0, final_div_factor=1e4
                )
            )
        case "cosine":  # arXiv 1608.03983
            main = optax.cosine_decay_schedule(peak, max(total_steps - warmup_steps, 1))
        case "piecewise":
            drops: dict[int, float] = {}
            for at in config.boundaries:  # two may fall on the same step
                step = round(at * total_steps) - warmup_steps
                drops[step] = 0.1 * drops.get(step, 1.0)
            main = optax.piecewise_constant_schedule(peak, drops)
        case "constant":
            main = optax.constant_schedule(peak)
    if not warmup_steps:
        return main
    # The first step already learns: warm-up step k of n has the rate peak * (k + 1) / (n + 1).
    start = peak / (warmup_steps + 1)
    warmup = optax.linear_schedule(start, peak, warmup_steps)
    return _in_default_precision(optax.join_schedules([warmup, main], [warmup_steps]))


def _in_default_precision(schedule: optax.Schedule) -> optax.Schedule:
    """Pass steps in JAX's default float type, because optax would divide integers in float32."""
    return lambda step: schedule(jnp.asarray(step, float))


def _lamb(
    schedule: optax.Schedule, b1: float, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """Return LAMB (arXiv 1904.00962) as its authors run it: only decayed weights get a trust ratio.

    With optax's own LAMB a bias, which starts at zero, could hardly grow.
    """
    return optax.chain(
        optax.scale_by_adam(b1, eps=1e-6),
        optax.add_decayed_weights(weight_decay, mask),
        optax.masked(optax.scale_by_trust_ratio(), mask),
        optax.scale_by_learning_rate(schedule),
    )


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, frozen_stages: int | None = None
) -> optax.GradientTransformation:
    """Return a configuration's optimiser; ``frozen_stages`` freezes the stem and that many stages.

    SGD follows PyTorch's definition: weight decay is added to the gradient before momentum, and
    momentum is ``v = m v + g``. Adam also adds decay to the gradient. All decay only kernels.
    """
    weight_decay = config.weight_decay
    # Scaling the updates is the same as scaling the learning rate.
    uniform = config.body_rate == 1 and frozen_stages is None
    layer_scaling = [] if uniform else [scale_by_layer(config.body_rate, frozen_stages)]
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm is not None else []
    decoupled = {"adamw": optax.adamw, "lamb": _lamb, "lion": optax.lion}
    if make := decoupled.get(config.name):
        rule = make(schedule, b1=config.momentum, weight_decay=weight_decay, mask=kernels)
        return optax.chain(*clip, rule, *layer_scaling)
    decay = [optax.add_decayed_weights(weight_decay, kernels)] if weight_decay else []
    if config.name == "adam":
        rule = optax.adam(schedule, b1=config.momentum)
    else:
        rule = optax.sgd(schedule, config.momentum or None, nesterov=config.nesterov)
    return optax.chain(*clip, *decay, rule, *layer_scaling)


def scale_by_layer(body_rate: float, frozen_stages: int | None) -> optax.GradientTransformation:
    frozen_to = -1 if frozen_stages is None else frozen_stages

    def scale(updates: Any, _: Any) -> Any:
        names = {name: re.match(r"stage(\d+)_", name) for name in updates}
        stages = {"stem": 0} | {name: int(found[1]) for name, found in names.items() if found}
        # The norm after the last stage of a pre-activation network belongs to that stage.
        stages["norm"] = max(stages.values())

        def scaled(path: Any, update: jax.Array) -> jax.Array:
            layer = path[0].key
            if layer not in stages:  # the head, which a subclass may name
                return update
            return jnp.zeros_like(update) if stages[layer] <= frozen_to else body_rate * update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def kernels(params: Any) -> Any:
    """Mark the parameters named ``kernel``: those of convolutions and of the dense head."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
