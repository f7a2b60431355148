"""The compiled programs of a configuration: where jit, donation and the device mesh are applied."""

from collections.abc import Callable, Iterator
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
from resnet_jax.models import VARIANTS, ResNet
from resnet_jax.ops.memory import keep_freed_memory
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

        mesh = Mesh(np.asarray(jax.devices()), ("data",))
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
        self._evaluate = jax.jit(
            self._evaluate_batch, in_shardings=(everywhere, split, split), out_shardings=everywhere
        )
        self._predict = jax.jit(
            self._probabilities, in_shardings=(everywhere, split), out_shardings=split
        )

    def check_batch_size(self) -> None:
        """Refuses a batch that training cannot split evenly over the devices.

        Raises:
            ResNetJaxError: names the nearest sizes that it can.
        """
        size, above = self.config.batch_size, self.padded_size
        if size != above:
            devices = self.replicated.mesh.size
            nearest = " or ".join(str(n) for n in (above - devices, above) if n)
            raise ResNetJaxError(
                f"--batch-size {size} cannot be split over {devices} devices: give {nearest}"
            )

    def init(self) -> TrainState:
        """The state at step 0, drawn by the run's seed, on every device."""
        size = self.config.data.image_size
        shape = (1, size or self.image_shape[0], size or self.image_shape[1], self.image_shape[2])
        state = TrainState.create(
            self.model,
            self.tx,
            self._params_key,
            jnp.zeros(shape, self.model.dtype),
            ema=self.config.ema is not None,
        )
        return jax.device_put(state, self.replicated)

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
        return jax.device_put(state.replace(**merged, ema=ema), self.replicated)

    def put(self, split: AnySplit) -> Batch | StreamedSplit:
        """A whole split on every device, uint8 images and labels; a streamed one stays on disk."""
        if isinstance(split, StreamedSplit):
            return split
        images, labels = jax.device_put((split.images, split.labels), self.replicated)
        return Batch(images, labels)

    def read_ahead(
        self, split: StreamedSplit, indices_of: Callable[[int], np.ndarray], steps: range
    ) -> ReadAhead:
        """The batches of some steps of a streamed split, for `train`."""
        return ReadAhead(split, indices_of, steps, self.config.data.workers)

    def train(
        self, state: TrainState, examples: Batch | ReadAhead, indices: np.ndarray
    ) -> tuple[TrainState, Metrics]:
        """One step on the examples at ``indices``, int32[batch_size]; ``state`` is donated."""
        if isinstance(examples, ReadAhead):
            batch = jax.device_put(examples.take(indices), self.split_over_devices)
        else:
            batch = self._take(*examples, indices)
        # The key is an argument and no constant: runs of several seeds are one compiled program.
        return self._train(state, self._augment_key, *batch)

    def evaluate(self, state: TrainState, examples: Batch | StreamedSplit) -> Evaluation:
        """Evaluates every example of a split exactly once, the last batch padded."""
        count = len(examples) if isinstance(examples, StreamedSplit) else len(examples.labels)
        losses = []
        # Added up on the device: a thousand classes make four megabytes of counts a batch.
        confusion = jnp.zeros((len(self.class_names),) * 2, jnp.int32)
        top5 = jnp.zeros((), jnp.int32)
        for batch in self._padded(examples, count):
            counts = self._evaluate(state, *batch)
            losses.append(counts.loss)
            confusion, top5 = confusion + counts.confusion, top5 + counts.top5
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
                yield self._take(*examples, part)
            return
        real = [part[part >= 0] for part in parts]
        ahead = self.read_ahead(examples, real.__getitem__, range(len(real)))
        for part in real:
            images, labels = ahead.take(part)
            padding = [(0, size - len(part))]
            yield jax.device_put(
                (
                    np.pad(images, [*padding, (0, 0), (0, 0), (0, 0)]),
                    np.pad(labels, padding, constant_values=-1),
                ),
                self.split_over_devices,
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
        batch = Batch(*self._augmented(images, labels, key))
        smoothing = self.config.label_smoothing
        return train_step(state, batch, label_smoothing=smoothing, ema=self.config.ema)

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

    Memory that was freed stays mapped (`resnet_jax.ops.memory`). A compilation cache that the user
    has set up (``JAX_COMPILATION_CACHE_DIR``) stays theirs.
    """
    keep_freed_memory()
    jax.config.update("jax_default_matmul_precision", config.matmul_precision)
    if config.model.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.compilation_cache and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
        # Also the many small programs of a start: together they take longer than one large one.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
