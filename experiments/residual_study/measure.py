"""One network's compiled programs, and a run with them.

Learning rate, momentum and seed are arguments of the programs and no constants in them, so that a
network is compiled once for all its runs. The steps are the package's own.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import resnet_jax as rj
from experiments.residual_study.study import Network, Run, keeps_shape
from resnet_jax.data.augment import preprocess
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import Unit
from resnet_jax.training.optim import make_schedule
from resnet_jax.training.steps import Counts

EVALUATED_AT_ONCE = 200
REMOVAL_IMAGES = 1000
LOOKS = 6  # how often a run is looked into: gradients and shortcuts
POINTS = 20  # of a curve


def gradient_norms() -> optax.GradientTransformation:
    """Passes the gradient on, and remembers the Euclidean norm of each parameter's."""

    def norms(tree: Any) -> Any:
        return jax.tree.map(jnp.linalg.norm, jax.tree.map(jnp.ravel, tree))

    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda _: jnp.zeros(()), params),
        lambda updates, state, params=None: (updates, norms(updates)),
    )


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
    _, found = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
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
    """The programs of one network, jitted: initialisation, step, evaluation and a look inside."""

    def __init__(self, network: Network, config: rj.TrainConfig) -> None:
        self.network, data = network, config.data
        self.model = network.module(config)
        self.normalise = partial(
            preprocess,
            image_size=data.image_size,
            mean=jnp.asarray(data.mean),
            std=jnp.asarray(data.std),
        )
        self.tx = optax.chain(
            gradient_norms(),
            optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float32)(
                learning_rate=0.0, momentum=0.0
            ),
        )
        # Drawn once a run; optimising it gains nothing.
        fast = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
        self._start = jax.jit(partial(self._initial_state, data.image_size), compiler_options=fast)
        self.step = jax.jit(self._step, donate_argnums=0)
        self._evaluate = jax.jit(self._evaluate_batch)
        self.shares = jax.jit(self._shares)

    def start(self, seed: int) -> rj.TrainState:
        """The parameters that `resnet-jax train --seed` begins with."""
        return self._start(jax.random.split(jax.random.key(seed))[0])

    def evaluate(
        self, state: rj.TrainState, examples: rj.Batch, removed: int | None = None
    ) -> tuple[float, float]:
        """Mean loss and accuracy in evaluation mode, without the unit of number ``removed``."""
        kept = np.ones(len(self.network.units), np.float32)
        if removed is not None:
            kept[removed] = 0
        count, size = len(examples.labels), EVALUATED_AT_ONCE
        parts = []
        for start in range(0, count, size):
            images, labels = (np.asarray(a[start : start + size]) for a in examples)
            padding = size - len(labels)
            images = np.pad(images, ((0, padding), *((0, 0),) * 3))
            labels = np.pad(labels, (0, padding), constant_values=-1)
            parts.append(self._evaluate(state, kept, images, labels))
        parts = jax.device_get(parts)
        correct = sum(int(np.trace(part.confusion)) for part in parts)
        return sum(float(part.loss) for part in parts) / count, correct / count

    def _initial_state(self, size: int, key: jax.Array) -> rj.TrainState:
        # What `rj.TrainState.create` does, but compiled once for all seeds.
        variables = self.model.init(key, jnp.zeros((1, size, size, 1)), train=False)
        return rj.TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self.tx.init(variables["params"]),
            ema=None,
            first_bad_step=jnp.full((), -1, jnp.int32),
            apply_fn=self.model.apply,
            tx=self.tx,
        )

    def _step(
        self,
        state: rj.TrainState,
        images: jax.Array,
        labels: jax.Array,
        rate: jax.Array,
        momentum: jax.Array,
    ) -> Any:
        norms, sgd = state.opt_state
        settings = {"learning_rate": rate, "momentum": momentum}
        state = state.replace(opt_state=(norms, sgd._replace(hyperparams=settings)))
        return rj.train_step(state, rj.Batch(self.normalise(images), labels))

    def _evaluate_batch(
        self, state: rj.TrainState, kept: jax.Array, images: jax.Array, labels: jax.Array
    ) -> Counts:
        with nn.intercept_methods(without_units(kept, self.network.units)):
            return rj.eval_step(state, rj.Batch(self.normalise(images), labels))

    def _shares(self, state: rj.TrainState, images: jax.Array) -> jax.Array:
        variables = state.variables
        return shortcut_shares(self.model, variables, self.normalise(images), self.network.units)


def carry_out(run: Run, lab: Laboratory, data: Dataset) -> dict[str, Any]:
    """Trains and measures: the line of results, without the run's key."""
    began = time.perf_counter()
    config = run.config
    sampler = EpochSampler(len(data.train), config.batch_size, run.seed)
    total = sampler.steps(config.epochs)
    optim = rj.OptimConfig(
        learning_rate=run.rate, schedule=config.optim.schedule, warmup=config.optim.warmup
    )
    schedule = make_schedule(optim, total)
    momentum = np.float32(config.optim.momentum)
    validation = rj.Batch(data.validation.images, data.validation.labels)
    test = rj.Batch(data.test.images, data.test.labels)
    looks = set(np.linspace(0, total - 1, LOOKS).round().astype(int).tolist())

    state = lab.start(run.seed)
    gradients, shares, evaluations, metrics = [], [], [], []
    for step in range(total):
        batch = data.train.take(sampler.batch(step))
        if step in looks and run.network.residual:
            shares.append(lab.shares(state, batch.images))
        rate = np.float32(schedule(step))
        state, measured = lab.step(state, batch.images, batch.labels, rate, momentum)
        metrics.append(measured)
        if step in looks:
            # Read now: the next step takes the buffers over.
            norms = jax.device_get(state.opt_state[0])
            gradients.append([_kernel(norms, path) for path in run.network.kernels])
        if (step + 1) % (config.eval_every or total) == 0 or step + 1 == total:
            evaluations.append((step + 1, *lab.evaluate(state, validation)))
    loss, accuracy = lab.evaluate(state, test)
    metrics, shares = jax.device_get((metrics, shares))
    result: dict[str, Any] = {
        "test": {"loss": loss, "accuracy": accuracy},
        "train": _thinned(metrics),
        "validation": _columns(("step", "loss", "accuracy"), evaluations),
        "gradient": {"step": sorted(looks), "norm": gradients},
        "first_bad_step": int(state.first_bad_step),
    }
    if shares:
        result["shortcut"] = {"step": sorted(looks), "share": [s.tolist() for s in shares]}
    if run.removal:
        few = rj.Batch(test.images[:REMOVAL_IMAGES], test.labels[:REMOVAL_IMAGES])
        result["removal"] = {
            "whole": lab.evaluate(state, few)[1],
            "without": [
                # A plain unit that changes the shape cannot be left out.
                lab.evaluate(state, few, removed)[1]
                if run.network.residual or keeps_shape(unit)
                else None
                for removed, unit in enumerate(run.network.units)
            ],
        }
    result = rounded(result)
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def _kernel(tree: Any, path: tuple[str, ...]) -> float:
    for name in (*path, "kernel"):
        tree = tree[name]
    return float(tree)


def _thinned(metrics: list[Any]) -> dict[str, list[float]]:
    """Means over windows of equal length, by the last step of each."""
    windows = np.array_split(np.arange(len(metrics)), min(POINTS, len(metrics)))
    return {
        "step": [int(window[-1]) + 1 for window in windows],
        "loss": [float(np.mean([metrics[i].loss for i in w])) for w in windows],
        "accuracy": [float(np.mean([metrics[i].accuracy for i in w])) for w in windows],
    }


def _columns(names: tuple[str, ...], rows: list[tuple]) -> dict[str, list]:
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def rounded(value: Any) -> Any:
    """Four significant digits, to keep the files small; None for what is not finite."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value
