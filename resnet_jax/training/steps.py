"""One step of training and one of evaluation: pure functions, jitted by the caller.

settings = ("label_smoothing", "ema", "accumulate")
step = jax.jit(rj.train_step, donate_argnums=0, static_argnames=settings)
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from resnet_jax.training.state import Batch, TrainState


class Metrics(NamedTuple):
    """What a training step measured."""

    loss: jax.Array  # float32[], mean over the batch
    accuracy: jax.Array  # float32[], fraction of the batch, by the logits that the loss saw
    grad_norm: jax.Array  # float32[], global norm of the gradient before clipping
    not_finite: jax.Array  # bool[G, 2], by group of parameters: its gradient, running statistics


class Counts(NamedTuple):
    """Sums over examples; those of several batches add up."""

    loss: jax.Array  # float32[], sum of the cross-entropies, in nats
    confusion: jax.Array  # int32[K, K], examples by label (row) and prediction (column)
    top5: jax.Array  # int32[], examples whose label is one of the five most probable classes


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of each example against its smoothed label.

    Args:
        logits: ``float[N, K]``.
        labels: ``int32[N]``, or shares of classes ``float[N, K]`` (mixup, cutmix).
        label_smoothing: share of the target that is spread evenly over all K classes
            (arXiv 1512.00567, section 7; PyTorch's definition).

    Returns:
        ``float[N]``, in nats.
    """
    log_p = jax.nn.log_softmax(logits)
    if labels.ndim == 2:
        of_shares = (labels * log_p).sum(axis=-1)
        return -(1 - label_smoothing) * of_shares - label_smoothing * log_p.mean(axis=-1)
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1 - label_smoothing) * of_label - label_smoothing * log_p.mean(axis=-1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update by the gradient of the batch's mean cross-entropy.

    Args:
        state: may be donated.
        batch: images and labels; every label must be a class (no padding), or a row of shares of
            classes, of which the largest is what accuracy is measured by.
        label_smoothing: see `cross_entropy`.
        ema: decay of the moving averages, for a state created with ``ema=True``. Early steps
            decay less, by ``(1 + step) / (10 + step)``, so that the start is forgotten.
        accumulate: in how many parts the gradient is computed, one after the other, so that the
            activations of one part are in memory; divides the batch. Part i holds the examples i,
            i + accumulate, ... Batch norm sees each part as a batch: it normalises with that
            part's statistics and moves the running ones once for each. The gradient, loss and
            accuracy are the means over the parts.

    Returns:
        The next state, and the metrics of the parameters before the update. ``not_finite`` has a
        row for each of ``sorted(state.params)``.
    """

    def gradient(batch_stats: Any, part: Batch) -> tuple[Any, Any, jax.Array, jax.Array]:
        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updates = state.apply_fn(
                {"params": params, "batch_stats": batch_stats},
                part.images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = cross_entropy(logits, part.labels, label_smoothing).mean()
            return loss, (logits, updates.get("batch_stats", {}))

        (loss, (logits, moved)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return grads, moved, loss, logits

    if accumulate == 1:
        grads, batch_stats, loss, logits = gradient(state.batch_stats, batch)
    else:

        def add(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], Any]:
            grads, batch_stats, *seen = gradient(carry[1], part)
            return (jax.tree.map(jnp.add, carry[0], grads), batch_stats), seen

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        batch = jax.tree.map(partial(_parts, count=accumulate), batch)
        (total, batch_stats), (losses, logits) = jax.lax.scan(
            add, (nothing, state.batch_stats), batch
        )
        grads, loss = jax.tree.map(lambda sums: sums / accumulate, total), losses.mean()
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    averaged = state.ema
    if ema is not None:
        step = state.step.astype(float)  # else divided in float32, even in a float64 run
        decay = jnp.minimum(ema, (1 + step) / (10 + step))
        averaged = optax.incremental_update(
            {"params": params, "batch_stats": batch_stats}, state.ema, 1 - decay
        )

    groups = sorted(state.params)
    squares = jnp.stack([optax.tree.norm(grads[name], squared=True) for name in groups])
    grad_norm = jnp.sqrt(squares.sum())
    overflowed = [~_all_finite(batch_stats.get(name)) for name in groups]
    not_finite = jnp.stack([~jnp.isfinite(squares), jnp.stack(overflowed)], axis=1)
    bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
    first_bad_step = jnp.where(bad & (state.first_bad_step < 0), state.step, state.first_bad_step)
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=averaged,
        first_bad_step=first_bad_step,
    )
    shares = batch.labels.ndim == logits.ndim
    heaviest = batch.labels.argmax(-1) if shares else batch.labels
    accuracy = (logits.argmax(-1) == heaviest).mean()
    return state, Metrics(loss, accuracy, grad_norm, not_finite)


def _parts(rows: jax.Array, count: int) -> jax.Array:
    """``[N, ...]`` as ``[count, N / count, ...]``, where every device has its share of each part.

    A part takes every count-th row, so that rows that are split over devices stay where they are.
    """
    return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)


def _all_finite(tree: Any) -> jax.Array:
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)


def eval_step(state: TrainState, batch: Batch) -> Counts:
    """Counts over a batch in evaluation mode; examples labelled -1 are padding and not counted.

    Uses the averaged weights where the state has any.
    """
    logits = state.apply_fn(state.variables, batch.images, train=False)
    real = batch.labels >= 0
    labels = jnp.where(real, batch.labels, 0)
    num_classes = logits.shape[-1]
    cell = labels * num_classes + logits.argmax(-1)
    confusion = jnp.zeros(num_classes**2, jnp.int32).at[cell].add(real.astype(jnp.int32))
    _, five = jax.lax.top_k(logits, min(5, num_classes))
    return Counts(
        loss=jnp.where(real, cross_entropy(logits, labels), 0).sum(),
        top5=(real & (five == labels[:, None]).any(-1)).sum(dtype=jnp.int32),
        confusion=confusion.reshape(num_classes, num_classes),
    )
