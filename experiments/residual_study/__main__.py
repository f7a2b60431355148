"""What does the shortcut do, with depth, learning rate and batch norm varied?

Command:   python -m experiments.residual_study     (all 248 runs, three hours; --quick, --list)
Needs:     the full MNIST prepared ($TFDS_DATA_DIR, or `resnet-jax data prepare mnist`)
Result:    results.jsonl, a line for each finished run; README.md and results.ipynb tell the rest

Learning rate, momentum and seed are arguments of the programs and no constants in them, so that a
network is compiled once for all its runs. The steps are the package's own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util

import resnet_jax as rj
from experiments import units
from experiments.measuring import Row
from experiments.residual_study import study
from experiments.residual_study.study import Run, keeps_shape
from resnet_jax.data.augment import preprocess
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import Unit
from resnet_jax.training.jax_settings import compiler_options, configured_jax
from resnet_jax.training.optim import make_schedule
from resnet_jax.training.step import Counts

EVALUATED_AT_ONCE = 100  # divides the size of every split
REMOVAL_IMAGES = 1000
CURVE = ("step", "loss", "accuracy")
LOOKS = 6  # how often a run is looked into: gradients and shortcuts
POINTS = 20  # of a curve


def gradient_norms() -> optax.GradientTransformation:
    """Passes the gradient on, and remembers the Euclidean norm of each parameter's."""
    norms = partial(jax.tree.map, lambda leaf: jnp.linalg.norm(jnp.ravel(leaf)))
    return optax.GradientTransformation(norms, lambda updates, *_: (updates, norms(updates)))


def without_units(kept: jax.Array, units: list[str]) -> Callable[..., Any]:
    """An interceptor that takes units out of a network: those where ``kept`` (float[U]) is 0.

    A residual unit loses its branch and keeps its shortcut, as in arXiv 1605.06431. A plain unit
    is skipped; one that changes the shape cannot be, and stays.
    """

    def intercept(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return output
        if isinstance(module, Unit) and not module.residual and output.shape == args[0].shape:
            return jnp.where(kept[units.index(module.name)] > 0, output, args[0])
        # The norm that ends the branch.
        if module.name == "norm2" and isinstance(module.parent, Unit) and module.parent.residual:
            return kept[units.index(module.parent.name)] * output
        return output

    return intercept


def shortcut_shares(model: rj.ResNet, variables: Any, images: jax.Array, units: list[str]) -> Any:
    """For each unit, what its shortcut contributes to the sum: float32[U].

    The energies (mean squares over a batch, in training mode) of shortcut and branch, as
    ``shortcut / (shortcut + branch)``: the share of the sum where the two are uncorrelated.
    """
    settings = {"mutable": ["batch_stats", "intermediates"], "capture_intermediates": True}
    _, found = model.apply(variables, images, train=True, **settings)
    inside = found["intermediates"]
    # The stem's pooling is no module of its own: its output is the stem's.
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
    """The programs of a run's network, jitted: initialisation, step, evaluation, a look inside."""

    def __init__(self, run: Run, config: rj.TrainConfig) -> None:
        data, side, units = config.data, config.data.image_size, run.units
        model = run.module(config)
        mean, std = jnp.asarray(data.mean), jnp.asarray(data.std)
        normalise = partial(preprocess, image_size=side, mean=mean, std=std)
        sgd = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)
        tx = optax.chain(gradient_norms(), sgd(learning_rate=0.0, momentum=0.0))

        def draw(key: jax.Array) -> rj.TrainState:
            variables = model.init(key, jnp.zeros((1, side, side, 1)), train=False)
            state = rj.TrainState.of_variables(model, variables)
            return state.replace(tx=tx, opt_state=tx.init(state.params))

        def step(state: rj.TrainState, batch: rj.Batch, rate: jax.Array, momentum: jax.Array):
            settings = {"learning_rate": rate, "momentum": momentum}
            state = state.replace(opt_state=optax.tree_utils.tree_set(state.opt_state, **settings))
            return rj.train_step(state, rj.Batch(normalise(batch.images), batch.labels))

        def count(state: rj.TrainState, kept: jax.Array, batch: rj.Batch) -> Counts:
            with nn.intercept_methods(without_units(kept, units)):
                return rj.eval_step(state, rj.Batch(normalise(batch.images), batch.labels))

        def shares(state: rj.TrainState, images: jax.Array) -> jax.Array:
            return shortcut_shares(model, state.variables, normalise(images), units)

        self.config, self.units = config, units
        # One program for all seeds; optimising it gains nothing.
        self.draw = jax.jit(draw, compiler_options=compiler_options(optimization_level=1))
        self.step = jax.jit(step, donate_argnums=0)
        self.count = jax.jit(count)
        self.shares = jax.jit(shares)

    def start(self, seed: int) -> rj.TrainState:
        """The parameters that `resnet-jax train --seed` begins with."""
        return self.draw(jax.random.split(jax.random.key(seed))[0])

    def evaluate(self, state: rj.TrainState, examples: rj.Batch, removed: int | None = None):
        """Mean loss and accuracy in evaluation mode, without the unit of number ``removed``."""
        kept = (np.arange(len(self.units)) != removed).astype(np.float32)
        total = len(examples.labels)
        assert total % EVALUATED_AT_ONCE == 0
        parts = (np.split(np.asarray(a), total // EVALUATED_AT_ONCE) for a in examples)
        batches = map(rj.Batch, *parts)
        counts = jax.device_get([self.count(state, kept, batch) for batch in batches])
        correct = sum(int(np.trace(part.confusion)) for part in counts)
        return sum(float(part.loss) for part in counts) / total, correct / total


def carry_out(run: Run, lab: Laboratory, data: Dataset) -> Row:
    config = lab.config
    sampler = EpochSampler(len(data.train), config.batch_size, run.seed)
    total = sampler.steps(config.epochs)
    optim = replace(config.optim, learning_rate=run.rate)
    schedule = make_schedule(optim, total)
    momentum = np.float32(config.optim.momentum)
    validation = rj.Batch(data.validation.images, data.validation.labels)
    test = rj.Batch(data.test.images, data.test.labels)
    looks = set(np.linspace(0, total - 1, LOOKS).round().astype(int).tolist())

    state = lab.start(run.seed)
    gradients, shares, evaluations, metrics = [], [], [], []
    for step in range(total):
        batch = rj.Batch(*data.train.batch(sampler.batch(step)))
        if step in looks and run.residual:
            shares.append(lab.shares(state, batch.images))
        rate = np.float32(schedule(step))
        state, measured = lab.step(state, batch, rate, momentum)
        metrics.append(measured)
        if step in looks:
            # Read now: the next step takes the buffers over.
            flat = traverse_util.flatten_dict(jax.device_get(state.opt_state[0]))
            gradients.append([float(flat[*path, "kernel"]) for path in run.kernels])
        if (step + 1) % (config.eval_every or total) == 0 or step + 1 == total:
            evaluations.append((step + 1, *lab.evaluate(state, validation)))
    loss, accuracy = lab.evaluate(state, test)
    metrics, shares = jax.device_get((metrics, shares))
    result: dict[str, Any] = {
        "test": {"loss": loss, "accuracy": accuracy},
        "train": _thinned(metrics),
        "validation": dict(zip(CURVE, map(list, zip(*evaluations, strict=True)), strict=True)),
        "gradient": {"step": sorted(looks), "norm": gradients},
        "first_bad_step": int(state.first_bad_step),
    }
    if shares:
        result["shortcut"] = {"step": sorted(looks), "share": [s.tolist() for s in shares]}
    if run.without_units:
        few = rj.Batch(test.images[:REMOVAL_IMAGES], test.labels[:REMOVAL_IMAGES])
        # A plain unit that changes the shape cannot be left out.
        can = [run.residual or keeps_shape(unit) for unit in run.units]
        without = [lab.evaluate(state, few, n)[1] if ok else None for n, ok in enumerate(can)]
        result["removal"] = {"whole": lab.evaluate(state, few)[1], "without": without}
    return rounded(result)


def _thinned(metrics: list[Any]) -> dict[str, list[float]]:
    windows = np.array_split(np.arange(len(metrics)), min(POINTS, len(metrics)))
    return {
        "step": [int(window[-1]) + 1 for window in windows],
        "loss": [float(np.mean([metrics[i].loss for i in w])) for w in windows],
        "accuracy": [float(np.mean([metrics[i].accuracy for i in w])) for w in windows],
    }


def rounded(value: Any) -> Any:
    """Four significant digits, to keep the files small; None for what is not finite."""
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

    @cache
    def data(setting: str) -> Dataset:
        return load_splits(settings[setting].data)[0]

    # No more than one network's programs are in memory; its learning rate and seed do not count.
    @lru_cache(maxsize=1)
    def laboratory(any_of_its_runs: Run) -> Laboratory:
        return Laboratory(any_of_its_runs, settings[any_of_its_runs.setting])

    def work(run: Run, _: Path) -> Row:
        return carry_out(run, laboratory(replace(run, rate=0.0, seed=0)), data(run.setting))

    with configured_jax(settings["book"]):
        units.carry_out(study.runs(options.quick), options, work)


if __name__ == "__main__":
    main()
