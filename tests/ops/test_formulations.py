"""Every formulation of the convolution on a CPU, and the rule that chooses one."""

import itertools
from contextlib import ExitStack
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import export
from test_conv import (  # noqa: F401 (a fixture)
    _float64,
    assert_close,
    check_against_reference,
    convolutions,
    faces,
    normal,
    quick,
)

from resnet_jax.ops import conv2d, cpu, max_pool, rule
from resnet_jax.ops.geometry import Geometry


@pytest.fixture(autouse=True)
def _small_as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs stand for large ones, a few channels for many, small maps for large ones."""
    monkeypatch.setattr(rule, "FEW", 0)
    monkeypatch.setattr(rule, "COLOURS", 0)
    monkeypatch.setattr(rule, "NARROW", ())


CHECKED = itertools.count()


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(convolutions())
def test_many_convolutions_equal_the_reference(case: dict[str, tuple[int, ...]]) -> None:
    check_against_reference(case)
    if next(CHECKED) % 25 == 24:
        # Every compiled program holds pieces of memory of its own, of which Linux gives a process
        # 65,530.
        jax.clear_caches()


def check_formulations(geometry: Geometry, channels: tuple[int, int]) -> None:
    """Every formulation of every face, whether or not the rule would choose it."""
    live, (c, k) = geometry.trimmed(), channels
    x, grad = normal(1, 3, *live.size, c), normal(2, 3, *live.out, k)
    kernel = normal(3, *live.kernel, c, k)
    arguments = {"forward": (x, kernel), "input_grad": (grad, kernel), "kernel_grad": (x, grad)}
    for face, formulations in cpu.FORMULATIONS.items():
        fitting = [formulations[name] for name in formulations if rule.fits(name, live)]
        native, *others = quick(lambda a, b: [f(a, b, live) for f in fitting])(*arguments[face])  # noqa: B023
        for other in others:
            assert_close(other, native, 1e-9)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), (1, 1)),
        ((5, 7), (3, 3), (1, 1), (1, 1)),
        ((4, 4), (3, 3), (2, 2), (1, 1)),
        ((2, 2), (3, 3), (1, 1), (1, 1)),
        ((1, 1), (3, 3), (1, 1), (1, 1)),
        ((9, 9), (7, 7), (2, 2), (3, 3)),
        ((6, 5), (1, 1), (2, 2), (0, 0)),
        ((5, 4), (2, 5), (1, 2), (0, 3)),
        ((3, 3), (1, 1), (1, 1), (3, 3)),
    ],
)
def test_every_formulation_equals_the_native_one(size, kernel, stride, padding) -> None:
    check_formulations(Geometry.of(size, kernel, stride, padding), (3, 5))


# Shapes for which the rule takes each of its choices but XLA's own, for the checks below.
SHAPES = [
    pytest.param((2, 8, 8, 4), 3, 1, 1, id="columns"),
    pytest.param((2, 4, 4, 4), 3, 2, 1, id="patches"),
    pytest.param((2, 2, 2, 4), 3, 1, 1, id="tiles"),
    pytest.param((2, 2, 2, 4), 3, 2, 1, id="dense"),
    pytest.param((1, 1, 1, 4), 3, 1, 1, id="centre tap"),
    pytest.param((2, 5, 4, 3), 1, 2, 0, id="projection"),
    pytest.param((2, 16, 16, 1), 7, 2, 3, id="stem"),
]


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_bfloat16_to_its_precision(shape, k, stride, padding) -> None:
    x, kernel = normal(1, *shape, dtype=jnp.bfloat16), normal(2, k, k, shape[3], 5)
    kernel = kernel.astype(jnp.bfloat16)
    options = {"stride": stride, "padding": padding}
    exact = faces(x.astype(float), kernel.astype(float), lowering="reference", **options)
    expected = [e.astype(jnp.bfloat16) for e in exact]
    assert_close(faces(x, kernel, **options), expected, 2**-7)


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_transformations(shape, k, stride, padding) -> None:
    """vmap over images and over kernels, and grad of the grad of a checkpoint."""
    x, kernel = normal(1, *shape), normal(2, k, k, shape[3], 5)

    def each(lowering: str):
        conv = partial(conv2d, stride=stride, padding=padding, lowering=lowering)

        def loss(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        def steepness(x, kernel):
            return sum(
                jnp.sum(jnp.cos(g) * g) for g in jax.grad(jax.checkpoint(loss), (0, 1))(x, kernel)
            )

        images, kernels = jnp.stack([x, 2 - x]), jnp.stack([kernel, kernel**2, kernel - 1])

        @quick
        def results():
            return (
                jax.vmap(conv, (0, None))(images, kernel),
                jax.vmap(conv, (None, 0))(x, kernels),
                jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(x, kernels),
                jax.grad(steepness, (0, 1))(x, kernel),
            )

        return results()

    assert_close(each("auto"), each("reference"), 1e-9)


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_other_platforms_get_only_the_native_convolution(shape, k, stride, padding) -> None:
    """Value and gradients hold three convolutions on CUDA and TPU, and no products."""

    def run(lowering: str, platform: str) -> str:
        def step(x, kernel):
            y, pullback = jax.vjp(
                partial(conv2d, stride=stride, padding=padding, lowering=lowering), x, kernel
            )
            return y, pullback(y)

        arguments = normal(1, *shape), normal(2, k, k, shape[3], 5)
        return export.export(jax.jit(step), platforms=[platform])(*arguments).mlir_module()

    for platform in ("cuda", "tpu"):
        module = run("auto", platform)
        assert module.count("stablehlo.convolution") == 3
        assert "stablehlo.dot_general" not in module
        assert "stablehlo.concatenate" not in module
    assert "stablehlo.convolution" not in run("auto", "cpu")
    assert "stablehlo.convolution" in run("reference", "cpu")


def formulations_used(x: jax.Array, kernel: jax.Array) -> list[set[str]]:
    """Those of the value and of the input gradient; both gradients equal the reference's."""
    jax.clear_caches()  # of a trace under another bound
    with ExitStack() as stack:
        calls = []
        for face in ("forward", "input_grad"):
            formulations = cpu.FORMULATIONS[face]
            calls.append({name: mock.Mock(wraps=f) for name, f in formulations.items()})
            stack.enter_context(mock.patch.dict(formulations, calls[-1]))
        found = faces(x, kernel, padding=1)
    assert_close(found, faces(x, kernel, padding=1, lowering="reference"), 1e-9)
    # Beside it the native one is traced, for other platforms.
    return [
        {name for name, f in face.items() if f.call_count > (name == "native")} for face in calls
    ]


def test_an_image_of_few_colours_is_read_as_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides of the bound."""
    monkeypatch.setattr(rule, "COLOURS", 3)
    for channels, name in ((3, "patches"), (4, "columns")):
        x, kernel = normal(1, 2, 12, 12, channels), normal(2, 3, 3, channels, 5)
        assert formulations_used(x, kernel) == [{name}, {name}]


@pytest.mark.parametrize(
    ("side", "channels", "features", "used"),
    [
        (10, 8, 31, ["native", "native"]),
        (10, 7, 8, ["columns", "native"]),
        (10, 8, 32, ["native", "columns"]),
        (9, 8, 31, ["columns", "columns"]),
    ],
)
def test_narrow_products_on_large_maps_are_left_to_xla(
    side: int, channels: int, features: int, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sides of each bound; what counts is the channels that a product sums over."""
    monkeypatch.setattr(rule, "NARROW", range(8, 32))
    x, kernel = normal(1, 2, side, side, channels), normal(2, 3, 3, channels, features)
    assert formulations_used(x, kernel) == [{name} for name in used]


def test_a_long_narrow_map_is_left_to_xla_with_its_kernel_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three columns of taps only the middle one touches a map one pixel wide."""
    monkeypatch.setattr(rule, "NARROW", range(8, 32))
    x, kernel = normal(1, 2, 100, 1, 8), normal(2, 3, 3, 8, 9)
    assert formulations_used(x, kernel) == [{"native"}, {"native"}]


def test_large_inputs_are_cut_into_tiles_and_small_ones_are_not() -> None:
    """On both sides of the bound, where the rule takes another formulation."""
    kernel = normal(2, 3, 3, 1, 1)
    less, many = normal(1, 2, 511, 512, 1), normal(1, 2, 512, 512, 1)
    assert less.size < rule.MANY == many.size
    assert formulations_used(less, kernel) == [{"columns"}, {"columns"}]
    assert formulations_used(many, kernel) == [{"tiles"}, {"tiles"}]


def test_a_small_inputs_kernel_is_left_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both sides of the bound, on a map where tiles have the fewest products."""
    monkeypatch.setattr(rule, "FEW", 4 * 16)
    kernel = normal(2, 3, 3, 4, 4)
    few, more = normal(1, 4, 2, 2, 4), normal(1, 5, 2, 2, 4)
    assert few.size <= rule.FEW < more.size
    assert formulations_used(few, kernel) == [{"patches"}, {"patches"}]
    assert formulations_used(more, kernel) == [{"tiles"}, {"tiles"}]


@pytest.mark.parametrize("event", [0.0, np.nan, np.inf, -np.inf])
def test_what_waits_keeps_its_bits(event: float) -> None:
    x = np.array([[0.0, -0.0, np.nan], [np.inf, -np.inf, 1.5]])
    waited = jax.jit(cpu.after)(jnp.asarray(x), jnp.full((2, 3), event))
    assert np.asarray(waited).tobytes() == x.tobytes()


def test_nothing_but_inputs_is_kept_for_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporaries of a gradient through ten convolutions, each of which keeps two arrays."""

    def temporaries() -> float:
        def loss(kernels):
            y = x
            for kernel in kernels:
                y = jnp.tanh(conv2d(y, kernel, padding=1))
            return y.sum()

        jax.clear_caches()
        run = quick(jax.grad(loss)).lower([kernel] * 10).compile()
        return run.memory_analysis().temp_size_in_bytes / x.nbytes

    x, kernel = normal(1, 32, 8, 8, 16), normal(2, 3, 3, 16, 16)
    assert temporaries() < 30  # ten times the input and tanh's slope, and one convolution's copies
    monkeypatch.setattr(cpu, "after", lambda x, event: x)
    assert temporaries() > 40  # three copies of each input are kept as well


@pytest.mark.parametrize(("channels", "k", "waits"), [(3, 7, 0), (4, 7, 1), (4, 1, 0)])
def test_which_patches_wait(
    channels: int, k: int, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of an image of few colours, and not those that are the input itself."""
    monkeypatch.setattr(rule, "COLOURS", 3)
    jax.clear_caches()
    with mock.patch.object(cpu, "after", wraps=cpu.after) as after:
        faces(normal(1, 2, 9, 9, channels), normal(2, k, k, channels, 5), stride=2, padding=k // 2)
    assert after.call_count == waits


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_symbolic_batch(shape, k, stride, padding) -> None:
    """Exported once for any batch and for three platforms, it runs here at two batch sizes."""
    kernel = normal(2, k, k, shape[3], 5)

    def step(x):
        y, pullback = jax.vjp(partial(conv2d, stride=stride, padding=padding), x, kernel)
        return y, *pullback(y)

    batch = export.symbolic_shape("batch")[0]
    spec = jax.ShapeDtypeStruct((batch, *shape[1:]), np.float64)
    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(spec)
    for size in (1, 3):
        x = normal(3, size, *shape[1:])
        assert_close(exported.call(x), quick(step)(x), 1e-12)


def test_the_maxima_by_row_wait_for_the_gradient() -> None:
    """In a ResNet-18 of batch 256 that is 12 of 141 MiB of temporaries."""
    with mock.patch.object(cpu, "after", wraps=cpu.after) as after:
        jax.grad(lambda x: max_pool(x).sum())(normal(1, 3, 9, 10, 4))
    ((x, grad),) = (call.args for call in after.call_args_list)
    assert (x.shape, grad.shape) == ((3, 9, 10, 4), (3, 5, 5, 4))
