"""The choice of a convolution's algorithm, on both sides of each of its bounds."""

from contextlib import ExitStack
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_conv import passes

from resnet_jax.ops.algorithms import ALGORITHMS
from resnet_jax.ops.geometry import Geometry
from resnet_jax.ops.heuristics import PASSES, choose, instruction_set

SOME, LARGE = 2**14 + 1, 2**20

BOTH = [
    # pass, side, kernel, stride, padding, channels, elements, algorithm
    ("forward", 8, 1, 1, 0, (64, 64), SOME, "im2col"),
    # Little input.
    ("forward", 8, 3, 1, 1, (64, 64), SOME - 1, "im2col"),
    ("forward", 2, 3, 1, 1, (64, 64), SOME - 1, "im2col"),
    # Images, of at most three channels.
    ("forward", 8, 3, 1, 1, (3, 64), SOME, "im2col"),
    ("forward", 8, 3, 1, 1, (4, 64), SOME, "shift_add"),
    ("forward", 224, 7, 2, 3, (3, 64), LARGE - 1, "im2col"),
    ("forward", 224, 7, 2, 3, (3, 64), LARGE, "xla"),
    # Few channels on either side, and many pairs of positions.
    ("forward", 10, 3, 1, 1, (7, 64), SOME, "shift_add"),
    *(
        (pass_, 10, 3, 1, 1, channels, SOME, "xla")
        for pass_ in ("forward", "input_grad")
        for channels in ((8, 64), (31, 64), (64, 8))
    ),
    ("forward", 9, 3, 1, 1, (8, 64), SOME, "shift_add"),
    ("input_grad", 15, 3, 2, 1, (32, 16), SOME, "im2col"),
    # Winograd, with tiles of four unless the map is 2x2 or the kernel over eight times the input.
    *((pass_, 8, 3, 1, 1, (48, 64), SOME, "winograd_4") for pass_ in PASSES),
    *((pass_, 7, 3, 1, 1, (512, 512), 9 * 2**15, "winograd_4") for pass_ in PASSES),
    *((pass_, 7, 3, 1, 1, (512, 512), 9 * 2**15 - 1, "winograd_2") for pass_ in PASSES),
    *((pass_, 2, 3, 1, 1, (64, 64), SOME, "winograd_2") for pass_ in PASSES),
    ("forward", 8, 3, 1, 1, (64, 64), float("inf"), "winograd_4"),  # a symbolic batch
    # The rest are chosen by their stride, and by whether there is more than one output.
    ("weight_grad", 8, 5, 1, 2, (64, 64), SOME, "shift_add"),
    ("forward", 4, 4, 1, 0, (64, 64), SOME, "im2col"),
    ("forward", 5, 4, 1, 0, (64, 64), SOME, "shift_add"),
    ("forward", 8, 3, 2, 1, (64, 128), LARGE, "im2col"),
    ("weight_grad", 8, 3, 2, 1, (64, 64), SOME, "im2col"),
]
# What differs between instruction sets.
AVX2 = [
    *((pass_, 224, 7, 2, 3, (3, 64), LARGE, "im2col") for pass_ in PASSES[1:]),
    ("weight_grad", 10, 3, 1, 1, (15, 64), SOME, "shift_add"),
    ("weight_grad", 10, 3, 1, 1, (16, 64), SOME, "winograd_4"),
    ("forward", 15, 3, 2, 1, (16, 32), SOME, "xla"),  # 225 x 64 pairs
    ("forward", 14, 3, 2, 1, (16, 32), SOME, "im2col"),  # 196 x 49
    ("forward", 10, 3, 1, 1, (32, 64), SOME, "shift_add"),
    ("forward", 8, 3, 1, 1, (47, 64), SOME, "shift_add"),
    ("input_grad", 8, 3, 1, 1, (64, 47), SOME, "shift_add"),
    ("weight_grad", 8, 3, 2, 1, (32, 64), LARGE, "im2col"),
]
AVX512 = [
    *((pass_, 224, 7, 2, 3, (3, 64), LARGE, "xla") for pass_ in PASSES[1:]),
    ("weight_grad", 10, 3, 1, 1, (31, 64), SOME, "xla"),
    ("weight_grad", 10, 3, 1, 1, (32, 64), SOME, "winograd_4"),
    ("forward", 15, 3, 2, 1, (16, 32), SOME, "im2col"),
    *((pass_, 8, 3, 1, 1, (32, 64), SOME, "winograd_4") for pass_ in PASSES),
    *((pass_, 8, 3, 1, 1, (31, 64), SOME, "shift_add") for pass_ in PASSES),
    # Strided convolutions: large weight gradients.
    ("weight_grad", 8, 3, 2, 1, (32, 64), 2**19, "xla"),
    ("weight_grad", 8, 3, 2, 1, (32, 64), 2**19 - 1, "im2col"),
    ("weight_grad", 8, 3, 2, 1, (31, 64), 2**19, "im2col"),
]


@pytest.mark.parametrize(
    ("instructions", "case"),
    [*(("avx2", case) for case in BOTH + AVX2), *(("avx512", case) for case in BOTH + AVX512)],
)
def test_choice(instructions: str, case: tuple) -> None:
    pass_, side, kernel, stride, padding, channels, elements, expected = case
    geometry = Geometry.of((side, side), kernel, stride, padding).trimmed()
    assert choose(pass_, geometry, channels, elements, instructions) == expected


@pytest.mark.parametrize(
    ("extensions", "expected"),
    [
        ({"found": ["X86_V3", "X86_V4", "AVX512_ICL"]}, "avx512"),
        ({"found": ["X86_V3"]}, "avx2"),
        ({"found": ["NEON", "ASIMD"]}, "avx2"),
        ({"baseline": ["X86_V3", "X86_V4"]}, "avx512"),  # built by a packager for one kind of CPU
        ({"baseline": ["NEON"]}, "avx2"),  # found nothing beyond what it was built for
        (None, "avx2"),  # NumPy says nothing
    ],
)
def test_the_machine_s_instructions_choose_the_column(extensions, expected, monkeypatch) -> None:
    config = {} if extensions is None else {"SIMD Extensions": extensions}
    monkeypatch.setattr(np, "show_config", lambda mode: config)
    assert instruction_set.__wrapped__() == expected


@pytest.mark.parametrize(
    ("shape", "features", "stride", "lowering", "used"),
    [
        ((64, 8, 8, 64), 128, 2, "avx2", ["im2col", "im2col", "im2col"]),
        ((64, 28, 28, 3), 64, 1, "avx2", ["im2col", "im2col", "im2col"]),
        ((4, 2, 2, 64), 64, 1, "avx2", ["im2col", "im2col", "im2col"]),
        ((64, 28, 28, 16), 16, 1, "avx2", ["xla", "xla", "winograd_4"]),
        ((64, 28, 28, 16), 16, 1, "avx512", ["xla", "xla", "xla"]),
        ((64, 14, 14, 32), 32, 1, "avx2", ["shift_add", "shift_add", "winograd_4"]),
        ((64, 14, 14, 32), 32, 1, "avx512", ["winograd_4", "winograd_4", "winograd_4"]),
        # On a map one pixel wide only the middle one of three columns of taps touches the image.
        ((64, 100, 1, 8), 9, 1, "avx512", ["xla", "xla", "xla"]),
        ((64, 100, 1, 8), 9, 1, "avx2", ["xla", "xla", "shift_add"]),
    ],
)
def test_each_pass_runs_what_was_chosen_for_its_operands(
    shape: tuple[int, ...], features: int, stride: int, lowering: str, used: list[str]
) -> None:
    """The bounds are the real ones; the passes are traced, and nothing is computed."""
    run = partial(passes, stride=stride, padding=1, lowering=lowering)
    arrays = (shape, (3, 3, shape[3], features))
    jax.clear_caches()  # drops traces made under the bounds of other tests
    with ExitStack() as stack:
        spies = []
        for algorithms in ALGORITHMS.values():
            spies.append({name: mock.Mock(wraps=f) for name, f in algorithms.items()})
            stack.enter_context(mock.patch.dict(algorithms, spies[-1]))
        jax.eval_shape(run, *(jax.ShapeDtypeStruct(a, jnp.float32) for a in arrays))
    # XLA's own algorithm is also traced once, for other platforms.
    called = [
        [name for name, spy in by_name.items() if spy.call_count > (name == "xla")]
        for by_name in spies
    ]
    assert called == [[name] for name in used]
