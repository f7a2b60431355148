"""The CPU's convolution algorithms equal XLA's, which alone is used on other platforms."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax import export
from test_conv import assert_close, check_against_reference, convolutions, normal, passes

from resnet_jax.ops import conv2d, heuristics
from resnet_jax.ops.algorithms import ALGORITHMS, im2col, shift_add, supports, winograd
from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.primitives import depends_on


@pytest.fixture(autouse=True)
def _small_as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the bounds, so that inputs, channels and maps that are small are treated as large."""
    monkeypatch.setattr(heuristics, "IM2COL_MAX_ELEMENTS", 16)
    monkeypatch.setattr(im2col, "MAX_IMAGE_CHANNELS", 0)
    monkeypatch.setattr(heuristics, "XLA_CHANNELS", ())


@pytest.mark.parametrize("count", [4, pytest.param(120, marks=pytest.mark.slow)])
def test_any_convolution_equals_the_reference(count: int) -> None:
    checked = itertools.count(1)

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(convolutions())
    def each(case: dict[str, tuple[int, ...]]) -> None:
        check_against_reference(case)
        if next(checked) % 25 == 0:
            # Every compiled program maps memory of its own, and Linux allows a process 65,530
            # mappings.
            jax.clear_caches()

    each()


def operands(x, grad, kernel):
    """Return the operands of each pass."""
    return {"forward": (x, kernel), "input_grad": (grad, kernel), "weight_grad": (x, grad)}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((3, 5), 3, 1, 1),
        ((4, 4), 3, 2, 1),
        ((2, 2), 3, 1, 1),
        ((2, 3), 3, 1, 1),
        ((1, 1), 3, 1, 1),
        ((5, 5), 7, 2, 3),
        ((6, 5), 1, 2, 0),
        ((4, 3), (2, 5), (1, 2), (0, 3)),
        ((3, 3), 1, 1, 3),
    ],
)
def test_every_algorithm_equals_xlas(size, kernel, stride, padding) -> None:
    """Each is run in every pass, whether or not it would be chosen."""
    live = Geometry.of(size, kernel, stride, padding).trimmed()
    x, grad, weights = (
        normal(n, *shape)
        for n, shape in enumerate([(3, *live.size, 3), (3, *live.out, 5), (*live.kernel, 3, 5)])
    )
    names = [name for name in ALGORITHMS["forward"] if supports(name, live)]

    @jax.jit
    def run(*arrays):
        each = operands(*arrays).items()
        return [[ALGORITHMS[p][name](*taken, live) for name in names] for p, taken in each]

    for xla, *others in run(x, grad, weights):
        for other in others:
            assert_close(other, xla, 1e-9)


def test_winograds_error_in_float32_is_a_few_roundings() -> None:
    """Errors are root mean squares, relative to the values'; im2col's are 2e-7 to 4e-7 here."""
    live = Geometry.of((8, 8), 3, 1, 1).trimmed()
    x, grad, kernel = normal(1, 4, 8, 8, 64), normal(2, 4, 8, 8, 64), normal(3, 3, 3, 64, 64)
    for pass_, taken in operands(x, grad, kernel).items():
        run = {n: jax.jit(ALGORITHMS[pass_][n], static_argnums=2) for n in ALGORITHMS[pass_]}
        exact = np.asarray(run["xla"](*taken, live))
        for name, bound in (("winograd_2", 6e-7), ("winograd_4", 1.6e-6)):
            rounded = np.asarray(run[name](*map(np.float32, taken), live))
            assert rounded.dtype == np.float32
            error = np.square(rounded - exact).mean() / np.square(exact).mean()
            assert error**0.5 < bound


# Shapes for which each algorithm but XLA's own is chosen, and a kernel of which one tap is read.
SHAPES = [
    pytest.param((2, 8, 8, 4), 3, 1, 1, id="shift_add"),
    pytest.param((2, 4, 4, 4), 3, 2, 1, id="im2col"),
    pytest.param((2, 2, 2, 4), 3, 1, 1, id="winograd"),
    pytest.param((1, 1, 1, 4), 3, 1, 1, id="centre tap"),
]


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_bfloat16_to_its_precision(shape, k, stride, padding) -> None:
    x, kernel = normal(1, *shape, dtype=jnp.bfloat16), normal(2, k, k, shape[3], 5)
    kernel = kernel.astype(jnp.bfloat16)
    options = {"stride": stride, "padding": padding}
    exact = passes(x.astype(float), kernel.astype(float), lowering="reference", **options)
    expected = [e.astype(jnp.bfloat16) for e in exact]
    assert_close(passes(x, kernel, **options), expected, 2**-7)


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_transformations(shape, k, stride, padding) -> None:
    """Check vmap over images and over kernels, and grad of the grad of a checkpoint."""
    x, kernel = normal(1, *shape), normal(2, k, k, shape[3], 5)

    @partial(jax.jit, static_argnums=0)
    def each(lowering: str, x, kernel):
        conv = partial(conv2d, stride=stride, padding=padding, lowering=lowering)

        def loss(x, kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        def steepness(x, kernel):
            return sum(
                jnp.sum(jnp.cos(g) * g) for g in jax.grad(jax.checkpoint(loss), (0, 1))(x, kernel)
            )

        images, kernels = jnp.stack([x, 2 - x]), jnp.stack([kernel, kernel**2, kernel - 1])

        return (
            jax.vmap(conv, (0, None))(images, kernel),
            jax.vmap(conv, (None, 0))(x, kernels),
            jax.vmap(jax.grad(loss, (0, 1)), (None, 0))(x, kernels),
            jax.grad(steepness, (0, 1))(x, kernel),
        )

    assert_close(each("auto", x, kernel), each("reference", x, kernel), 1e-9)


def test_other_platforms_get_only_xlas_convolution() -> None:
    """On CUDA and TPU, value and gradients are three convolutions, without matrix products."""

    def run(lowering: str, platform: str) -> str:
        step = jax.jit(partial(passes, padding=1, lowering=lowering))
        arguments = normal(1, 2, 8, 8, 4), normal(2, 3, 3, 4, 5)
        return export.export(step, platforms=[platform])(*arguments).mlir_module()

    for platform in ("cuda", "tpu"):
        module = run("auto", platform)
        assert module.count("stablehlo.convolution") == 3
        assert "stablehlo.dot_general" not in module
        assert "stablehlo.concatenate" not in module
    assert "stablehlo.convolution" not in run("auto", "cpu")
    assert "stablehlo.convolution" in run("reference", "cpu")


@pytest.mark.parametrize("event", [0.0, np.nan, np.inf, -np.inf])
def test_what_depends_on_another_keeps_its_bits(event: float) -> None:
    x = np.array([[0.0, -0.0, np.nan], [np.inf, -np.inf, 1.5]])
    waited = jax.jit(depends_on)(jnp.asarray(x), jnp.full((2, 3), event))
    assert np.asarray(waited).tobytes() == x.tobytes()


def test_nothing_but_inputs_is_kept_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure temporaries of a gradient through five convolutions that each keep two arrays."""

    def temporaries() -> float:
        def loss(kernels):
            y = x
            for kernel in kernels:
                y = jnp.tanh(conv2d(y, kernel, padding=1))
            return y.sum()

        jax.clear_caches()
        run = jax.jit(jax.grad(loss)).lower([kernel] * 5).compile()
        return run.memory_analysis().temp_size_in_bytes / x.nbytes

    x, kernel = normal(1, 32, 8, 8, 16), normal(2, 3, 3, 16, 16)
    assert temporaries() < 20  # five times the input and tanh's slope, and one convolution's copies
    for algorithm in (im2col, shift_add, winograd):
        monkeypatch.setattr(algorithm, "depends_on", lambda x, event: x)
    assert temporaries() > 22  # three copies of each input are kept as well


@pytest.mark.parametrize(("shape", "k", "stride", "padding"), SHAPES)
def test_symbolic_batch(shape, k, stride, padding) -> None:
    """A step exported for any batch and for three platforms runs here at two batch sizes."""
    kernel = normal(2, k, k, shape[3], 5)

    def step(x):
        y, pullback = jax.vjp(partial(conv2d, stride=stride, padding=padding), x, kernel)
        return y, *pullback(y)

    batch = export.symbolic_shape("batch")[0]
    spec = jax.ShapeDtypeStruct((batch, *shape[1:]), np.float64)
    exported = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(spec)
    here = jax.jit(step)
    for size in (1, 3):
        # Images of zeros add nothing to the kernel's gradient, so one program serves both sizes.
        x = np.zeros((3, *shape[1:]))
        x[:size] = normal(3, size, *shape[1:])
        *of_images, of_kernel = map(np.asarray, here(x))
        expected = *(each[:size] for each in of_images), of_kernel
        assert_close(exported.call(x[:size]), expected, 1e-12)
