"""The steps: one trace, jitted equals unjitted, gradients against finite differences, counting."""

import inspect
import itertools
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import resnet_jax as rj
from resnet_jax.models import Affine
from resnet_jax.training.step import count, cross_entropy

TINY = {"stage_sizes": (1,), "unit": rj.BasicUnit, "width": 4, "num_classes": 3, "stem": "small"}
tiny = partial(rj.ResNet, **TINY, lowering="reference")
# One program for the tests that look at averages in float64.
averaging = jax.jit(partial(rj.train_step, label_smoothing=0.1, ema=0.999))


def make_batch(seed: int, count: int = 6, dtype=jnp.float32) -> rj.Batch:
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(count, 12, 12, 1)), dtype)
    return rj.Batch(images, jnp.asarray(rng.integers(0, 3, count), jnp.int32))


@cache  # so that tests share the compiled steps of a state
def make_state(tx=None, *, ema: bool = False, dtype=jnp.float32, **options) -> rj.TrainState:
    model = tiny(dtype=dtype, param_dtype=dtype, **options)
    images = make_batch(0, dtype=dtype).images
    tx = tx or optax.sgd(0.1, 0.9)
    return rj.TrainState.create(model, tx, jax.random.key(0), images, ema=ema)


class Biased(nn.Module):
    """What it gets are its logits, but for a bias."""

    @nn.compact
    def __call__(self, logits, *, train):
        return logits + self.param("bias", nn.initializers.zeros, logits.shape[-1:])


def biased(classes: int = 3, dtype=jnp.float32, **options) -> rj.TrainState:
    variables = {"params": {"bias": jnp.zeros(classes, dtype)}}
    return rj.TrainState.of_variables(Biased(), variables, **options)


LOGITS = jnp.asarray([[9.0, 1, 1], [1, 1, 9], [1, 9, 1], [9, 1, 1]])
LABELS = jnp.asarray([0, 1, 1, 1])


def test_an_optimiser_may_take_the_loss():
    """As `optax.contrib.reduce_on_plateau` does, whose update it is."""
    tx = optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros(()), lambda grads, state, params, *, value: (grads, value)
    )
    moved, metrics = jax.jit(rj.train_step)(biased(tx=tx), rj.Batch(LOGITS, LABELS))
    assert moved.opt_state == metrics.loss > 0


@pytest.mark.slow
def test_a_network_without_batch_norm_trains_and_evaluates():
    state, batch = make_state(ema=True, norm=Affine), make_batch(0)
    moved, metrics = jax.jit(partial(rj.train_step, ema=0.9))(state, batch)
    assert moved.batch_stats == {} == moved.ema["batch_stats"]
    # Without batch norm training and evaluation compute the same loss.
    before = jax.jit(rj.eval_step)(state, batch).loss / len(batch.labels)
    np.testing.assert_allclose(metrics.loss, before, rtol=1e-5)
    assert (moved.params["head"]["kernel"] != state.params["head"]["kernel"]).any()


def test_states_to_evaluate_alone_share_a_program_and_stack():
    network = tiny()
    one, other = (rj.TrainState.of_variables(network, {"params": {}}) for _ in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_a_label_of_a_byte_is_one_class_and_logits_of_any_type_are_summed_in_float32():
    """The label was every 256th class."""
    loss = cross_entropy(jnp.zeros((1, 300), jnp.bfloat16), jnp.asarray([5], jnp.int8))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [np.log(300)], rtol=1e-6)


def test_a_class_that_the_network_excludes_counts_nothing():
    def of(excluded):
        return cross_entropy(jnp.asarray([[1.0, 2, *excluded]]), jnp.asarray([0])).sum()

    loss, gradient = jax.value_and_grad(of)([-jnp.inf])
    np.testing.assert_allclose((loss, *gradient), (of([]), 0), rtol=1e-6)


def test_a_column_of_labels_is_no_soft_label():
    with pytest.raises(rj.ResNetJaxError, match=r"labels are \[4, 1\]: give \[N\] classes"):
        inspect.unwrap(cross_entropy)(jnp.zeros((4, 3)), jnp.zeros((4, 1), jnp.int32))


def test_an_optimiser_that_keeps_the_first_parameters_may_be_donated():
    step = jax.jit(rj.train_step, donate_argnums=0)
    moved, _ = step(biased(tx=optax.contrib.dog()), rj.Batch(LOGITS, LABELS))
    assert int(moved.step) == 1


def test_cross_entropy_by_hand():
    # Probabilities 1/4, 1/4, 1/2; the label is the last class.
    logits = jnp.log(jnp.array([[1.0, 1.0, 2.0]]))
    label = jnp.array([2])
    np.testing.assert_allclose(cross_entropy(logits, label), [np.log(2)], rtol=1e-6)
    # Smoothing 0.3 gives targets 0.1, 0.1, 0.8.
    expected = 0.8 * np.log(2) + 2 * 0.1 * np.log(4)
    np.testing.assert_allclose(cross_entropy(logits, label, 0.3), [expected], rtol=1e-6)


def test_cross_entropy_of_shares_of_classes():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.normal(size=(5, 4))), jnp.array([0, 3, 1, 1, 2])
    one_hot = jax.nn.one_hot(labels, 4)
    for smoothing in (0.0, 0.3):
        by_class = cross_entropy(logits, labels, smoothing)
        np.testing.assert_allclose(cross_entropy(logits, one_hot, smoothing), by_class, rtol=1e-6)
        # It is linear in the targets.
        other = cross_entropy(logits, labels[::-1], smoothing)
        mixed = 0.7 * one_hot + 0.3 * one_hot[::-1]
        expected = 0.7 * by_class + 0.3 * other
        np.testing.assert_allclose(cross_entropy(logits, mixed, smoothing), expected, rtol=1e-6)


def test_accuracy_is_against_the_heavier_label():
    targets = jnp.asarray([[0.6, 0.4, 0], [0.4, 0.6, 0], [0.3, 0.7, 0], [0.3, 0.1, 0.6]])
    _, metrics = jax.jit(rj.train_step)(biased(), rj.Batch(LOGITS, targets))
    assert float(metrics.accuracy) == 0.5
    loss = -(targets * jax.nn.log_softmax(LOGITS)).sum(1).mean()
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)


def test_top5_counts_labels_among_the_five_most_probable():
    logits = np.random.default_rng(1).normal(size=(40, 12)).astype(np.float32)
    labels = np.arange(40, dtype=np.int32) % 12
    labels[30:] = -1
    counts = jax.jit(rj.eval_step)(biased(12), rj.Batch(logits, labels))
    ranks = (logits[:30] > logits[np.arange(30), labels[:30]][:, None]).sum(1)
    assert int(counts.top5) == (ranks < 5).sum()
    assert 0 < int(counts.top5) < 30
    assert int(jnp.trace(counts.confusion)) == (ranks == 0).sum()


@pytest.mark.slow
def test_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        # What the step moves the parameters by, at rate 1, is the gradient.
        large = {"stage_sizes": (1, 1), "stem": "imagenet"}
        state = make_state(optax.sgd(1.0), dtype=jnp.float64, **large)
        batch = make_batch(1, dtype=jnp.float64)

        @jax.jit
        def loss(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, _ = state.apply_fn(variables, batch.images, train=True, mutable=["batch_stats"])
            return cross_entropy(logits, batch.labels, 0.1).mean()

        moved, _ = jax.jit(partial(rj.train_step, label_smoothing=0.1))(state, batch)
        gradient = jax.tree.map(jnp.subtract, state.params, moved.params)
        rng = np.random.default_rng(0)
        for _ in range(5):
            direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), gradient)
            beside = (optax.tree.add_scale(state.params, h, direction) for h in (1e-6, -1e-6))
            ahead, behind = map(loss, beside)
            slope = optax.tree.vdot(gradient, direction)
            np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-5)


def test_a_step_gives_the_same_jitted_or_not():
    with jax.enable_x64(True):
        state, batch = make_state(ema=True, dtype=jnp.float64), make_batch(2, dtype=jnp.float64)
        expected, _ = averaging(state, batch)
        found, metrics = rj.train_step(state, batch, label_smoothing=0.1, ema=0.999)
        chex.assert_trees_all_close(found, expected, rtol=1e-9)
        chex.assert_tree_all_finite((found, metrics))
        chex.assert_trees_all_equal_shapes_and_dtypes(found, state)


def test_evaluation_counts_what_is_real_and_nothing_else():
    state, batch = make_state(), make_batch(3, count=8)
    logits = jax.jit(partial(state.apply_fn, train=False))(state.variables, batch.images)
    expected = np.zeros((3, 3), int)
    for label, prediction in zip(batch.labels[:5], logits.argmax(-1)[:5], strict=True):
        expected[label, prediction] += 1
    padded = rj.Batch(batch.images, batch.labels.at[5:].set(-1))
    counts = jax.jit(rj.eval_step)(state, padded)
    np.testing.assert_array_equal(counts.confusion, expected)
    loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(5), np.asarray(batch.labels[:5])].sum()
    np.testing.assert_allclose(counts.loss, loss, rtol=1e-5)


def test_metrics_are_those_of_the_parameters_before_the_update():
    state, batch = make_state(), make_batch(4)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(partial(state.apply_fn, train=True, mutable=["batch_stats"]))
    logits, _ = apply(variables, batch.images)
    _, metrics = jax.jit(rj.train_step)(state, batch)
    np.testing.assert_allclose(metrics.accuracy, (logits.argmax(-1) == batch.labels).mean())
    log_p = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(metrics.loss, -log_p[np.arange(6), batch.labels].mean(), rtol=1e-5)


def test_averages_follow_parameters_and_statistics():
    """In float64: the decay was divided in float32."""
    with jax.enable_x64(True):
        states = [make_state(ema=True, dtype=jnp.float64)]
        for seed in (5, 6):
            states.append(averaging(states[-1], make_batch(seed, dtype=jnp.float64))[0])
        states = jax.device_get(states)
    # After step k the decay is (1 + k) / (10 + k): nine tenths, then 9/11 are the new parameters.
    for (before, after), decay in zip(itertools.pairwise(states), (1 / 10, 2 / 11), strict=True):
        for name in ("params", "batch_stats"):
            expected = jax.tree.map(
                lambda old, new, decay=decay: decay * old + (1 - decay) * new,
                before.ema[name],
                getattr(after, name),
            )
            chex.assert_trees_all_close(after.ema[name], expected, rtol=1e-12, atol=1e-15)
        assert after.variables is after.ema


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_step_that_is_not_finite_is_remembered(value):
    step = jax.jit(rj.train_step)
    state, _ = step(make_state(), make_batch(0))
    assert int(state.first_bad_step) == -1
    bad = make_batch(1)
    bad = bad._replace(images=bad.images.at[0, 0, 0, 0].set(value))
    for batch in (bad, make_batch(2)):
        state, _ = step(state, batch)
    assert int(state.first_bad_step) == 1


def test_a_tiny_network_learns_a_batch_by_heart():
    state, batch = make_state(), make_batch(6)
    step = jax.jit(rj.train_step)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert float(metrics.loss) < 0.05
    assert float(metrics.accuracy) == 1.0


@pytest.mark.slow
def test_a_batch_in_parts_has_the_mean_gradient_and_batch_norm_by_part():
    """Against the parts taken by hand, one after the other: rows 0, 2, 4 and rows 1, 3, 5."""
    with jax.enable_x64(True):
        batch = make_batch(3, dtype=jnp.float64)
        state = make_state(optax.sgd(1.0), ema=True, dtype=jnp.float64)
        whole = partial(rj.train_step, label_smoothing=0.1, ema=0.9)
        moved, metrics = jax.jit(partial(whole, accumulate=2))(state, batch)
        alone, gradients, measured = jax.jit(whole), [], []
        part_of = state
        for first in (0, 1):
            part = rj.Batch(batch.images[first::2], batch.labels[first::2])
            after, numbers = alone(part_of, part)
            # At rate 1 the step is the gradient; the next part has the same parameters.
            gradients.append(jax.tree.map(jnp.subtract, state.params, after.params))
            measured.append(numbers)
            part_of = state.replace(batch_stats=after.batch_stats)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
        expected = jax.tree.map(jnp.subtract, state.params, mean)
        chex.assert_trees_all_close(moved.params, expected, rtol=1e-12, atol=1e-14)
        chex.assert_trees_all_close(moved.batch_stats, part_of.batch_stats, rtol=1e-12)
        for name in ("loss", "accuracy"):
            value = np.mean([getattr(numbers, name) for numbers in measured])
            np.testing.assert_allclose(getattr(metrics, name), value, rtol=1e-12)
        np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(mean), rtol=1e-12)
        assert int(moved.step) == 1


def test_a_states_shapes_are_found_without_computing_it(monkeypatch):
    """A compiler's options belong to the outermost jit alone; the tests' own XLA_FLAGS hid it."""
    monkeypatch.delenv("XLA_FLAGS")
    create = partial(rj.TrainState.create, tiny(), optax.sgd(0.1), jax.random.key(0))
    images = jnp.zeros((1, 8, 8, 1))
    for state in (
        jax.eval_shape(create, images),  # which alone are traced
        jax.eval_shape(lambda: create(images)),  # nothing given is
    ):
        assert state.params["head"]["kernel"].shape == (4, 3)


@pytest.mark.parametrize(
    ("x64", "types"),
    [
        (False, {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}),
        (True, {}),
        (True, {"dtype": jnp.float64}),
    ],
)
def test_a_step_keeps_the_types_of_its_state(x64, types):
    with jax.enable_x64(x64):
        images, key = jnp.zeros((2, 8, 8, 1), jnp.float32), jax.random.key(0)
        model, tx = tiny(lowering="auto", stem="imagenet", **types), optax.sgd(0.1, 0.9)
        create = partial(rj.TrainState.create, model, tx, ema=True)
        before = jax.eval_shape(create, key, images)
        batch = rj.Batch(images, jnp.zeros(2, jnp.int32))
        after, _ = jax.eval_shape(partial(rj.train_step, ema=0.9), before, batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


def test_averages_and_statistics_of_weights_in_bfloat16_move():
    """Kept in bfloat16 a thousandth of the way to the new value was no way."""
    state = make_state(optax.sgd(0.0), ema=True, dtype=jnp.bfloat16)
    moved, _ = jax.jit(partial(rj.train_step, ema=0.999))(
        state.replace(step=jnp.int32(10**6), params=jax.tree.map(lambda p: p + 1, state.params)),
        make_batch(0, dtype=jnp.bfloat16),
    )
    before, after = (s.ema["params"]["head"]["bias"] for s in (state, moved))
    np.testing.assert_allclose(after - before, 0.001, rtol=5e-3)
    assert {a.dtype for a in jax.tree.leaves((moved.ema, moved.batch_stats))} == {np.dtype("f4")}


def test_a_gradient_in_parts_is_summed_in_float32():
    """In bfloat16 parts that are hundreds of times smaller than the sum are lost."""

    def loss(logits, labels):
        return jnp.where(labels == 0, 256.0, 1.0) * logits[:, 0].astype(jnp.float32)

    state = biased(tx=optax.sgd(1.0), dtype=jnp.bfloat16)
    batch = rj.Batch(LOGITS.astype(jnp.bfloat16), LABELS)
    moved, _ = jax.jit(partial(rj.train_step, loss=loss, accumulate=4))(state, batch)
    np.testing.assert_allclose(moved.params["bias"], [-64.75, 0, 0], rtol=1e-2)


def test_more_classes_than_cells_are_counted_are_refused():
    with pytest.raises(rj.ResNetJaxError, match="46341 classes have no confusion matrix"):
        jax.eval_shape(count, jnp.zeros((1, 46_341)), jnp.zeros(1, jnp.int32))


def test_labels_of_any_integer_type_are_counted_right():
    """26 classes: the cell of the confusion is beyond a byte."""
    for dtype in (np.uint8, np.int8, np.int32):
        batch = rj.Batch(9 * jnp.eye(26), jnp.arange(26, dtype=dtype))
        counts = jax.jit(rj.eval_step)(biased(26), batch)
        np.testing.assert_array_equal(counts.confusion, np.eye(26))


@pytest.mark.parametrize("decay", [None, 0.9])
def test_averages_that_would_never_move_or_are_not_there_are_refused(decay):
    step = partial(rj.train_step, ema=decay)
    with pytest.raises(rj.ResNetJaxError, match="give ema="):
        jax.eval_shape(step, biased(ema=decay is None), rj.Batch(LOGITS, LABELS))
