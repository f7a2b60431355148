"""Predict the images of a split one by one, and measure what is right, wrong and overconfident."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from resnet_jax.data.dataset import check_labels, read_batches
from resnet_jax.data.sampler import padded_order
from resnet_jax.errors import ResNetJaxError
from resnet_jax.inspection.saliency import BATCH, Forward, forward_and_saliency
from resnet_jax.models import ResNet
from resnet_jax.run import Checkpoint, Run
from resnet_jax.training.jax_settings import compiler_options
from resnet_jax.training.metrics import Evaluation, class_numbers
from resnet_jax.training.step import count

MAX_IMAGES = 10_000  # their saliency maps and features are kept in memory
MAX_BYTES = 2**29  # of the images themselves
# With fewer batches than this, optimising the program takes longer than it saves.
BATCHES_WORTH_OPTIMISING = 50
FEWEST_NEIGHBOURS = 20  # with fewer examples, neighbourhoods mean little


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> np.ndarray:
    """Count examples by label (row) and prediction (column), ``int64[K, K]``.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]

    Raises `ResNetJaxError` unless labels and predictions are ``int[N]``, 0 to K - 1.
    """
    rows = class_numbers("labels", labels, np.asarray(labels).size, num_classes)
    columns = class_numbers("predictions", predictions, len(rows), num_classes)
    cells, k = rows * num_classes + columns, int(num_classes)  # the square of a uint8 overflows
    return np.bincount(cells, minlength=k * k).reshape(k, k)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidence and accuracy in bins of equal width (arXiv 1706.04599, section 2).

    Attributes:
        counts: ``int64[B]``, examples whose confidence is in ``(b / B, (b + 1) / B]``.
        confidence: ``float64[B]``, the examples' mean confidence; NaN in an empty bin.
        accuracy: ``float64[B]``, the fraction of correct examples; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of ``|accuracy - confidence|`` over examples."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(self.counts * gaps) / self.counts.sum())


def calibration(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Calibration:
    """Compare a classifier's confidence, its highest probability, with how often it is right.

    >>> calibration([[0.75, 0.25], [0.75, 0.25]], [0, 1], bins=2).ece  # 0.75 sure, half right
    0.25

    Raises `ResNetJaxError` unless probabilities are ``float[N, K]`` in 0 to 1 and labels
    ``int[N]`` in 0 to K - 1, with N at least 1.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not p.size or not ((p >= -0.001) & (p <= 1.001)).all():
        span = f", {p.min():g} to {p.max():g}" if p.size else ""
        raise ResNetJaxError(
            "calibration needs float[N, K], probabilities, N at least 1, got "
            f"{list(p.shape)}{span}: give jax.nn.softmax(logits)"
        )
    labels = class_numbers("labels", labels, len(p), p.shape[1])
    confidence, right = p.max(1), p.argmax(1) == labels
    # Rounding in float32 may leave a probability slightly above 1.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, of, bins) / counts for of in (confidence, right)]
    return Calibration(counts, *means)


def embedding(features: ArrayLike, *, seed: int = 0) -> np.ndarray:
    """Lay out features in the plane by t-SNE (JMLR 9, 2579-2605), which keeps neighbours close.

    Distances between groups and the groups' sizes mean nothing. Ten thousand examples take a
    minute.

    Args:
        features: ``float[N, D]``, as `last_features` returns them.
        seed: random seed of PCA and t-SNE.

    Returns:
        ``float32[N, 2]``; principal components if N is too small for t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float32)
    components = min(30, *features.shape)
    if components < 2 or not np.ptp(features, axis=0).any():  # all are one point
        return np.zeros((len(features), 2), np.float32)
    # Threads that wait for each other a thousand times a second stall if other work uses the cores.
    with threadpool_limits(1):
        reduced = PCA(components, random_state=seed).fit_transform(features)
        if len(features) < FEWEST_NEIGHBOURS:
            return np.asarray(reduced[:, :2])
        perplexity = min(30, len(features) / 4)
        tsne = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed)
        return np.asarray(tsne.fit_transform(reduced))


@dataclass(frozen=True, eq=False)
class Predictions:
    """A network's predictions for the images of a split, one by one.

    Attributes:
        images: ``uint8[N, H, W, C]``.
        labels: ``int32[N]``.
        class_names: K names.
        logits: ``float32[N, K]``.
        features: ``float32[N, D]``, the head's input; the logits if the network is not a `ResNet`.
        saliency: ``float32[N, h, w]``, `grad_cam` for the predicted class; zeros if not a `ResNet`.
        maps: for the first image, the stem's and each stage's output, ``float32[h, w, features]``;
            empty if the network is not a `ResNet`.
        examined: the fraction of the split's images that were examined.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    logits: np.ndarray
    features: np.ndarray
    saliency: np.ndarray
    maps: dict[str, np.ndarray]
    examined: float = 1.0

    @cached_property
    def probabilities(self) -> np.ndarray:
        """``float32[N, K]``."""
        return np.asarray(jax.jit(jax.nn.softmax)(jax.device_put(self.logits)))

    @property
    def predictions(self) -> np.ndarray:
        """The most probable classes, ``int64[N]``."""
        return np.asarray(self.logits.argmax(1))

    @cached_property
    def evaluation(self) -> Evaluation:
        """Loss, accuracy, confusion matrix, and recall and precision by class."""
        counts = jax.device_get(jax.jit(count)(*jax.device_put((self.logits, self.labels))))
        loss = float(counts.loss) / len(self.labels)
        confusion = counts.confusion.astype(np.int64)
        return Evaluation(loss, confusion, self.class_names, int(counts.top5))

    @property
    def calibration(self) -> Calibration:
        """`calibration` of the probabilities."""
        return calibration(self.probabilities, self.labels)

    def mistakes(self) -> np.ndarray:
        """Return the indices of the wrong predictions, most confident first, ``int64[M]``."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.probabilities[wrong].max(1), kind="stable")]


Findings = Predictions  # its name in 0.1.0


def examine(
    run: Run, split: str = "test", checkpoint: Checkpoint = "best", data_dir: str | None = None
) -> Predictions:
    """Evaluate a run's network image by image, on the first images of a split, at most 10,000.

    The images (with ``center_crop``, the images and their maps) take at most 512 MiB. The other
    arguments, and the errors, are those of `Run.evaluate`.
    """
    model, examples = run.model, run.split(split, data_dir)
    height, width, channels = examples.image_shape
    each = height * width * (channels + 4 * run.config.data.center_crop)  # and `uncrop`'s maps
    count = min(len(examples), MAX_IMAGES, max(1, MAX_BYTES // each))
    order = padded_order(count, BATCH)
    level = 0 if len(order) < BATCHES_WORTH_OPTIMISING else 1

    @partial(jax.jit, compiler_options=compiler_options(optimization_level=level))
    def predict(variables: Any, images: jax.Array) -> tuple[Forward, jax.Array]:
        pixels = run.preprocessing(images)
        if isinstance(model, ResNet):
            return forward_and_saliency(model, variables, pixels)
        logits = model.apply(variables, pixels, train=False)
        return Forward(logits, logits, {}), jnp.zeros((len(images), 1, 1))

    parts: list[tuple[np.ndarray, ...]] = []
    maps: dict[str, np.ndarray] = {}
    with run.jax_settings():
        variables = run.variables(checkpoint)
        for images, labels in read_batches(examples, order, run.config.data.workers):
            check_labels(labels, len(run.class_names))
            inside, saliency = predict(variables, images)
            if not maps:
                maps = {name: np.asarray(x[0], np.float32) for name, x in inside.maps.items()}
            outputs = (inside.logits, inside.features, saliency)
            parts.append((images, labels, *(np.asarray(x, np.float32) for x in outputs)))
        columns = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
        images, labels, logits, features, saliency = columns
        run.check_finite(logits, checkpoint)
        saliency, examined = run.preprocessing.uncrop(saliency), count / len(examples)
    return Predictions(images, labels, run.class_names, logits, features, saliency, maps, examined)
