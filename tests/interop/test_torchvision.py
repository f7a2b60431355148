"""torchvision's weights give torchvision's logits here, and travel both ways to the bit."""

import itertools
import re
from functools import cache, lru_cache
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from make_datasets import refused
from random_weights import NUM_CLASSES, RELATIVES, SIZES, digest, random_images, random_weights

from resnet_jax.interop import from_torchvision, to_torchvision
from resnet_jax.models import VARIANTS, shapes_of

FOLDER = Path(__file__).parent
EXPECTED = {
    **np.load(FOLDER / "torchvision_logits.npz"),
    **np.load(FOLDER / "relatives_logits.npz"),
}
NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
IN_DEFAULT_RUN = (("resnet18", (32, 32), np.float32), ("resnet18", (33, 47), np.float64))

# Parameters with 1000 classes. torchvision documents those of its models ("num_params" of their
# weights). The others by hand. Shortcuts that project: 1x1 kernels C_in * C_out, norms 2 * C_out;
# those of plain networks of basic units are in tests/models/test_resnet.py.
BASIC = [(c, 2 * c) for c in (64, 128, 256)]
BOTTLENECK = [(64, 256), *((4 * c, 8 * c) for c in (64, 128, 256))]
# Pre-activation: no norm in the three projections, the first norm of a stage as wide as the stage
# before, and one norm at the end.
PREACTIVATION = -sum(2 * b for _, b in BASIC) - sum(2 * (b - a) for a, b in BASIC) + 2 * 512
PUBLISHED = dict(
    zip(NAMES, (11_689_512, 21_797_672, 25_557_032, 44_549_160, 60_192_808), strict=True)
)
PREACT18 = PUBLISHED["resnet18"] + PREACTIVATION
PARAMETERS = {
    **{(name, True): count for name, count in PUBLISHED.items()},
    ("resnet50", False): PUBLISHED["resnet50"] - sum(a * b + 2 * b for a, b in BOTTLENECK),
    ("preact_resnet18", True): PREACT18,
    ("preact_resnet18", False): PREACT18 - sum(a * b for a, b in BASIC),
}
# torchvision's "num_params", and timm's of resnet26, resnet18d and resnet50d.
COUNTS = (25_028_904, 68_883_240, 15_995_176, 11_708_744, 25_576_264)
PARAMETERS |= {(name, True): count for name, count in zip(RELATIVES, COUNTS, strict=True)}
WIDE = {
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet101_2": 126_886_696,
}
PARAMETERS |= {(name, True): count for name, count in WIDE.items()}


def make(name, **options):
    return VARIANTS[name](**{"num_classes": NUM_CLASSES, **options})


def zeros_of(model, channels=3):
    """A model's variables, all zero."""
    shapes = shapes_of(model, (32, 32, channels))
    return unflatten_dict({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})


@cache
def torch_shapes(model, channels=3):
    """torchvision's names and shapes for a model, from ours."""
    return {name: value.shape for name, value in to_torchvision(zeros_of(model, channels)).items()}


@cache  # a worker has the cases of a network or two
def weights_of(name):
    """Random weights for one of the networks whose logits are stored, by their own names."""
    shapes = torch_shapes(make(name))
    assert digest(shapes) == str(EXPECTED[f"{name} digest"])
    return random_weights(shapes, (*NAMES, *RELATIVES).index(name))


@lru_cache(maxsize=1)
def variables_of(name):
    return from_torchvision(weights_of(name))


def tiny(seed=0, channels=3, **options):
    """A ResNet-18 of width 4 and random weights for it."""
    model = make("resnet18", **{"width": 4, "num_classes": 5, **options})
    return model, random_weights(torch_shapes(model, channels), seed)


def apply(model, variables, images):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))


def cases():
    for case in itertools.product(NAMES, SIZES, (np.float32, np.float64)):
        name, (height, width), dtype = case
        # Two sizes take each algorithm: one ends in maps of 2x2, the other begins with large ones.
        if dtype == np.float64 and (height, width) not in SIZES[1::2]:
            continue
        marks = [] if case in IN_DEFAULT_RUN else [pytest.mark.slow]
        yield pytest.param(*case, marks=marks, id=f"{name}-{height}x{width}-{dtype.__name__}")


@pytest.mark.parametrize(("name", "size", "dtype"), list(cases()))
def test_logits_are_torchvisions(name, size, dtype):
    expected = EXPECTED[f"{name} {size[0]}x{size[1]}"]
    with jax.enable_x64(dtype == np.float64):
        model = make(name, dtype=dtype, param_dtype=dtype)
        variables, images = jax.tree.map(dtype, (variables_of(name), random_images(size)))
        got = apply(model, variables, images)
    relative = np.abs(got - expected).max() / np.abs(expected).max()
    assert relative < (1e-5 if dtype == np.float32 else 1e-10)


@pytest.mark.parametrize(
    "name",
    [
        # The quick ones have groups, bottlenecks, a deep stem and averaging shortcuts.
        pytest.param(name, marks=[pytest.mark.slow] if re.search("wide|26|50d", name) else [])
        for name in RELATIVES
    ],
)
def test_logits_of_the_relatives_are_torchvisions_and_timms(name):
    """Read without naming the network: their widths, groups and stems are in the shapes."""
    size = SIZES[1]  # odd, as are some maps
    weights = weights_of(name)
    expected = EXPECTED[f"{name} {size[0]}x{size[1]}"]
    variables = from_torchvision(weights)
    got = apply(make(name, lowering="reference"), variables, random_images(size))
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    back = to_torchvision(variables)
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[key], value) for key, value in weights.items())


def test_logits_with_option_a_are_those_of_a_torch_network():
    torch = pytest.importorskip("torch")
    from torch_twin import ResNet

    model = make("resnet20", stage_sizes=(2, 1, 1), lowering="reference")
    network = ResNet(model.stage_sizes, False, NUM_CLASSES, width=16, stem="small", pad=True)
    twin = network.double().eval()
    shapes = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
    weights = random_weights(shapes, 0)
    twin.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    images = random_images((32, 32))
    with torch.no_grad():
        expected = twin(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()
    # A plain network has the same variables, and names in torch's.
    variables = from_torchvision(weights, model.clone(residual=False))
    got = apply(model, variables, images)
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert "torchvision has no shortcut pad" in refused(from_torchvision, weights, model)


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ("resnext50_32x4d", "resnet50"),
        ("wide_resnet50_2", "resnext50_32x4d"),
        ("resnet50d", "resnet50"),
        ("resnet26", "resnet50"),
        ("resnet50", "resnext50_32x4d"),
        ("resnet18", "resnet18d"),
    ],
)
def test_weights_of_another_variant_are_refused_by_its_name(weights, model):
    # Of these names only a ResNeXt's depends on the width.
    options = {"num_classes": 3, "width": 64 if weights.startswith("resnext") else 16}
    zeros = to_torchvision(zeros_of(make(weights, **options)))
    said = refused(from_torchvision, zeros, make(model, **options))
    assert re.search(f"{model} .*look like {weights}: ", said)


def test_a_residual_networks_weights_are_none_for_a_plain_one():
    """Their shortcuts were left out in silence, as those of the book's plain network are."""
    _, weights = tiny()
    said = refused(from_torchvision, weights, residual=False)
    assert "unknown: layer2.0.downsample.0.weight" in said


def test_weights_without_classes_give_features():
    model, weights = tiny()
    features = model.clone(num_classes=0)
    for variables in (
        from_torchvision(weights, features),
        from_torchvision({n: w for n, w in weights.items() if "fc." not in n}, num_classes=0),
    ):
        chex.assert_trees_all_equal_shapes(variables, zeros_of(features))


@pytest.mark.parametrize(
    ("name", "residual"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case[0] in (*NAMES[3:], *WIDE) else [])
        for case in PARAMETERS
    ],
)
def test_parameter_counts(name, residual):
    model = make(name, num_classes=1000, residual=residual)
    count = sum(leaf.size for leaf in jax.tree.leaves(zeros_of(model)["params"]))
    assert count == PARAMETERS[name, residual]
    if f"{name} parameters" in EXPECTED and residual:
        assert count == EXPECTED[f"{name} parameters"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("residual", "stem"), [(True, "small"), (False, "imagenet")])
def test_round_trip_is_exact(name, residual, stem):
    dtype = np.float64 if residual else np.float32
    model = make(name, width=4, residual=residual, stem=stem)
    weights = random_weights(torch_shapes(model), 3)
    weights = {n: w if w.dtype == np.int64 else w.astype(dtype) for n, w in weights.items()}
    back = to_torchvision(from_torchvision(weights, residual=residual))
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)


def test_batches_tracked_may_be_missing_as_in_old_files():
    _, weights = tiny()
    old = {n: w for n, w in weights.items() if not n.endswith("num_batches_tracked")}
    jax.tree.map(np.testing.assert_array_equal, from_torchvision(old), from_torchvision(weights))


def test_every_entry_that_does_not_fit_is_named():
    _, weights = tiny()
    del weights["layer2.0.downsample.0.weight"], weights["fc.bias"]
    weights["layer5.0.conv1.weight"] = np.zeros((1, 1, 1, 1), np.float32)
    weights["extra"] = np.zeros(3, np.float32)
    weights["layer1.0.conv1.weight"] = np.zeros((4, 4, 1, 1), np.float32)
    weights["bn1.bias"] = np.zeros(4, np.int32)
    weights["bn1.running_var"] = np.array([1, 1, np.nan, 1], np.float32)
    weights["layer1.0.bn1.running_var"] = -weights["layer1.0.bn1.running_var"]
    message = refused(from_torchvision, weights)
    for part in (
        "resnet18",
        "2 missing: fc.bias, layer2.0.downsample.0.weight",
        "2 unknown: extra, layer5.0.conv1.weight",
        "layer1.0.conv1.weight [4, 4, 1, 1], expected [4, 4, 3, 3]",
        "bn1.bias int32",
        "2 with NaN, infinity or a negative variance: bn1.running_var, layer1.0.bn1.running_var",
    ):
        assert part in message


def test_a_missing_unit_is_no_smaller_network():
    _, weights = tiny()
    cut = {n: w for n, w in weights.items() if not n.startswith("layer4.1.")}
    assert "10 missing: layer4.1.bn1.bias" in refused(from_torchvision, cut)


@pytest.mark.parametrize(
    "strange", [{}, {"features.0.weight": np.zeros((64, 3, 3, 3))}, {"conv1.weight": np.zeros(3)}]
)
def test_another_architecture_is_refused_in_one_short_line(strange):
    said = refused(from_torchvision, strange)
    assert "not those of a residual network" in said
    assert len(said) < 300


def test_another_model_than_the_weights_are_for():
    _, weights = tiny()
    for name, options, said in (
        ("resnet34", {}, "do not fit resnet34"),
        ("resnet18", {"width": 8}, "conv1.weight [4, 3, 7, 7], expected [8"),
        ("resnet18", {"num_classes": 6}, "fc.bias [5], expected [6]"),
    ):
        assert said in refused(from_torchvision, weights, make(name, **{"width": 4, **options}))


def test_what_has_no_names_there_is_named():
    preactivation = zeros_of(make("preact_resnet18", width=4), 1)
    assert "pre-activation" in refused(to_torchvision, preactivation)
    variables = zeros_of(make("resnet18", width=4))
    variables["params"]["dense"] = {"kernel": np.zeros((3, 3))}
    assert "dense" in refused(to_torchvision, variables)


def test_another_number_of_classes_gets_the_head_of_a_new_network():
    _, weights = tiny()
    same = from_torchvision(weights, num_classes=5)
    other = from_torchvision(weights, num_classes=7)
    np.testing.assert_array_equal(same["params"]["head"]["kernel"], weights["fc.weight"].T)
    kernel, bias = other["params"]["head"]["kernel"], other["params"]["head"]["bias"]
    assert kernel.shape == (32, 7)
    assert bias.shape == (7,)
    # PyTorch's default: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    assert 0.5 * 32**-0.5 < np.abs(kernel).max() <= 32**-0.5
    again = from_torchvision(weights, num_classes=7, key=jax.random.key(1))["params"]["head"]
    assert (again["kernel"] != kernel).any()  # that it is the network's own: test_fine_tuning.py
    other["params"]["head"] = same["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, other, same)
    double = {name: value.astype(float) for name, value in weights.items() if value.ndim}
    found = jax.tree.leaves(from_torchvision(double, num_classes=7))
    assert {leaf.dtype for leaf in found} == {np.dtype(float)}  # the head's too


@pytest.mark.slow
def test_grey_images_get_the_logits_of_grey_rgb_and_the_other_way_round():
    model, weights = tiny()
    grey = random_images((32, 32), channels=1)
    colour = np.repeat(grey, 3, axis=-1)
    of_colour = apply(model, from_torchvision(weights), colour)
    summed = from_torchvision(weights, in_channels=1)
    np.testing.assert_allclose(apply(model, summed, grey), of_colour, rtol=0, atol=2e-6)
    spread = from_torchvision(to_torchvision(summed), in_channels=3)
    np.testing.assert_allclose(apply(model, spread, colour), of_colour, rtol=0, atol=2e-6)
    said = refused(from_torchvision, weights, in_channels=2)
    assert "3 channels cannot be made one for 2" in said
