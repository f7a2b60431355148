"""The compiled programs of a configuration: where jit, donation and the device mesh are applied."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.config import TrainConfig
from resnet_jax.data.augment import augment, mix
from resnet_jax.data.cache import cache_root
from resnet_jax.data.dataset import ArraySplit, Split
from resnet_jax.data.prefetch import padded_order, read_batches
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import VARIANTS, ResNet
from resnet_jax.training.compiler import compiler_options
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.state import Batch, TrainState
from resnet_jax.training.steps import Counts, Metrics, eval_step, train_step

T = TypeVar("T")

# JAX bounds its cache too, but then looks at every file of it each time that it adds one.
COMPILATION_CACHE_BYTES = 2 * 2**30


def make_model(config: TrainConfig, num_classes: int) -> ResNet:
    """The network that ``config.model`` describes."""
    settings = asdict(config.model)
    dtype = jnp.dtype(settings.pop("dtype"))
    return VARIANTS[settings.pop("name")](
        num_classes=num_classes,
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        **settings,
    )


class Program:
    """Training, evaluation and prediction for one configuration, jitted over a mesh of devices.

    The mesh has one axis, ``data``: the batch is split over it, everything else is on every
    device. One device is a mesh of one. A step takes uint8 images and augments and normalises them
    on the device.

    With several processes (`resnet_jax.training.distributed`) every process makes
    the same calls with the same arguments, and reads or gathers the rows of its own devices alone.

    Args:
        config: see the attributes.
        class_names: likewise.
        image_shape: likewise.
        total_steps: likewise.
        devices: of the mesh. Default: those of this process.

    Attributes:
        config: the run's settings.
        class_names: K names.
        image_shape: ``(H, W, C)`` of the images as they come from the data set.
        total_steps: updates in the whole run.
        schedule: learning rate by step.
    """

    def __init__(
        self,
        config: TrainConfig,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        total_steps: int,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.config = config
        self.class_names = class_names
        self.image_shape = image_shape
        self.total_steps = total_steps
        self.schedule = make_schedule(config.optim, total_steps)
        self.model = make_model(config, len(class_names))
        self.tx = make_optimizer(config.optim, self.schedule, config.model.frozen_stages)
        # In the order of their processes, so that the rows of one process are together.
        ordered = sorted(devices or find_devices(local=True), key=lambda d: (d.process_index, d.id))
        mesh = Mesh(np.asarray(ordered), ("data",))
        self._share_threads = mesh.size > 1 and ordered[0].platform == "cpu"
        # Without an update the batch is free: the next one that every device gets a part of.
        self.padded_size = -(-config.batch_size // mesh.size) * mesh.size
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split_over_devices = NamedSharding(mesh, PartitionSpec("data"))
        self.params_key, self._augment_key = jax.random.split(jax.random.key(config.seed))
        everywhere, split = self.replicated, self.split_over_devices
        self._train = jax.jit(
            self._train_on_batch,
            donate_argnums=0,
            in_shardings=(everywhere, everywhere, split, split),
            out_shardings=(everywhere, everywhere),
        )
        quick = compiler_options(optimization_level=1)
        self._evaluate = jax.jit(
            self._evaluate_batch,
            in_shardings=(everywhere, split, split),
            out_shardings=everywhere,
            compiler_options=quick,
        )
        self._any = jax.jit(jnp.any, in_shardings=split, out_shardings=everywhere)
        self._predict = jax.jit(
            self._probabilities,
            in_shardings=(everywhere, split),
            out_shardings=split,
            compiler_options=quick,
        )

    def init(self) -> TrainState:
        """The state at step 0, drawn by the run's seed, on every device."""
        return self._everywhere(self._state_by(TrainState.create))

    def template(self) -> TrainState:
        """What `init` gives, as shapes, types and shardings: to restore a checkpoint into."""
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.replicated),
            jax.eval_shape(lambda: self._state_by(TrainState.drawn)),
        )
        # Not among what is saved: what is in a checkpoint was finite.
        return state.replace(first_bad_step=self._everywhere(jnp.full((), -1, jnp.int32)))

    def for_inference(self, variables: dict[str, Any]) -> TrainState:
        """Return a state that evaluates and predicts with these variables, without an optimiser."""
        return self._everywhere(
            TrainState(
                step=jnp.zeros((), jnp.int32),
                **variables,
                opt_state=(),
                ema=None,
                first_bad_step=jnp.full((), -1, jnp.int32),
                apply_fn=self.model.apply,
                tx=self.tx,
            )
        )

    def _state_by(self, make: Callable[..., TrainState]) -> TrainState:
        size = self.config.data.image_size
        shape = (1, size or self.image_shape[0], size or self.image_shape[1], self.image_shape[2])
        state = make(
            self.model.clone(lowering="reference"),  # quicker to trace, and never computed
            self.tx,
            self.params_key,
            jnp.zeros(shape, self.model.dtype),
            ema=self.config.ema is not None,
        )
        return state.replace(apply_fn=self.model.apply)

    def adopt(self, state: TrainState, variables: dict[str, Any]) -> TrainState:
        """Return a fresh state with pretrained variables."""
        mine = {"params": state.params, "batch_stats": state.batch_stats}
        pretrained = jax.tree.map(lambda a, b: jnp.asarray(b, a.dtype), mine, dict(variables))
        ema = None if state.ema is None else jax.tree.map(jnp.copy, pretrained)
        return self._everywhere(state.replace(**pretrained, ema=ema))

    def _own(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows of a whole batch, those of this process's devices."""
        parts = self.split_over_devices.addressable_devices_indices_map((len(rows),)).values()
        slices = [part[0] for part in parts if part is not None]
        return rows[min(s.start or 0 for s in slices) : max(s.stop or len(rows) for s in slices)]

    def _spread(self, own: np.ndarray) -> jax.Array:
        """A batch split over the devices, of which each process gives its own rows."""
        if self.split_over_devices.is_fully_addressable:
            return self._in_turn(jax.device_put(own, self.split_over_devices))
        return jax.make_array_from_process_local_data(self.split_over_devices, own)

    def _in_turn(self, arrays: T) -> T:
        """Wait for arrays where devices share threads, as those of a CPU do.

        The collectives of two programs at once, or of one whose input is still on its way, could
        hold all threads while each waits for another device.
        """
        return jax.block_until_ready(arrays) if self._share_threads else arrays

    def _everywhere(self, tree: Any) -> Any:
        """A tree on every device; every process gives the same values."""
        if self.replicated.is_fully_addressable:
            return self._in_turn(jax.device_put(tree, self.replicated))
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self.replicated, np.asarray(leaf)),
            tree,
        )

    def is_asked_anywhere(self, asked: bool) -> jax.Array:
        """Whether any process says so, bool[]; not waited for."""
        own = np.full(len(self.split_over_devices.addressable_devices), asked)
        return self._any(self._spread(own))

    def batches(
        self, split: Split, order: Iterable[np.ndarray]
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yield batches of a split on the devices, read ahead: uint8[B, H, W, C] and int32[B].

        Args:
            split: the examples.
            order: the indices of each batch, int32[B]; see `resnet_jax.data.prefetch`.
        """
        own = map(self._own, order)
        for images, labels in read_batches(split, own, self.config.data.workers):
            yield self._spread(images), self._spread(labels)

    def train(
        self, state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Take one step on a batch; ``state`` is donated."""
        # The key is an argument and no constant: runs of several seeds are one compiled program.
        return self._in_turn(self._train(state, self._augment_key, images, labels))

    def evaluate(self, state: TrainState, split: Split) -> Evaluation:
        """Evaluate every example of a split exactly once."""
        losses, total = [], None
        for batch in self.batches(split, padded_order(len(split), self.padded_size)):
            counts = self._in_turn(self._evaluate(state, *batch))
            losses.append(counts.loss)
            found = (counts.confusion, counts.top5)
            # Added up on the devices: a thousand classes make four megabytes of counts a batch.
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        confusion, top5 = total or (np.zeros((len(self.class_names),) * 2, np.int64), 0)
        loss = sum(map(float, jax.device_get(losses)))
        return Evaluation(
            loss=loss / len(split) if len(split) else float("nan"),
            confusion=np.asarray(confusion, np.int64),
            class_names=self.class_names,
            correct5=int(top5),
        )

    def predict(self, state: TrainState, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32[N, K], of images uint8[N, H, W, C]."""
        devices = self.replicated.mesh.size
        # A few images are not worth a whole training batch, nor each number a program of its own.
        few = -(-(1 << (len(images) - 1).bit_length()) // devices) * devices
        size = min(self.padded_size, few)
        split = ArraySplit(images, np.zeros(len(images), np.int32))
        found = [
            np.asarray(self._predict(state, batch))
            for batch, _ in self.batches(split, padded_order(len(images), size))
        ]
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *found])[: len(images)]

    def _train_on_batch(
        self, state: TrainState, augment_key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(augment_key, state.step)
        return train_step(
            state,
            Batch(*self._augmented(images, labels, key)),
            label_smoothing=self.config.label_smoothing,
            ema=self.config.ema,
            accumulate=self.config.accumulate,
        )

    def _augmented(
        self, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The network's input and its targets; a target is a class, or shares of classes."""
        settings = asdict(self.config.augment)
        mixing = {name: settings.pop(name) for name in ("mixup", "cutmix")}
        size = self.config.data.image_size
        pixels = augment(images.astype(jnp.float32), key, image_size=size, **settings)
        classes = len(self.class_names)
        return mix(self.preprocess(pixels), labels, key, num_classes=classes, **mixing)

    def _evaluate_batch(self, state: TrainState, images: jax.Array, labels: jax.Array) -> Counts:
        return eval_step(state, Batch(self.preprocess(images), labels))

    def _probabilities(self, state: TrainState, images: jax.Array) -> jax.Array:
        logits = state.apply_fn(state.variables, self.preprocess(images), train=False)
        return jax.nn.softmax(logits).astype(jnp.float32)

    def preprocess(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Pixels in [0, 255] as the network takes them, ``float32[N, H, W, C]``."""
        return Preprocessing.of(self.config.data, self.image_shape)(images)


def find_devices(*, local: bool = False) -> list[jax.Device]:
    """Return the devices of all processes, or of this one; none is a `ResNetJaxError`."""
    try:
        return jax.local_devices() if local else jax.devices()
    except RuntimeError as error:  # the platform asked for has no device here, or no plugin
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ResNetJaxError(
            f"JAX finds no device ({reason}): set JAX_PLATFORMS to a platform of this machine, "
            "such as cpu, or unset it"
        ) from error


@contextmanager
def configured_jax(config: TrainConfig) -> Iterator[None]:
    """Apply the settings of JAX that a configuration asks for, in this thread and for a while.

    So what a run computes depends on its configuration alone, and what its user computes before
    and after does not depend on the run. A compilation cache that the user has set up
    (``JAX_COMPILATION_CACHE_DIR``) is used as it is.
    """
    own_cache = config.compilation_cache and not jax.config.values["jax_compilation_cache_dir"]
    folder = cache_root() / "compiled"
    cache = {
        "jax_compilation_cache_dir": str(folder),
        # Also the many small programs of a start: together they take longer than one large one.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: jax.config.values[name] for name in cache}
    with (
        jax.enable_x64(config.model.dtype == "float64"),
        jax.default_matmul_precision(config.matmul_precision),
    ):
        try:
            if own_cache:
                _remove_oldest(folder, COMPILATION_CACHE_BYTES)
                _configure(cache)
            yield
        finally:
            if own_cache:
                _configure(before)


def _configure(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    reset_cache()  # JAX reads the settings of its cache once


def _remove_oldest(folder: Path, limit: int) -> None:
    """Remove the oldest files of a folder until the others take at most ``limit`` bytes."""
    with suppress(OSError):  # another process removes them too, or none may be removed
        files = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in folder.iterdir()]
        excess = sum(size for _, size, _ in files) - limit
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            path.unlink()
            excess -= size
