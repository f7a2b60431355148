"""The preprocessing of pictures for a network, as one value that runs and exported files share."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from resnet_jax.config import DataConfig, Fit
from resnet_jax.data.augment import preprocess
from resnet_jax.data.dataset import Split, array_of, read_batches, small_parts
from resnet_jax.errors import ResNetJaxError

STATISTICS_IMAGES = 10_000  # that give the mean and deviation of a larger training split


@dataclass(frozen=True)
class Preprocessing:
    """The conversion of pictures to the network's input.

    ``fit``, ``background`` and ``find_digit`` say how a picture was read as uint8 pixels of
    ``image_shape``; the call does the rest on the device, and may be made within `jax.jit`.

    >>> import numpy as np
    >>> grey = Preprocessing((28, 28, 1), image_size=32, mean=(0.5,), std=(0.5,))
    >>> grey(np.full((2, 28, 28, 1), 255, np.uint8)).shape
    (2, 32, 32, 1)
    """

    image_shape: tuple[int, int, int]  # (H, W, C) as pictures are read; `DataConfig` has the rest
    image_size: int | None = None
    center_crop: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    fit: Fit = "pad"
    background: int | None = None
    find_digit: bool = False

    @classmethod
    def of(cls, settings: DataConfig, image_shape: tuple[int, int, int]) -> Self:
        """Return the preprocessing of a configuration; a missing mean is 0, a missing std 1."""
        given = {field.name: getattr(settings, field.name) for field in fields(cls)[1:]}
        return cls(image_shape, **{name: v for name, v in given.items() if v is not None})

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input."""
        height, width, channels = self.image_shape
        return (self.image_size or height, self.image_size or width, channels)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Map ``uint8[N, H, W, C]`` images to the network's input, ``float32[N, h, w, C]``."""
        size, mean, std = self.image_size, jnp.asarray(self.mean), jnp.asarray(self.std)
        return preprocess(images, image_size=size, center_crop=self.center_crop, mean=mean, std=std)

    def checked(self, images: Any) -> Any:
        """Return images that fit, ``uint8[N, H, W, C]``; raise `ResNetJaxError` for others."""
        images = images if isinstance(images, jax.Array) else array_of(images)  # may be a tracer
        height, width, channels = self.image_shape
        free = self.image_size is not None and not self.center_crop
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == channels
        if not fits or not (free or images.shape[1:3] == (height, width)):
            raise ResNetJaxError(
                f"images are {images.dtype}{list(images.shape)}: this run predicts "
                f"uint8[N, {'H, W' if free else f'{height}, {width}'}, {channels}], or image[None]"
            )
        return images

    def uncrop(self, maps: ArrayLike) -> np.ndarray:
        """Return maps of the network's input, ``float[N, h, w]``, as maps of whole pictures.

        Without ``center_crop`` they are returned unchanged; with it, they are zero around the crop.
        """
        maps, size = np.asarray(maps), self.image_size
        if not self.center_crop or size is None:
            return maps
        enlarged = jax.image.resize(jnp.asarray(maps), (len(maps), size, size), "bilinear")
        margins = [((side - size) // 2, -((size - side) // 2)) for side in self.image_shape[:2]]
        return np.pad(np.asarray(enlarged), [(0, 0), *margins])

    def to_metadata(self) -> dict[str, Any]:
        """Return the description of the preprocessing for an exported file, as JSON values."""
        described = asdict(self)
        described |= {name: np.ravel(described[name]).tolist() for name in ("mean", "std")}
        images = "uint8[N, {}, {}, {}]".format(*self.image_shape)
        resize = {"images": images, "resize": described.pop("image_size"), "scale": 255}
        return {**resize, "filter": "bilinear", **described}  # antialiased as in Pillow


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Both are rounded to four decimals and come from at most 10,000 images, evenly spaced.
    """
    if len(split) > STATISTICS_IMAGES:
        split = split.take(np.linspace(0, len(split) - 1, STATISTICS_IMAGES).astype(int))
    # Counting the 256 levels is exact, and needs only a few images at a time.
    counts = np.zeros((split.image_shape[2], 256), int)
    for images, _ in read_batches(split, small_parts(split)):
        for channel, count in enumerate(counts):
            count += np.bincount(images[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    means = counts @ levels / counts.sum(1)
    stds = np.sqrt((counts * (levels - means[:, None]) ** 2).sum(1) / counts.sum(1))
    # A channel of one level has deviation 0; 1 does not magnify what augmentation adds to it.
    return tuple(np.round(means, 4).tolist()), tuple(s or 1.0 for s in np.round(stds, 4).tolist())
