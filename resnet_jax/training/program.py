"""The compiled programs of a configuration: where jit, donation and the device mesh are applied."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnet_jax.config import TrainConfig
from resnet_jax.data.augment import augment, mix, preprocess
from resnet_jax.data.cache import cache_root
from resnet_jax.data.dataset import AnySplit, StreamedSplit
from resnet_jax.data.streaming import ReadAhead
from resnet_jax.errors import ResNetJaxError
from resnet_jax.memory import keep_freed_memory, trim_after_compiling
from resnet_jax.models import VARIANTS, ResNet
from resnet_jax.ops.llvm import QUICK, llvm_level
from resnet_jax.training.evaluation import Evaluation
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.state import Batch, TrainState
from resnet_jax.training.steps import Counts, Metrics, eval_step, train_step


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
    device. One device is a mesh of one. Images stay on the devices as uint8; a step gets the
    indices of its examples and gathers, augments and normalises them there.

    Where the devices belong to several processes (`resnet_jax.training.hosts`), every process makes
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
        image_shape: tuple[int, ...],
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
        for name in ("mean", "std"):
            if len(getattr(config.data, name)) not in (1, image_shape[-1]):
                raise ResNetJaxError(
                    f"--data.{name} has {len(getattr(config.data, name))} numbers for images of "
                    f"{image_shape[-1]} channels: give one, or one for each channel"
                )

        least = min(image_shape[:2])
        if config.augment.crop >= least:
            raise ResNetJaxError(
                f"--augment.crop {config.augment.crop} makes no sense for images of "
                f"{image_shape[0]}x{image_shape[1]} pixels: give less than {least}"
            )
        if config.data.center_crop and (config.data.image_size or 0) > least:
            raise ResNetJaxError(
                f"--data.center-crop cannot cut --data.image-size {config.data.image_size} out of "
                f"images of {image_shape[0]}x{image_shape[1]} pixels: give a larger "
                "--data.read-size, or --data.no-center-crop"
            )

        # In the order of their processes, so that the rows of one process are together.
        ordered = sorted(devices or jax.local_devices(), key=lambda d: (d.process_index, d.id))
        mesh = Mesh(np.asarray(ordered), ("data",))
        # Without an update the batch is free: the next one that every device gets a part of.
        self.padded_size = -(-config.batch_size // mesh.size) * mesh.size
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split_over_devices = NamedSharding(mesh, PartitionSpec("data"))
        self._params_key, self._augment_key = jax.random.split(jax.random.key(config.seed))
        everywhere, split = self.replicated, self.split_over_devices
        self._train = jax.jit(
            self._train_on_batch,
            donate_argnums=0,
            in_shardings=(everywhere, everywhere, split, split),
            out_shardings=(everywhere, everywhere),
        )
        # Apart from the network, so that splits of several lengths share one compiled network, and
        # images in memory and on disk the same step.
        self._take = jax.jit(
            _take, in_shardings=(everywhere, everywhere, split), out_shardings=(split, split)
        )
        quick = llvm_level(QUICK)
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

    def check_batch_size(self) -> None:
        """Refuses a batch that training cannot split evenly over the devices, in each of its parts.

        Raises:
            ResNetJaxError: names the nearest sizes that it can.
        """
        size, accumulate = self.config.batch_size, self.config.accumulate
        devices = self.replicated.mesh.size
        below = size // (devices * accumulate) * devices * accumulate
        if size != below:
            nearest = " or ".join(str(n) for n in (below, below + devices * accumulate) if n)
            where = f"{devices} devices" if devices > 1 else "one device"
            parts = f" in {accumulate} parts (--accumulate)" if accumulate > 1 else ""
            raise ResNetJaxError(
                f"--batch-size {size} cannot be split over {where}{parts}: give {nearest}"
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

    def _state_by(self, make: Callable[..., TrainState]) -> TrainState:
        size = self.config.data.image_size
        shape = (1, size or self.image_shape[0], size or self.image_shape[1], self.image_shape[2])
        state = make(
            self.model.clone(lowering="reference"),  # quicker to trace, and never computed
            self.tx,
            self._params_key,
            jnp.zeros(shape, self.model.dtype),
            ema=self.config.ema is not None,
        )
        return state.replace(apply_fn=self.model.apply)

    def adopt(self, state: TrainState, variables: dict[str, Any]) -> TrainState:
        """A fresh state with pretrained variables; layers that they lack keep their own."""
        mine = {"params": state.params, "batch_stats": state.batch_stats}
        merged = {
            name: jax.tree.map(
                lambda a, b: jnp.asarray(b, a.dtype), part, {**part, **variables[name]}
            )
            for name, part in mine.items()
        }
        ema = None if state.ema is None else jax.tree.map(jnp.copy, merged)
        return self._everywhere(state.replace(**merged, ema=ema))

    def put(self, split: AnySplit) -> Batch | StreamedSplit:
        """A whole split on every device, uint8 images and labels; a streamed one stays on disk."""
        if isinstance(split, StreamedSplit):
            return split
        return Batch(*self._everywhere((split.images, split.labels)))

    def read_ahead(
        self, split: StreamedSplit, indices_of: Callable[[int], np.ndarray], steps: range
    ) -> ReadAhead:
        """This process's rows of the batches of some steps of a streamed split, for `train`."""
        mine = lambda step: self._own(indices_of(step))  # noqa: E731
        return ReadAhead(split, mine, steps, self.config.data.workers)

    def _own(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows of a whole batch, those of this process's devices."""
        parts = self.split_over_devices.addressable_devices_indices_map((len(rows),)).values()
        slices = [part[0] for part in parts if part is not None]
        return rows[min(s.start or 0 for s in slices) : max(s.stop or len(rows) for s in slices)]

    def _spread(self, own: np.ndarray) -> jax.Array:
        """A batch split over the devices, of which each process gives its own rows."""
        if self.split_over_devices.is_fully_addressable:
            return jax.device_put(own, self.split_over_devices)
        return jax.make_array_from_process_local_data(self.split_over_devices, own)

    def _everywhere(self, tree: Any) -> Any:
        """A tree on every device; every process gives the same values."""
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(
            lambda leaf: jax.make_array_from_process_local_data(self.replicated, np.asarray(leaf)),
            tree,
        )

    def is_asked_anywhere(self, asked: bool) -> jax.Array:
        """Whether any process says so, bool[]; not waited for."""
        own = np.full(len(self.split_over_devices.addressable_devices), asked)
        return self._any(self._spread(own))

    def train(
        self, state: TrainState, examples: Batch | ReadAhead, indices: np.ndarray
    ) -> tuple[TrainState, Metrics]:
        """One step on the examples at ``indices``, int32[batch_size]; ``state`` is donated."""
        if isinstance(examples, ReadAhead):
            batch = tuple(map(self._spread, examples.take(self._own(indices))))
        else:
            batch = self._take(*examples, self._spread(self._own(indices)))
        # The key is an argument and no constant: runs of several seeds are one compiled program.
        return self._train(state, self._augment_key, *batch)

    def evaluate(self, state: TrainState, examples: Batch | StreamedSplit) -> Evaluation:
        """Evaluates every example of a split exactly once, the last batch padded."""
        count = len(examples) if isinstance(examples, StreamedSplit) else len(examples.labels)
        losses, total = [], None
        for batch in self._padded(examples, count):
            counts = self._evaluate(state, *batch)
            losses.append(counts.loss)
            found = (counts.confusion, counts.top5)
            # Added up on the devices: a thousand classes make four megabytes of counts a batch.
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        confusion, top5 = total or (np.zeros((len(self.class_names),) * 2, np.int64), 0)
        return Evaluation(
            loss=sum(map(float, jax.device_get(losses))) / count if count else float("nan"),
            confusion=np.asarray(confusion, np.int64),
            class_names=self.class_names,
            correct5=int(top5),
        )

    def _padded(
        self, examples: Batch | StreamedSplit, count: int
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        """The examples in their order; what fills the last batch has the label -1."""
        size = self.padded_size
        indices = np.full(-(-count // size) * size, -1, np.int32)
        indices[:count] = np.arange(count)
        parts = indices.reshape(-1, size)
        if not isinstance(examples, StreamedSplit):
            for part in parts:
                yield self._take(*examples, self._spread(self._own(part)))
            return
        own = [self._own(part) for part in parts]
        real = [rows[rows >= 0] for rows in own]
        ahead = ReadAhead(examples, real.__getitem__, range(len(real)), self.config.data.workers)
        for rows, present in zip(own, real, strict=True):
            images, labels = ahead.take(present)
            padding = [(0, len(rows) - len(present))]
            yield (
                self._spread(np.pad(images, [*padding, (0, 0), (0, 0), (0, 0)])),
                self._spread(np.pad(labels, padding, constant_values=-1)),
            )

    def predict(self, state: TrainState, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32[N, K], of uint8[N, H, W, C] images; batches are padded."""
        size = self.padded_size
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.zeros((size, *images.shape[1:]), np.uint8)
            padded[: len(part)] = part
            parts.append(np.asarray(self._predict(state, padded))[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, len(self.class_names)), np.float32)

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
        data = self.config.data
        normalise = partial(preprocess, mean=jnp.asarray(data.mean), std=jnp.asarray(data.std))
        return normalise(images, image_size=data.image_size, center_crop=data.center_crop)


def _take(images: jax.Array, labels: jax.Array, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    # An index of -1 is padding: its label says so, and the image it gathers is not counted.
    return images[indices], jnp.where(indices < 0, -1, labels[indices])


def configure_jax(config: TrainConfig) -> None:
    """Process-wide settings that a run asks for; called before anything is compiled.

    Memory that a step frees stays mapped, what compiling frees does not (`resnet_jax.memory`). A
    compilation cache that the user has set up (``JAX_COMPILATION_CACHE_DIR``) stays theirs.
    """
    keep_freed_memory()
    trim_after_compiling()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        # Also the many small programs of a start: together they take longer than one large one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
