"""Refuse a configuration that does not fit its images or devices, before anything is trained."""

from resnet_jax.config import TrainConfig
from resnet_jax.errors import ResNetJaxError
from resnet_jax.models import make_model


def check_against_dataset(
    config: TrainConfig,
    *,
    num_train: int,
    num_validation: int,
    image_shape: tuple[int, ...],
    num_devices: int = 1,
) -> None:
    """Refuse a configuration that does not fit images of ``(H, W, C)`` as they are read."""
    height, width, channels = image_shape
    data, smallest, size = config.data, min(height, width), f"{height}x{width} pixels"
    for name in ("mean", "std"):
        if len(getattr(data, name) or (0,)) not in (1, channels):
            raise ResNetJaxError(
                f"--data.{name} has {len(getattr(data, name))} numbers for images of {channels} "
                "channels: give one, or one for each channel"
            )
    if config.augment.crop >= smallest:
        raise ResNetJaxError(
            f"--augment.crop must be below {smallest} for images of {size}, got "
            f"{config.augment.crop}"
        )
    if data.center_crop and (data.image_size or 0) > smallest:
        raise ResNetJaxError(
            f"--data.center-crop cannot crop --data.image-size {data.image_size} from images of "
            f"{size}: give a larger --data.read-size, or --data.no-center-crop"
        )
    if config.data.find_digit and image_shape != (28, 28, 1):
        raise ResNetJaxError(
            f"--data.find-digit is for grey images of 28x28 pixels, not {size}, {channels} "
            "channels: give --data.no-find-digit"
        )
    if config.epochs * num_train / config.batch_size >= 2**31:
        raise ResNetJaxError(
            f"--epochs {config.epochs:g} of {num_train} images in batches of {config.batch_size} "
            "are more than 2^31 steps: give fewer"
        )
    for option in ("patience", "target"):
        if getattr(config, option) is not None and not num_validation:
            raise ResNetJaxError(
                f"--{option} {getattr(config, option)} needs validation images and there are none: "
                f"give --data.validation or --data.subset some, or leave --{option} out"
            )
    _check_batch(config, data.image_size or max(height, width), num_devices)


def _check_batch(config: TrainConfig, side: int, num_devices: int) -> None:
    """Refuse a batch that cannot be split, or that gives batch norm nothing to normalise."""
    step = num_devices * config.accumulate
    if config.batch_size % step:
        below = config.batch_size // step * step
        nearest = " or ".join(str(n) for n in (below, below + step) if n)
        devices = f"{num_devices} devices" if num_devices > 1 else "one device"
        parts = f" in {config.accumulate} parts (--accumulate)" if config.accumulate > 1 else ""
        raise ResNetJaxError(
            f"--batch-size {config.batch_size} cannot be split over {devices}{parts}: "
            f"give {nearest}"
        )
    network = make_model(config, 1)
    stages = len(network.stage_sizes)
    halvings = stages - 1 + 2 * (network.stem in ("imagenet", "deep"))
    trains_last_stage = (config.model.frozen_stages or 0) < stages
    if config.batch_size == config.accumulate and side <= 2**halvings and trains_last_stage:
        raise ResNetJaxError(
            f"--batch-size {config.batch_size} gives batch norm one value for each channel, since "
            f"the last maps of images of {side}x{side} are 1x1: give at least "
            f"{2 * config.accumulate}, or a larger --data.image-size"
        )
