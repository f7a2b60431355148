"""The networks: counts with their sources, modes, types and shapes."""

import math
from functools import partial
from typing import get_args, get_type_hints

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from make_datasets import refused
from test_units import UNITS, randomise

import resnet_jax as rj
from resnet_jax.models import VARIANTS, Affine, BatchNorm, make_model, summarize

# XLA's own convolutions compile three times as fast.
tiny = partial(
    rj.ResNet, stage_sizes=(1, 1, 1, 1), unit=rj.BasicUnit, width=8, lowering="reference"
)
shallow = partial(tiny, stage_sizes=(1, 1))


def shapes_of(model: rj.ResNet, channels: int = 1):
    """Its variables for images of so many channels; nothing is computed."""
    init = partial(model.clone(lowering="reference").init, train=False)  # the quickest to trace
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, channels)))


def count_parameters(model: rj.ResNet, channels: int) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, channels)["params"]))


def drawn(model: rj.ResNet):
    """Random variables for grey images; initialising a network takes longer to compile."""
    return randomise(shapes_of(model))


def test_parameters_for_grey_digits_follow_from_torchvisions():
    # The head has 512 weights and a bias for each class less; the 7x7 stem has 64 kernels for
    # each channel less.
    expected = 11_689_512 - 990 * (512 + 1) - 2 * 7 * 7 * 64
    assert expected == 11_175_370
    assert count_parameters(rj.ResNet18(num_classes=10), channels=1) == expected


def test_the_plain_net_lacks_the_projections_and_nothing_else():
    # Three projections, each a 1x1 kernel and a norm's scale and bias.
    projections = sum(c * 2 * c + 2 * 2 * c for c in (64, 128, 256))
    assert 11_175_370 - projections == 11_001_546
    assert count_parameters(rj.ResNet18(residual=False), channels=1) == 11_001_546
    residual, plain = (
        {layer.name: layer for layer in summarize(rj.ResNet18(residual=r), (28, 28, 1))}
        for r in (True, False)
    )
    assert {name: residual[name] for name in residual if "shortcut" not in name} == plain


def test_without_batch_norm_the_parameters_are_the_same_and_there_are_no_statistics():
    networks = rj.ResNet18(), rj.ResNet18(norm=Affine)
    with_norm, without = map(shapes_of, networks)
    chex.assert_trees_all_equal_shapes_and_dtypes(with_norm["params"], without["params"])
    assert set(without) == {"params"}
    sizes = (sum(layer.parameters for layer in summarize(m, (28, 28, 1))) for m in networks)
    assert set(sizes) == {11_175_370}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet20", 269_722),
        # 1.7 M in arXiv 1603.05027, table 4; 36.5 M (28-10) in arXiv 1605.07146, tables 4 and 5.
        pytest.param("preact_resnet164", 1_703_258, marks=pytest.mark.slow),
        ("wide_resnet16_4", 2_748_890),
        ("wide_resnet28_10", 36_479_194),
    ],
)
def test_networks_for_cifar_have_the_papers_counts(name, published):
    assert count_parameters(VARIANTS[name](num_classes=10), channels=3) == published


def test_the_counts_of_networks_for_cifar_follow_from_their_depth():
    # Of a unit of c channels: two 3x3 kernels, two norms; the first of a stage reads c/2 channels.
    # arXiv 1512.03385, table 6: 0.27 M, 0.46, 0.66, 0.85, 1.7 and 19.4 M. Counted by hand, since
    # many layers take long to trace.
    counts = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
    for depth, count in counts.items():
        sizes = dict(zip((16, 32, 64), VARIANTS[f"resnet{depth}"]().stage_sizes, strict=True))
        units = sum(2 * n * (9 * c * c + 2 * c) for c, n in sizes.items()) - sum(
            9 * c * c // 2 for c in (32, 64)
        )
        assert 3 * 9 * 16 + 2 * 16 + units + 64 * 10 + 10 == count


def test_the_shortcuts_by_where_they_project():
    projections = {
        kind: {
            name: set(layer) - {"conv1", "norm1", "conv2", "norm2"}
            for name, layer in shapes_of(tiny(stage_sizes=(2, 1), shortcut=kind))["params"].items()
            if name.startswith("stage")
        }
        for kind in ("pad", "projection", "projection-all", "average")
    }
    conv = {"shortcut_conv", "shortcut_norm"}
    names = ("stage1_unit1", "stage1_unit2", "stage2_unit1")
    assert projections == {
        "pad": dict(zip(names, (set(), set(), set()), strict=True)),
        "projection": dict(zip(names, (set(), set(), conv), strict=True)),
        "projection-all": dict(zip(names, (conv, conv, conv), strict=True)),
        "average": dict(zip(names, (set(), set(), {"average_conv", "average_norm"}), strict=True)),
    }


def test_the_table_of_variants_is_what_the_configuration_offers():
    assert set(VARIANTS) == set(get_args(get_type_hints(rj.ModelConfig)["name"]))


@pytest.mark.parametrize(
    ("variant", "multiply_adds"),
    [
        # torchvision's `_ops` of the weights' metadata (multiply-adds in 1e9, to three decimals);
        # those of ResNet-50 are in test_cli.py, to the last.
        ("resnet18", 1.814),
        ("resnet34", 3.664),
        pytest.param("resnet101", 7.801, marks=pytest.mark.slow),
        pytest.param("resnet152", 11.514, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_torchvisions(variant, multiply_adds):
    layers = summarize(VARIANTS[variant](num_classes=1000), (224, 224, 3))
    total = sum(layer.multiply_adds for layer in layers)
    assert round(total / 1e9, 3) == pytest.approx(multiply_adds, abs=0.0011)


def test_parameter_tree_has_the_documented_names():
    variables = shapes_of(tiny())
    unit = {"conv1", "norm1", "conv2", "norm2"}
    projected = unit | {"shortcut_conv", "shortcut_norm"}
    names = {name: set(below) for name, below in variables["params"].items()}
    assert names == {
        "stem": {"conv", "norm"},
        "stage1_unit1": unit,
        "stage2_unit1": projected,
        "stage3_unit1": projected,
        "stage4_unit1": projected,
        "head": {"kernel", "bias"},
    }
    third = set(shapes_of(tiny(unit=rj.BottleneckUnit))["params"]["stage1_unit1"])
    assert third == projected | {"conv3", "norm3"}
    assert set(variables["batch_stats"]["stem"]["norm"]) == {"mean", "var"}


@pytest.mark.parametrize(("stem", "expected"), [("imagenet", (8, 6)), ("small", (30, 22))])
def test_stems_have_the_papers_sizes(stem, expected):
    layers = {layer.name: layer for layer in summarize(tiny(stem=stem), (30, 22, 2))}
    assert layers["stage1_unit1/conv1"].output_shape == (*expected, 8)
    kernel = 7 if stem == "imagenet" else 3
    assert layers["stem/conv"].parameters == kernel * kernel * 2 * 8


@pytest.mark.parametrize("kind", ["stem", "shortcut", "initializer"])
def test_a_misspelt_kind_is_refused(kind):
    """It was another network, without a word. Nothing but the network checks types here."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        said = refused(rj.ResNet18, **{kind: "projection_all"})
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
    names = "projection, projection-all, pad, average" if kind == "shortcut" else ""
    assert f"{kind} is 'projection_all': give one of {names}" in said


@pytest.mark.parametrize("unit", UNITS)
def test_logits_are_float32_for_images_of_any_shape(unit):
    run = partial(tiny(unit=unit, num_classes=7).init_with_output, train=False)
    logits, _ = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, 17, 12, 3)))
    chex.assert_shape(logits, (2, 7))
    chex.assert_type(logits, jnp.float32)


def test_bfloat16_computes_in_half_and_gives_float32():
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 1))
    model, half = shallow(), shallow(dtype=jnp.bfloat16)
    variables = drawn(half)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    logits, exact = (
        jax.jit(partial(network.apply, train=False))(variables, images) for network in (half, model)
    )
    chex.assert_type(logits, jnp.float32)
    error = jnp.abs(logits - exact).max() / jnp.abs(exact).max()
    # Close, and not the same: eight bits of mantissa.
    assert 1e-5 < error < 0.1


def test_mode_has_no_default():
    images = jnp.zeros((1, 16, 16, 1))
    with pytest.raises(TypeError, match="train"):
        tiny().init(jax.random.key(0), images)


@pytest.mark.parametrize(
    "changes", [{"stem": "deep"}, *({"unit": unit} for unit in UNITS)], ids=str
)
def test_training_mode_sees_the_batch_and_evaluation_mode_does_not(changes):
    images = jax.random.normal(jax.random.key(1), (4, 16, 16, 1))
    model = shallow(**changes)
    variables = drawn(model)
    evaluate = jax.jit(partial(model.apply, train=False))
    evaluated = evaluate(variables, images)
    alone = evaluate(variables, images[:1])
    np.testing.assert_allclose(evaluated[:1], alone, rtol=1e-4, atol=1e-5)
    train = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    trained, updates = train(variables, images)
    assert not np.allclose(trained, evaluated, atol=1e-3)
    chex.assert_trees_all_equal_shapes(updates["batch_stats"], variables["batch_stats"])
    moved = jax.tree.map(
        lambda a, b: bool((a != b).all()), updates["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))


def test_head_starts_by_pytorchs_default():
    model = tiny(stage_sizes=(1,), num_classes=100, width=256)
    init = partial(model.init, train=False)
    images = jnp.zeros((1, 16, 16, 1))
    head = jax.jit(lambda key: init(key, images)["params"]["head"])(jax.random.key(0))
    bound = 1 / 16  # 256 inputs
    for leaf in (head["kernel"], head["bias"]):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.9 * bound
        np.testing.assert_allclose(np.std(leaf), bound / math.sqrt(3), rtol=0.15)


@pytest.mark.slow
def test_units_computed_twice_give_the_same_and_keep_less():
    images = jax.random.normal(jax.random.key(1), (32, 16, 16, 1))

    def step_of(remat: bool):
        model = rj.ResNet(
            stage_sizes=(3,), unit=rj.BasicUnit, width=8, stem="small", lowering="reference",
            remat=remat,
        )  # fmt: skip
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), images)

        def loss(params):
            variables_now = {**variables, "params": params}
            logits, moved = model.apply(variables_now, images, train=True, mutable=["batch_stats"])
            return (logits**2).sum(), moved

        found = variables, jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        # What waits for the way back, whatever the platform's compiler then makes of it.
        waiting = jax.eval_shape(
            lambda params: jax.vjp(loss, params, has_aux=True)[1], variables["params"]
        )
        return found, sum(leaf.size for leaf in jax.tree.leaves(waiting))

    (kept, values), (again, less) = step_of(remat=False), step_of(remat=True)
    chex.assert_trees_all_close(again, kept, rtol=1e-4, atol=1e-5)
    assert less < 0.5 * values


def test_no_row_binds_what_the_configuration_sets():
    """A configuration's default would take its place."""
    for name, row in VARIANTS.items():
        assert make_model(rj.ModelConfig(name), 10) == row(num_classes=10), name


def test_the_parameters_of_a_layer_that_is_called_twice_count_once():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            layer = nn.Dense(3, name="shared")
            return layer(layer(images.mean((1, 2))))

    layers = summarize(Shared(), (4, 4, 3))
    assert [(layer.parameters, layer.multiply_adds) for layer in layers] == [(12, 9), (0, 9)]


def test_a_layer_that_calls_its_base_class_is_listed_once():
    class Own(BatchNorm):
        @nn.compact
        def __call__(self, x, *, train):
            return super().__call__(x, train=train)

    made = partial(rj.ResNet, (1,), rj.BasicUnit, width=2)
    listed = [summarize(made(norm=norm), (8, 8, 1)) for norm in (BatchNorm, Own)]
    one, other = ([layer.name for layer in layers] for layers in listed)
    assert one == other
