"""What does the shortcut do, with depth, learning rate and batch norm varied?

Command:   python -m experiments.residual_study     (all 248 runs, three hours; --quick, --list)
Needs:     the full MNIST prepared ($TFDS_DATA_DIR, or `resnet-jax data prepare mnist`)
Result:    results.jsonl, a line for each finished run; ../README.md and ../results.ipynb show them

Learning rate and seed are arguments of the programs, not constants in them, so that a network is
compiled once for all its runs. The programs are the package's own. The rows are from version 0.1.0,
which evaluated in batches of 100 and skipped a plain unit that is left out; here the unit becomes
the identity, which is the same but for rounding.
"""

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import resnet_jax as rj
from experiments import units
from experiments.measuring import Row
from experiments.residual_study import study
from experiments.residual_study.study import Run, keeps_shape
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import BatchNorm
from resnet_jax.training.engine import Engine
from resnet_jax.training.jax_settings import compiler_options, configured_jax
from resnet_jax.training.optim import make_schedule

REMOVAL_IMAGES = 1000
CURVE = ("step", "loss", "accuracy")
LOOKS = 6  # steps of a run at which gradients and shortcuts are examined
POINTS = 20  # of a curve


def gradient_norms() -> optax.GradientTransformation:
    """Return a transformation that passes gradients on and stores the Euclidean norm of each."""
    norms = partial(jax.tree.map, lambda leaf: jnp.linalg.norm(jnp.ravel(leaf)))
    return optax.GradientTransformation(norms, lambda updates, *_: (updates, norms(updates)))


def without(variables: Any, unit: str, residual: bool) -> Any:
    """Return variables that leave a unit out when the programs of the whole network use them.

    A residual unit loses its branch and keeps its shortcut, as in arXiv 1605.06431. A plain unit,
    which has to keep the shape, becomes the identity, because its input is already a ReLU's output.
    """
    identity = {"kernel": 0, "scale": 1, "bias": 0, "mean": 0, "var": 1 - BatchNorm.epsilon}

    def changed(path: Any, leaf: jax.Array) -> Any:
        _, owner, *layer, name = (key.key for key in path)
        if owner != unit or (residual and layer != ["norm2"]):
            return leaf
        new = np.full(leaf.shape, 0 if residual else identity[name], leaf.dtype)
        if name == "kernel":
            new[1, 1] = np.eye(leaf.shape[-1])  # the centre of the 3x3 kernel
        return new

    return jax.tree_util.tree_map_with_path(changed, variables)


def shortcut_shares(model: rj.ResNet, variables: Any, images: jax.Array, units: list[str]) -> Any:
    """Return how much each unit's shortcut contributes to the unit's sum: float32[U].

    It is ``shortcut / (shortcut + branch)`` of their energies (mean squares over a batch, in
    training mode), which is the shortcut's share of the sum if the two are uncorrelated.
    """
    settings = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
    _, found = model.apply(variables, images, train=True, **settings)
    inside = found["intermediates"]
    # The stem's pooling is not a module, but its output is the stem's.
    x, shares = inside["stem"]["__call__"][0], []
    for unit in units:
        layers = inside[unit]
        shortcut = layers["shortcut_norm"]["__call__"][0] if "shortcut_norm" in layers else x
        branch = layers["norm2"]["__call__"][0]
        energy = jnp.square(shortcut).mean()
        shares.append(energy / (energy + jnp.square(branch).mean()))
        x = layers["__call__"][0]
    return jnp.stack(shares)


class Laboratory:
    """The data and the programs that all runs of a network share."""

    def __init__(self, run: Run, config: rj.TrainConfig) -> None:
        self.config, self.data = config, load_splits(config.data)[0]
        self.engine = Engine(config, self.data.class_names, self.data.image_shape)
        model, preprocessing = run.module(config), self.engine.preprocessing
        sgd = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)
        tx = optax.chain(gradient_norms(), sgd(0.0, momentum=config.optim.momentum))

        def draw(key: jax.Array, image: jax.Array) -> rj.TrainState:
            return rj.TrainState.create(model, tx, key, preprocessing(image))

        def shares(state: rj.TrainState, images: jax.Array) -> jax.Array:
            return shortcut_shares(model, state.variables, preprocessing(images), run.units)

        # One program for all seeds; optimising it gains nothing.
        self.draw = jax.jit(draw, compiler_options=compiler_options(optimization_level=1))
        self.shares = jax.jit(shares)


def carry_out(run: Run, lab: Laboratory) -> Row:
    config, data, engine = lab.config, lab.data, lab.engine
    sampler = EpochSampler(len(data.train), config.batch_size, run.seed)
    total = sampler.steps(config.epochs)
    schedule = make_schedule(replace(config.optim, learning_rate=run.rate), total)
    looks = set(np.linspace(0, total - 1, LOOKS).round().astype(int).tolist())
    # The same keys as those of `resnet-jax train --seed`.
    params_key, augment_key = jax.random.split(jax.random.key(run.seed))
    state = lab.draw(params_key, data.train.images[:1])
    gradients, shares, evaluations, metrics = [], [], [], []
    for step in range(total):
        batch = rj.Batch(*data.train.batch(sampler.batch(step)))
        if step in looks and run.residual:
            shares.append(lab.shares(state, batch.images))
        rate = {"learning_rate": np.float32(schedule(step))}
        state = state.replace(opt_state=optax.tree_utils.tree_set(state.opt_state, **rate))
        state, measured = engine.train(state, augment_key, batch)
        metrics.append(measured)
        if step in looks:
            # Read now, because the next step takes over the buffers.
            flat = traverse_util.flatten_dict(jax.device_get(state.opt_state[0]))
            gradients.append([float(flat[*path, "kernel"]) for path in run.kernels])
        if (step + 1) % (config.eval_every or total) == 0 or step + 1 == total:
            found = engine.evaluate(state, data.validation)
            evaluations.append((step + 1, found.loss, found.accuracy))
    tested = engine.evaluate(state, data.test)
    metrics, shares = jax.device_get((metrics, shares))
    result: dict[str, Any] = {
        "test": {"loss": tested.loss, "accuracy": tested.accuracy},
        "train": _thinned(metrics),
        "validation": dict(zip(CURVE, map(list, zip(*evaluations, strict=True)), strict=True)),
        "gradient": {"step": sorted(looks), "norm": gradients},
        "first_bad_step": int(state.first_bad_step),
    }
    if shares:
        result["shortcut"] = {"step": sorted(looks), "share": [s.tolist() for s in shares]}
    if run.without_units:
        few = data.test.take(slice(REMOVAL_IMAGES))
        result["removal"] = {"whole": engine.evaluate(state, few).accuracy, "without": []}
        for unit in run.units:
            accuracy = None  # a plain unit that changes the shape cannot be left out
            if run.residual or keeps_shape(unit):
                left = state.replace(**without(state.variables, unit, run.residual))
                accuracy = engine.evaluate(left, few).accuracy
            result["removal"]["without"].append(accuracy)
    return rounded(result)


def _thinned(metrics: list[Any]) -> dict[str, list[float]]:
    windows = np.array_split(np.arange(len(metrics)), min(POINTS, len(metrics)))
    return {
        "step": [int(window[-1]) + 1 for window in windows],
        "loss": [float(np.mean([metrics[i].loss for i in w])) for w in windows],
        "accuracy": [float(np.mean([metrics[i].accuracy for i in w])) for w in windows],
    }


def rounded(value: Any) -> Any:
    """Round numbers to four significant digits, to keep the files small; None if not finite."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value


def main(arguments: list[str] | None = None) -> None:
    options = units.parsed(__doc__, study.RESULTS, arguments)
    settings = study.QUICK_SETTINGS if options.quick else study.SETTINGS

    # Keep the programs of one network in memory, whatever the learning rate and seed of its runs.
    @lru_cache(maxsize=1)
    def laboratory(any_of_its_runs: Run) -> Laboratory:
        return Laboratory(any_of_its_runs, settings[any_of_its_runs.setting])

    def work(run: Run, _: Path) -> Row:
        return carry_out(run, laboratory(replace(run, rate=0.0, seed=0)))

    with configured_jax(settings["book"]):
        units.carry_out(study.runs(options.quick), options, work)


if __name__ == "__main__":
    main()
