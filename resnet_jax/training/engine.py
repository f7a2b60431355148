"""The engine, where jit, donation and the device mesh are applied to training and evaluation."""

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.config import TrainConfig
from resnet_jax.data.augment import augment, mix
from resnet_jax.data.dataset import ArraySplit, Split, check_labels, read_batches
from resnet_jax.data.preprocessing import Preprocessing
from resnet_jax.data.sampler import padded_order
from resnet_jax.training.jax_settings import compiler_options, find_devices
from resnet_jax.training.metrics import Evaluation
from resnet_jax.training.state import Batch, TrainState
from resnet_jax.training.step import Counts, Loss, Metrics, eval_step, train_step

T = TypeVar("T")

# Images that a device evaluates at once: a batch for many devices, or one for which training
# accumulates gradients, may not fit in the memory of one.
MOST_PER_DEVICE = 256


class Engine:
    """Trains, evaluates and predicts with programs that are jitted over a mesh of devices.

    The mesh has one axis, ``data``: a batch is split over it, everything else is replicated. A
    single device is a mesh of one. Images come as uint8; they are augmented and normalised on the
    devices.

    With several processes (`resnet_jax.training.distributed`) every process makes the same calls
    with the same arguments, but reads or gathers only the rows of its own devices. ``devices``
    defaults to the devices of this process.
    """

    def __init__(
        self,
        config: TrainConfig,
        class_names: tuple[str, ...],
        image_shape: tuple[int, int, int],
        devices: Sequence[jax.Device] | None = None,
        loss: Loss | None = None,
    ) -> None:
        self.config, self.class_names, self.loss = config, class_names, loss
        self.preprocessing = Preprocessing.of(config.data, image_shape)
        # Sorted by process, so that the rows of one process are contiguous.
        ordered = sorted(devices or find_devices(local=True), key=lambda d: (d.process_index, d.id))
        mesh = jax.sharding.Mesh(np.asarray(ordered), ("data",))
        self._share_threads = mesh.size > 1 and ordered[0].platform == "cpu"
        whole = self.replicated = jax.NamedSharding(mesh, jax.P())
        rows = self.sharded = jax.NamedSharding(mesh, jax.P("data"))

        def program(function: Any, inputs: Any, outputs: Any, **options: Any) -> Any:
            return jax.jit(function, in_shardings=inputs, out_shardings=outputs, **options)

        quick = compiler_options(optimization_level=1)
        self._train = program(self._train_on_batch, (whole, whole, rows), whole, donate_argnums=0)
        self._evaluate = program(self._count, (whole, rows), whole, compiler_options=quick)
        self._predict = program(self._probabilities, (whole, rows), rows, compiler_options=quick)
        self._any = program(jnp.any, rows, whole)
        self._compiled: Future[Any] | None = None

    def train(self, state: TrainState, key: jax.Array, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step on a batch; ``state`` is donated, ``key`` is the run's augmentation key."""
        # The key is an argument, not a constant, so that runs of all seeds share one program.
        step = self._compiled.result() if self._compiled else self._train
        return self._wait_if_shared(step(state, key, batch))

    def compile_ahead(self, pool: Executor, state: TrainState, key: jax.Array) -> None:
        """Start to compile the step in ``pool``, for batches as `batches` yields them."""
        rows: Any = partial(jax.ShapeDtypeStruct, sharding=self.sharded)
        size, shape = self.config.batch_size, self.preprocessing.image_shape
        batch = Batch(rows((size, *shape), np.uint8), rows((size,), np.int32))
        lowered = self._train.lower(self.abstract(state), key, batch)
        self._compiled = pool.submit(lowered.compile)

    def abstract(self, tree: Any) -> Any:
        """Return the shapes and types of a tree, with the sharding of arrays on every device."""
        everywhere = partial(jax.ShapeDtypeStruct, sharding=self.replicated)
        return jax.tree.map(lambda leaf: everywhere(leaf.shape, leaf.dtype), tree)

    def evaluate(self, state: TrainState, split: Split) -> Evaluation:
        """Evaluate every example of a non-empty split exactly once."""
        losses, total = [], None
        for batch in self.batches(split, self._in_batches(len(split))):
            counts = self._wait_if_shared(self._evaluate(state, batch))
            losses.append(counts.loss)
            found = (counts.confusion, counts.top5)
            # Summed on the devices: a thousand classes make four megabytes of counts per batch.
            total = jax.tree.map(jnp.add, total, found) if total else found
        assert total is not None
        confusion, top5 = total
        loss = sum(map(float, jax.device_get(losses))) / len(split)
        return Evaluation(loss, np.asarray(confusion, np.int64), self.class_names, int(top5))

    def predict(self, state: TrainState, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32[N, K], of images uint8[N, H, W, C]."""
        split = ArraySplit(images, np.zeros(len(images), np.int32))
        batches = self.batches(split, self._in_batches(len(images)))
        found = [np.asarray(self._predict(state, batch.images)) for batch in batches]
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *found])[: len(images)]

    def batches(self, split: Split, order: Iterable[np.ndarray]) -> Generator[Batch, None, None]:
        """Yield the batch of each array of indices in ``order``, read ahead and put on devices."""
        own = map(self.local_rows, order)
        for images, labels in read_batches(split, own, self.config.data.workers):
            check_labels(labels, len(self.class_names))
            yield Batch(self.shard_batch(images), self.shard_batch(labels))

    def local_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a whole batch that belong to this process's devices."""
        parts = self.sharded.addressable_devices_indices_map((len(rows),)).values()
        slices = [part[0] for part in parts if part is not None]
        return rows[min(s.start or 0 for s in slices) : max(s.stop or len(rows) for s in slices)]

    def shard_batch(self, rows: np.ndarray) -> jax.Array:
        """Split a batch over the devices; each process passes its `local_rows`."""
        return self._wait_if_shared(jax.make_array_from_process_local_data(self.sharded, rows))

    def replicate(self, tree: Any) -> Any:
        """Put a tree on every device; every process passes the same values."""
        return self._wait_if_shared(jax.make_array_from_process_local_data(self.replicated, tree))

    def any_process(self, flag: bool) -> jax.Array:
        """Return whether any process passed True, as a bool[]; do not wait for it."""
        return self._any(self.shard_batch(np.full(len(self.sharded.addressable_devices), flag)))

    def _in_batches(self, count: int) -> np.ndarray:
        """Return `padded_order` in batches as in training, or smaller for few rows or devices."""
        # Few examples do not need a whole batch; powers of two keep the programs to compile few.
        few, devices = 1 << (count - 1).bit_length(), self.replicated.mesh.size
        size = min(self.config.batch_size, few, MOST_PER_DEVICE * devices)
        return padded_order(count, -(-size // devices) * devices)

    def _wait_if_shared(self, arrays: T) -> T:
        """Wait for arrays if the devices share threads, as those of a CPU do.

        Without this, the collectives of two programs at once, or of one whose input is still on its
        way, could hold all threads while each waits for another device.
        """
        return jax.block_until_ready(arrays) if self._share_threads else arrays

    def _train_on_batch(
        self, state: TrainState, key: jax.Array, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        settings = asdict(self.config.augment)
        mixing = {name: settings.pop(name) for name in ("mixup", "cutmix")}
        key = jax.random.fold_in(key, state.step)
        size, classes = self.config.data.image_size, len(self.class_names)
        pixels = augment(batch.images.astype(jnp.float32), key, image_size=size, **settings)
        pixels = self.preprocessing(pixels)
        inputs, targets = mix(pixels, batch.labels, key, num_classes=classes, **mixing)
        return train_step(
            state,
            Batch(inputs, targets),
            key=jax.random.fold_in(key, 8),  # `augment` and `mix` use 1 to 7
            label_smoothing=self.config.label_smoothing,
            ema=self.config.ema,
            accumulate=self.config.accumulate,
            loss=self.loss,
        )

    def _count(self, state: TrainState, batch: Batch) -> Counts:
        return eval_step(state, Batch(self.preprocessing(batch.images), batch.labels))

    def _probabilities(self, state: TrainState, images: jax.Array) -> jax.Array:
        logits = state.apply_fn(state.variables, self.preprocessing(images), train=False)
        # A custom network may return logits in bfloat16.
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jax.nn.softmax(logits).astype(jnp.float32)
