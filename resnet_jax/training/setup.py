"""The data of a run, and a configuration that fits them and the devices."""

import hashlib

from resnet_jax.config import Effect, TrainConfig, options_with, replaced, settings
from resnet_jax.data.dataset import Dataset, Split, pixel_statistics
from resnet_jax.data.load import load_splits
from resnet_jax.errors import ResNetJaxError
from resnet_jax.training.distributed import assert_equal, main_process_first


def open_data(
    config: TrainConfig, recorded: TrainConfig | None, own: Dataset | None, num_devices: int
) -> tuple[TrainConfig, Dataset, dict[str, Split]]:
    """Open the dataset, and return the configuration with its name and its mean and deviation.

    Those are as given, else as ``recorded`` in the run's folder, else those of the images. A
    configuration that does not fit is refused, and so are other data or settings of a process.
    """
    if own is not None:
        config = replaced(config, {"data.name": own.name})
    data, splits = main_process_first(lambda: load_splits(config.data, own))
    given = config.data
    if None in (given.mean, given.std):
        known = recorded and (recorded.data.mean, recorded.data.std)
        mean, std = known or pixel_statistics(data.train)
        config = replaced(config, {"data.mean": given.mean or mean, "data.std": given.std or std})
    check_against_dataset(config, data, num_devices)
    local = options_with(Effect.LOCAL)
    shared = repr([(s.option, s.value) for s in settings(config) if s.option not in local])
    digest = hashlib.sha256(shared.encode()).hexdigest()
    assert_equal("data with fingerprint", data.fingerprint, "give all processes the same data")
    assert_equal("settings with digest", digest, "give all processes the same options")
    return config, data, splits


def check_against_dataset(config: TrainConfig, data: Dataset, num_devices: int = 1) -> None:
    """Refuse a configuration that does not fit its images as they are read, or the devices."""
    height, width, channels = data.image_shape
    smallest, size = min(height, width), f"{height}x{width} pixels"
    side = config.data.image_size or max(height, width)
    batch, parts = config.batch_size, config.accumulate
    step = num_devices * parts
    nearest = [str(n) for n in (batch // step * step, batch // step * step + step) if n]
    devices = f"{num_devices} devices" if num_devices > 1 else "one device"
    in_parts = f" in {parts} parts (--accumulate)" if parts > 1 else ""
    last_map_is_1x1 = side <= 2 ** (5 if config.model.stem == "imagenet" else 3)
    refusals = [
        (
            len(getattr(config.data, name) or (0,)) not in (1, channels),
            f"--data.{name} has {len(getattr(config.data, name) or ())} numbers for images of "
            f"{channels} channels: give one, or one for each channel",
        )
        for name in ("mean", "std")
    ]
    refusals += [
        (
            getattr(config, option) is not None and not len(data.validation),
            f"--{option} {getattr(config, option)} needs validation images and there are none: "
            f"give --data.validation or --data.subset some, or leave --{option} out",
        )
        for option in ("patience", "target")
    ]
    refusals += [
        (
            config.augment.crop >= smallest,
            f"--augment.crop must be below {smallest} for images of {size}, got "
            f"{config.augment.crop}",
        ),
        (
            config.data.center_crop and side > smallest,
            f"--data.center-crop cannot crop --data.image-size {side} from images of {size}: give "
            "a larger --data.read-size, or --data.no-center-crop",
        ),
        (
            config.data.find_digit and data.image_shape != (28, 28, 1),
            f"--data.find-digit is for grey images of 28x28 pixels, not {size}, {channels} "
            "channels: give --data.no-find-digit",
        ),
        (
            config.epochs * len(data.train) / batch >= 2**31,
            f"--epochs {config.epochs:g} of {len(data.train)} images in batches of {batch} are "
            "more than 2^31 steps: give fewer",
        ),
        (
            batch % step > 0,
            f"--batch-size {batch} cannot be split over {devices}{in_parts}: give "
            f"{' or '.join(nearest)}",
        ),
        (
            batch == parts and last_map_is_1x1 and (config.model.frozen_stages or 0) < 4,
            f"--batch-size {batch} gives batch norm one value for each channel, since the last "
            f"maps of images of {side}x{side} are 1x1: give at least {2 * parts}, or a larger "
            "--data.image-size",
        ),
    ]
    for refused, reason in refusals:
        if refused:
            raise ResNetJaxError(reason)
