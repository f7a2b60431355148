"""Users' own networks in files: what can be written is written right, the rest is refused."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.interop import Network, export_stablehlo
from resnet_jax.interop.onnx import export_onnx
from resnet_jax.interop.weights import export_torchvision
from resnet_jax.models import Affine, BatchNorm


def test_weights_are_not_read_from_a_run_of_another_network(
    one_unit, linear, tiny_config, tiny_options, tmp_path, refusal
):
    config = dataclasses.replace(tiny_config, augment=rj.AugmentConfig(), epochs=1 / 6, ema=None)
    own = rj.train(config, tmp_path / "own", model=linear, quiet=True)
    words = ["train", "--run-dir", tmp_path / "run", *tiny_options, "--init-from"]
    line = refusal(*words, own.path)
    assert f"{own.path} was trained with parameters of other names or shapes" in line
    assert "is not there: give a file of weights" in refusal(*words, tmp_path / "typo")
    for format in ("onnx", "stablehlo", "torchvision"):
        opened = rj.Run.open(own.path, model=linear)
        assert "this is a Linear" in refused(opened.export, format, tmp_path / "file")


def network(model, class_names="ab"):
    """Return a `Network` with random variables, which are drawn without compiling anything."""
    init, random = partial(model.init, train=False), np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    drawn = jax.tree.map(lambda x: random.uniform(0.1, 1, x.shape).astype(np.float32), shapes)
    return Network(model, drawn, Preprocessing((8, 8, 1)), class_names)


tiny = partial(rj.ResNet, (1,), rj.BasicUnit, num_classes=2, width=2, lowering="reference")


@pytest.mark.parametrize("dtype", [jnp.float16, "bfloat16"])
def test_a_network_in_half_precision_is_exported(dtype, tmp_path):
    export_stablehlo(tmp_path / "half", network(tiny(dtype=dtype)))


def test_outputs_that_are_not_finite_are_no_fault_of_the_exporter(tmp_path):
    own = network(tiny())
    own.variables["params"]["head"]["bias"] = jnp.full(2, jnp.nan)
    assert "not finite: give another" in refused(export_stablehlo, tmp_path / "file", own)


def test_a_file_names_each_class():
    assert "2 classes and there are 3 class_names" in refused(network, tiny(), "abc")
    assert "0 classes" in refused(network, tiny(num_classes=0), "")
    assert network(tiny(), np.arange(2)).metadata()["class_names"] == ["0", "1"]


def test_a_file_is_of_variables_of_its_network():
    """A torchvision file was written with one network's name and another's weights."""
    own = network(tiny())
    colour = Preprocessing((8, 8, 3))
    other = own.model.clone(width=4)
    for changes in ({"model": other}, {"preprocessing": colour}, {"variables": None}):
        assert "other names or shapes" in refused(dataclasses.replace, own, **changes)


def test_linen_lists_and_captures_units_that_are_computed_twice():
    """With remat its table ended in an AttributeError, and each map was captured twice."""
    own, images = network(tiny()), jnp.zeros((1, 8, 8, 1))
    again = own.model.clone(remat=True)
    table = again.tabulate(jax.random.key(0), images, train=False)
    assert table == own.model.tabulate(jax.random.key(0), images, train=False)
    capture = partial(again.apply, own.variables, train=False, capture_intermediates=True)
    _, found = jax.eval_shape(capture, images)
    assert len(found["intermediates"]["stage1_unit1"]["__call__"]) == 1


changed = tiny().clone
OWN = {cls: type("Own", (cls,), {}) for cls in (rj.ResNet, rj.BasicUnit, BatchNorm)}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (changed(norm=Affine), "norm but BatchNorm with epsilon 1e-05"),
        (changed(norm=partial(BatchNorm, epsilon=0.1)), "norm but BatchNorm with epsilon 1e-05"),
        (changed(norm=OWN[BatchNorm]), "norm but BatchNorm with epsilon 1e-05"),
        (changed(unit=OWN[rj.BasicUnit]), "unit Own"),
        (changed(stem="conv"), "stem without a norm"),
        (changed(shortcut="pad"), "shortcut pad: export as stablehlo or onnx"),
        (OWN[rj.ResNet]((1,), rj.BasicUnit, num_classes=2, width=2), "network Own"),
    ],
)
def test_what_torchvision_would_compute_otherwise_is_not_written_as_its(model, said, tmp_path):
    """A subclass may compute something else under the same names."""
    assert f"no {said}" in refused(export_torchvision, tmp_path / "weights", network(model))
    assert not (tmp_path / "weights").exists()


def test_norms_of_ones_own_are_written_as_they_are_or_refused(tmp_path):
    affine, own = network(tiny(norm=Affine)), network(tiny(norm=partial(BatchNorm, epsilon=0.1)))
    for nothing in ({}, {"batch_stats": {}}):  # as drawn, and as a run returns them
        variables = {"params": affine.variables["params"], **nothing}
        assert "no network without batch norm" in refused(rj.interop.to_torchvision, variables)
    weights = rj.interop.to_torchvision(own.variables)
    assert "params" in rj.interop.from_torchvision(weights, own.model)  # reading checks no norm
    pytest.importorskip("onnxruntime")
    assert "units BasicUnit with Affine" in refused(export_onnx, tmp_path / "x", affine)
    export_onnx(str(tmp_path / "own.onnx"), own)  # compares the file with the network
    assert (tmp_path / "own.onnx").exists()


@pytest.mark.parametrize("more", [{}, {"ema": 0.9}, {"accumulate": 2}], ids=str)
def test_frozen_variables_are_trained(more):
    """Flax's `FrozenDict` made a step of another structure."""
    model, variables = tiny(), freeze(network(tiny()).variables)
    state = rj.TrainState.of_variables(model, variables, optax.sgd(0.1), ema="ema" in more)
    batch = rj.Batch(jnp.zeros((4, 8, 8, 1)), jnp.zeros(4, jnp.int32))
    after, _ = jax.eval_shape(partial(rj.train_step, **more), state, batch)
    chex.assert_trees_all_equal_structs(after, state)


def test_the_norm_of_a_gradient_in_float16_is_finite_where_its_square_is_not():
    """The step counted as one that was not finite."""
    half = {"dtype": jnp.float16, "param_dtype": jnp.float16}
    images, tx = jnp.ones((2, 8, 8, 1)), optax.sgd(0.1)
    state = rj.TrainState.create(tiny(**half), tx, jax.random.key(0), images)
    step = jax.jit(partial(rj.train_step, loss=lambda logits, _: 1000 * logits[:, 0]))
    moved, metrics = step(state, rj.Batch(images, jnp.zeros(2, jnp.int32)))
    assert (metrics.grad_norm >= 1000) & jnp.isfinite(metrics.grad_norm)
    assert int(moved.first_bad_step) == -1
