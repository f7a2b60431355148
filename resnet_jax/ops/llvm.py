"""How hard LLVM works on a program for a CPU, where compiling may take longer than running."""

import jax

# Measured on ResNet-18 (experiments/cpu_speed): QUICK takes two thirds of the default's time and
# its programs run as fast to a few hundredths; HASTY takes half, and its run three times as long.
HASTY, QUICK = 0, 1


def llvm_level(level: int) -> dict[str, int]:
    """``compiler_options`` for `jax.jit`: `HASTY` or `QUICK` on a CPU, nothing elsewhere."""
    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else {}
