"""One step of training and one of evaluation: pure functions, jitted by the caller.

settings = ("label_smoothing", "ema", "accumulate", "loss")
step = jax.jit(rj.train_step, donate_argnums=0, static_argnames=settings)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import unfreeze
from jaxtyping import Array, Float, Int, Integer

from resnet_jax.data.dataset import check_countable
from resnet_jax.errors import ResNetJaxError
from resnet_jax.ops.primitives import sum_type
from resnet_jax.training.state import Batch, TrainState

# Maps logits float[N, K] and targets (classes int32[N], or soft labels float[N, K]) to the loss of
# each example, float[N], or to the mean.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


class Metrics(NamedTuple):
    """Scalars of a training step: mean ``loss``, ``accuracy`` (a fraction, from the logits that the
    loss saw), and ``grad_norm``, the gradient's global norm before clipping."""

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array


class Counts(NamedTuple):
    """Sums over examples, additive over batches: ``loss``, in nats; ``confusion``, int32[K, K] by
    label (row) and prediction (column); ``top5``, labels among the five most probable classes."""

    loss: jax.Array
    confusion: jax.Array
    top5: jax.Array


def cross_entropy(
    logits: Float[Array, "n k"],
    labels: Int[Array | np.ndarray, " n"] | Float[Array, "n k"],
    label_smoothing: float = 0.0,
) -> Float[Array, " n"]:
    """Return the cross-entropy of each example, float[N] in nats, against its class or soft label.

    ``label_smoothing`` is the weight of the uniform distribution over all K classes in the target
    (arXiv 1512.00567, section 7; PyTorch's definition).
    """
    logits = logits.astype(sum_type(logits.dtype))
    given, expected = list(labels.shape), list(logits.shape)
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels.astype(jnp.int32), logits.shape[-1], dtype=logits.dtype)
    if labels.shape != logits.shape:
        raise ResNetJaxError(f"labels are {given}: give [N] classes, or soft labels {expected}")
    targets = optax.smooth_labels(labels, label_smoothing)
    # A network may exclude a class by a logit of -inf, and 0 times its logarithm is no number.
    return -jnp.where(targets == 0, 0, targets * jax.nn.log_softmax(logits)).sum(-1)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    key: jax.Array | None = None,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    accumulate: int = 1,
    loss: Loss | None = None,
) -> tuple[TrainState, Metrics]:
    """Take one optimiser step on the mean loss; all arguments but state, batch and key are static.

    Args:
        state: may be donated.
        batch: images and labels; every label must be a class (no padding) or a soft label, whose
            most probable class counts for the accuracy.
        key: seeds what the network draws at random, such as dropout; None if it draws nothing.
        label_smoothing: see `cross_entropy`.
        ema: decay of the moving averages of a state created with ``ema=True``, and of no other.
            Early steps use a smaller decay, ``(1 + step) / (10 + step)``, to forget the start.
        accumulate: number of equal parts of the batch whose gradients are computed in turn, so that
            only one part's activations are kept. Part i holds the examples i, i + accumulate, ...
            Batch norm treats each part as a batch and updates the running statistics for each. The
            gradient, loss and accuracy are the means over the parts.
        loss: function of ``(logits, targets)`` in place of the smoothed cross-entropy; it returns
            the loss of each example, or the mean.

    Returns:
        The next state, and the metrics of the parameters before the update.
    """
    loss = loss or partial(cross_entropy, label_smoothing=label_smoothing)
    grads, batch_stats, mean_loss, accuracy = _gradient(state, batch, key, loss, accumulate)
    tx = optax.with_extra_args_support(state.tx)  # some, as `reduce_on_plateau`, take the loss
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=mean_loss)
    params = optax.apply_updates(state.params, updates)
    averaged = state.ema
    if (ema is None) != (averaged is None):
        raise ResNetJaxError(
            f"ema is {ema} and the state has {'no ' * (averaged is None)}averages of its weights: "
            "give ema=0.999 and a state with averages, or ema=None and state.replace(ema=None)"
        )
    if ema is not None:
        step = state.step.astype(float)  # integers would divide in float32, even in a float64 run
        decay = jnp.minimum(ema, (1 + step) / (10 + step))
        averaged = optax.incremental_update(
            {"params": params, "batch_stats": batch_stats}, state.ema, 1 - decay
        )
        averaged = jax.tree.map(lambda a, old: a.astype(old.dtype), averaged, state.ema)
    grad_norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(sum_type(g.dtype)), grads))
    bad, first = ~(jnp.isfinite(mean_loss) & jnp.isfinite(grad_norm)), state.first_bad_step
    next_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        ema=averaged,
        first_bad_step=jnp.where(bad & (first < 0), state.step, first),
    )
    return next_state, Metrics(mean_loss, accuracy, grad_norm)


def _gradient(
    state: TrainState, batch: Batch, key: jax.Array | None, loss: Loss, accumulate: int
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Return the mean gradient, the updated running statistics, the mean loss and the accuracy."""

    def of_part(
        batch_stats: Any, part: Batch, key: jax.Array | None
    ) -> tuple[Any, Any, jax.Array, jax.Array]:
        # "dropout" is named too: a module may ask whether that key exists, or split it alone.
        keys = {} if key is None else {"params": key, "dropout": jax.random.fold_in(key, 0)}

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            logits, updates = state.apply_fn(
                {"params": params, "batch_stats": batch_stats},
                part.images,
                train=True,
                mutable=["batch_stats"],
                **({"rngs": keys} if keys else {}),
            )
            moved = unfreeze(updates.get("batch_stats", {}))  # as in the state
            return loss(logits, part.labels).mean(), (logits, moved)

        (value, (logits, moved)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        soft = part.labels.ndim == logits.ndim
        labels = part.labels.argmax(-1) if soft else part.labels
        return grads, moved, value, (logits.argmax(-1) == labels).mean()

    if accumulate == 1:
        return of_part(state.batch_stats, batch, key)

    def add(carry: tuple[Any, Any], part: tuple[Batch, Any]) -> tuple[tuple[Any, Any], Any]:
        grads, batch_stats, *measured = of_part(carry[1], *part)
        return (jax.tree.map(jnp.add, carry[0], grads), batch_stats), measured

    zeros = jax.tree.map(lambda p: jnp.zeros_like(p, sum_type(p.dtype)), state.params)
    # A part takes every accumulate-th row, so that rows that are sharded over devices stay where
    # they are, and every device has its share of each part.
    parts = jax.tree.map(
        lambda rows: rows.reshape(-1, accumulate, *rows.shape[1:]).swapaxes(0, 1), batch
    )
    keys = None if key is None else jax.random.split(key, accumulate)
    (total, batch_stats), measured = jax.lax.scan(add, (zeros, state.batch_stats), (parts, keys))
    losses, accuracies = measured
    grads = jax.tree.map(lambda sums, p: (sums / accumulate).astype(p.dtype), total, state.params)
    return grads, batch_stats, losses.mean(), accuracies.mean()


def eval_step(state: TrainState, batch: Batch) -> Counts:
    """Return the `Counts` of a batch in evaluation mode; padding, labelled -1, is not counted.

    Uses the averaged weights where the state has any.
    """
    return count(state.apply_fn(state.variables, batch.images, train=False), batch.labels)


def count(logits: Float[Array, "n k"], labels: Integer[Array | np.ndarray, " n"]) -> Counts:
    """Return the `Counts` of a batch from its logits; labels below 0 are padding."""
    real = labels >= 0
    labels = labels.astype(jnp.int32)  # uint8 would overflow below
    num_classes = logits.shape[-1]
    check_countable(num_classes)
    cell = labels * num_classes + logits.argmax(-1)
    # On a mesh with explicit axes the sum must be declared to be replicated.
    mesh = jax.typeof(cell).sharding.mesh
    whole = jax.NamedSharding(mesh, jax.P()) if mesh.explicit_axes else None
    confusion = jnp.zeros(num_classes**2, jnp.int32)
    confusion = confusion.at[cell].add(real.astype(jnp.int32), out_sharding=whole)
    _, five = jax.lax.top_k(logits, min(5, num_classes))
    return Counts(
        loss=jnp.where(real, cross_entropy(logits, labels), 0).sum(),
        top5=(real & (five == labels[:, None]).any(-1)).sum(dtype=jnp.int32),
        confusion=confusion.reshape(num_classes, num_classes),
    )
