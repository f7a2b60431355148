"""A run before its first step: its data, folder, engine and state."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from resnet_jax.config import Effect, TrainConfig, options_with, replaced, settings
from resnet_jax.data.dataset import Dataset, Split, pixel_statistics
from resnet_jax.data.load import load_splits
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import ResNet, make_model
from resnet_jax.training.callbacks import Callback
from resnet_jax.training.checks import check_against_dataset
from resnet_jax.training.custom import Custom
from resnet_jax.training.distributed import (
    assert_equal,
    broadcast_from_main,
    is_main_process,
    main_process_first,
)
from resnet_jax.training.engine import Engine
from resnet_jax.training.history import History
from resnet_jax.training.jax_settings import find_devices
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.run_folder import DataFacts, RunFolder, events_log
from resnet_jax.training.state import Batch, TrainState
from resnet_jax.training.tensorboard import Events

# (model, class names, channels, key) -> the variables that a new run starts from, and a sentence.
Pretrained = Callable[[nn.Module, tuple[str, ...], int, jax.Array], tuple[dict[str, Any], str]]


class Prepared(NamedTuple):
    """A run that is ready to train from ``step`` on."""

    config: TrainConfig
    folder: RunFolder
    engine: Engine
    splits: dict[str, Split]
    batches: Iterator[Batch]  # of the training split, from `step` on
    schedule: optax.Schedule | None  # of the configuration's optimiser
    history: History
    callbacks: Sequence[Callback]
    augment_key: jax.Array
    state: TrainState
    step: int
    total_steps: int


@contextmanager
def prepared(
    config: TrainConfig,
    run_dir: Path,
    callbacks: Sequence[Callback],
    pretrained: Pretrained | None,
    custom: Custom,
) -> Iterator[Prepared]:
    """Begin a run, or open the one in ``run_dir`` to go on with it; its folder is locked."""
    folder, devices = RunFolder(run_dir), find_devices()
    config, data, splits = _open_data(config, folder, custom.data, len(devices))
    sampler = EpochSampler(len(data.train), config.batch_size, config.seed)
    total_steps = sampler.steps(config.epochs)
    schedule = None if custom.optimizer else make_schedule(config.optim, total_steps)
    params_key, augment_key = jax.random.split(jax.random.key(config.seed))
    model = custom.model or make_model(config, data.num_classes)
    tx = custom.optimizer or make_optimizer(config.optim, schedule, config.model.frozen_stages)
    # XLA's own convolution is quicker to trace, and here it is never computed.
    drawn = model.clone(lowering="reference") if isinstance(model, ResNet) else model
    create = partial(TrainState.create, drawn, tx, ema=config.ema is not None)
    images = _example(config, data)
    shapes = partial(jax.eval_shape, create, params_key, images)
    parts = custom.describe(shapes(), model, images, data.num_classes) if custom else {}
    facts = DataFacts.of(data, parts)
    if folder.exists:
        folder.check_same(config, facts)
    engine = Engine(config, data.class_names, data.image_shape, devices, custom.loss)
    names, channels = data.class_names, data.image_shape[2]
    read = partial(pretrained, model, names, channels, params_key) if pretrained else lambda: None
    # Read before anything is written, and not at all where a run goes on.
    initial = None if folder.checkpoints.steps() else read()
    with ExitStack() as stack:
        step = broadcast_from_main(lambda: _begin(folder, config, facts, stack))
        if step:
            state = folder.checkpoints.restore(engine.abstract(shapes()), step)
            # Not among what is saved: what is in a checkpoint was finite.
            state = state.replace(first_bad_step=engine.replicate(jnp.full((), -1, jnp.int32)))
        else:
            initial = initial or read()
            state = create(params_key, images).starting_from(initial and initial[0])
            state = engine.replicate(state)
        rows = broadcast_from_main(lambda: folder.rewind_metrics(step))
        if not is_main_process():
            callbacks = ()
        elif config.tensorboard:
            events = Events(folder.path / "tensorboard", rows)
            callbacks = (*callbacks, stack.enter_context(closing(events)))
        if initial:
            events_log.info(initial[1])
            for callback in callbacks:
                callback.log(initial[1])
        history = History(config, folder, rows, callbacks, len(data.train))
        order = map(sampler.batch, range(step, total_steps))
        batches = stack.enter_context(closing(engine.batches(data.train, order)))
        yield Prepared(
            config, folder, engine, splits, batches, schedule, history, callbacks,
            augment_key, state.replace(apply_fn=model.apply), step, total_steps,
        )  # fmt: skip


def _open_data(
    config: TrainConfig, folder: RunFolder, data: Dataset | None, num_devices: int
) -> tuple[TrainConfig, Dataset, dict[str, Split]]:
    """Open the dataset, and refuse a configuration that does not fit it or the devices."""
    if data is not None:
        config = replaced(config, {"data.name": data.name})
    data, splits = main_process_first(lambda: load_splits(config.data, data))
    config = _with_statistics(config, folder, data.train)
    check_against_dataset(
        config,
        num_train=len(data.train),
        num_validation=len(data.validation),
        image_shape=data.image_shape,
        num_devices=num_devices,
    )
    local = options_with(Effect.LOCAL)
    shared = repr([(s.option, s.value) for s in settings(config) if s.option not in local])
    digest = hashlib.sha256(shared.encode()).hexdigest()
    assert_equal("data with fingerprint", data.fingerprint, "give all processes the same data")
    assert_equal("settings with digest", digest, "give all processes the same options")
    return config, data, splits


def _with_statistics(config: TrainConfig, folder: RunFolder, train: Split) -> TrainConfig:
    """Return the configuration with a mean and a std: as given, the run's, or the images' own."""
    given = (config.data.mean, config.data.std)
    if None not in given:
        return config
    if folder.exists:
        recorded = folder.read_config()[0].data
        known = (recorded.mean, recorded.std)
    else:
        known = pixel_statistics(train)
    mean, std = (new if old is None else old for old, new in zip(given, known, strict=True))
    return replaced(config, {"data.mean": mean, "data.std": std})


def _begin(folder: RunFolder, config: TrainConfig, facts: DataFacts, stack: ExitStack) -> int:
    """Lock the folder, record the configuration in it and return the step to resume from, or 0."""
    stack.enter_context(folder.opened_for_writing())
    # A run may go on with other settings of the kind that changes nothing learnt.
    if not folder.exists or folder.read_config()[0] != config:
        folder.write_config(config, facts)
    return next(folder.checkpoints.good_steps(), 0)


def _example(config: TrainConfig, data: Dataset) -> jax.Array:
    """Return an image as the network takes it; only its shape and type matter."""
    height, width, channels = data.image_shape
    size = config.data.image_size
    return jnp.zeros((1, size or height, size or width, channels), config.model.dtype)
