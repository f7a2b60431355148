"""Every setting of a training run, with its type, its bounds and its effect.

Nothing heavy is imported here: the command line reads this file to print its help.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

from resnet_jax.errors import ResNetJaxError
from resnet_jax.settings import Effect, Within, check, settings

Variant = Literal[
    "resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet18d", "resnet26d", "resnet34d", "resnet50d", "resnet101d", "resnet152d",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
    "wide_resnet50_2", "wide_resnet101_2", "wide_resnet16_4", "wide_resnet28_10",
    "preact_resnet18", "preact_resnet34", "preact_resnet110", "preact_resnet164",
]  # fmt: skip
Lowering = Literal["auto", "reference", "avx2", "avx512"]
StemKind = Literal["imagenet", "deep", "small", "conv"]
Shortcut = Literal["projection", "projection-all", "pad", "average"]
Initialisation = Literal["he", "torch"]
Fit = Literal["pad", "crop"]
Count = Within("at least 1")
NotNegative = Within("at least 0")
Positive = Within("more than 0")
Fraction = Within("at least 0 and at most 1")
FractionBelowOne = Within("at least 0 and below 1")
FORMER = {"model.width": 64, "model.stem": "imagenet"}  # defaults of 0.1.0, for which None stands


@dataclass(frozen=True)
class ModelConfig:
    """The network (`resnet_jax.ResNet`)."""

    name: Variant = "resnet18"
    """Row of the table of variants, `resnet_jax.models.VARIANTS`."""
    residual: bool = True
    """With shortcuts; otherwise the plain network of the same layers."""
    width: Annotated[int | None, Count] = None
    """Features of the stem and of the first stage. None: the network's own, 64 or 16."""
    stem: StemKind | None = None
    """imagenet: 7x7 stride 2 and max-pool; deep: three 3x3 instead of the 7x7; small: 3x3 at the
    image's size (16 times the work); conv: small without norm and ReLU. None: the network's own."""
    shortcut: Shortcut | None = None
    """Where shapes differ: projection: 1x1 (option B of arXiv 1512.03385; projection-all: in every
    unit, C); pad: zeros (A); average: 2x2 mean, then 1x1 (ResNet-D). None: the network's own."""
    initializer: Initialisation = "he"
    """Initialisation of convolutions: He et al. (fan-out) or PyTorch's default."""
    zero_init_last: bool = False
    """Start every residual branch at zero (arXiv 1706.02677, section 5.1); needs shortcuts."""
    lowering: Lowering = "auto"
    """auto: the fastest algorithms for the platform, on a CPU those of the instruction set that the
    run began with; avx2, avx512: those of that set on a CPU; reference: XLA's own convolution."""
    remat: Annotated[bool, Effect.EXECUTION] = False
    """Compute each unit again for the gradient (`jax.checkpoint`): a third more work for less
    memory. On a CPU it saves next to nothing."""
    frozen_stages: Annotated[int | None, Within("at least 0 and at most 4")] = None
    """Do not train the stem and this many stages (0: the stem), batch norm included, for
    --init-from. None: train all."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of activations and of their gradients. Parameters are float32 (float64 with float64)."""

    @property
    def title(self) -> str:
        """The name to show for the network, such as ``plain resnet18``."""
        return self.name if self.residual else f"plain {self.name}"


@dataclass(frozen=True)
class DataConfig:
    """The images and how they become the network's input."""

    name: str = "mnist_5k"
    """A dataset that `resnet-jax data list` shows, another of TFDS (`cifar10`), or `folder`."""
    dir: Annotated[str | None, Effect.LOCAL] = None
    """Folder of datasets prepared by TFDS; None: $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    With --data.name folder: the folder of images."""
    validation: Annotated[int | None, NotNegative] = None
    """Training examples held out for validation. None: the dataset's own, or a tenth of them."""
    subset: Annotated[tuple[int, int, int] | None, NotNegative] = None
    """Use a fixed random sample of this many (training, validation, test) images. None: all."""
    subset_seed: Annotated[int, NotNegative] = 0
    """Seed of that sample, which does not depend on the run's seed."""
    image_size: Annotated[int | None, Count] = None
    """Side in pixels to which images are resized, bilinearly; proportions may change. None: as they
    are; pictures of several sizes need it, or --data.read-size."""
    read_size: Annotated[int | None, Count] = None
    """Side at which the files of a folder, or pictures of several sizes, are read; the device
    resizes them to --data.image-size after augmentation. None: --data.image-size."""
    center_crop: bool = False
    """Crop --data.image-size from the middle of the image instead of resizing it."""
    fit: Fit = "pad"
    """How a picture of a folder, or of several sizes, becomes square. pad: black borders; crop: its
    centre."""
    background: Annotated[int | None, Within("at least 0 and at most 255")] = None
    """Grey level put under transparent pixels: 0 black, 255 white. None: they are refused."""
    find_digit: Annotated[bool, Effect.EXECUTION] = False
    """Find the digit in pictures for predict and the page; for images of 28x28, as MNIST's."""
    skip_bad: bool = False
    """Leave out a folder's broken, empty and duplicate files. Otherwise broken ones end the run."""
    streaming: Annotated[Literal["auto", "always", "never"], Effect.EXECUTION] = "auto"
    """Read images from disk while training. auto: if all of them take more than
    --data.memory-limit. Either way a step gets the same images."""
    memory_limit: Annotated[float, Positive, Effect.EXECUTION] = 2.0
    """GiB that the images of all splits may take in memory, one byte a value."""
    workers: Annotated[int | None, Count, Effect.LOCAL] = None
    """Threads that decode images. None: one for each core, but one to open small files."""
    mean: Annotated[tuple[float, ...] | None, Fraction] = None
    """Mean to subtract from pixels in [0, 1]: one, or one a channel. None: the training images'."""
    std: Annotated[tuple[float, ...] | None, Within("more than 0 and at most 1")] = None
    """Standard deviation to divide by, given like the mean. None: the training images'."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes, drawn for each training image; shift to shear: by up to x either way."""

    flip: bool = False
    """Mirror half of the images left to right."""
    crop: Annotated[int, NotNegative] = 0
    """Pad by this many pixels and cut the image's size out anywhere (arXiv 1512.03385)."""
    resized_crop: Annotated[float, Fraction] = 0.0
    """Crop at least this fraction of the image's area, of an aspect from 3:4 to 4:3, and resize it
    to --data.image-size (arXiv 1409.4842); 0.08 for photographs."""
    randaugment: Annotated[int, Within("at least 0 and at most 10")] = 0
    """This many of fourteen operations on form and colour (RandAugment, arXiv 1909.13719)."""
    magnitude: Annotated[float, Within("at least 0 and at most 10")] = 9.0
    """How strong those operations are, 0 to 10 (AutoAugment's strongest)."""
    mixup: Annotated[float, NotNegative] = 0.0
    """Blend two images and their labels by a weight from Beta(x, x) (arXiv 1710.09412)."""
    cutmix: Annotated[float, NotNegative] = 0.0
    """Paste a rectangle of another image, its area from Beta(x, x) (arXiv 1905.04899)."""
    shift: Annotated[float, NotNegative] = 0.0
    """Translation in pixels, in both directions."""
    rotation: Annotated[float, Within("at least 0 and at most 180")] = 0.0
    """Rotation in degrees."""
    scale: Annotated[float, FractionBelowOne] = 0.0
    """Relative change of size; 0.1 is 90 % to 110 %."""
    shear: Annotated[float, Within("at least 0 and below 90")] = 0.0
    """Shear in degrees."""
    elastic: Annotated[float, NotNegative] = 0.0
    """Elastic distortion by a smooth random field, with this root mean square in pixels in each
    direction (Simard, Steinkraus, Platt, ICDAR 2003, who use about 1.4 on digits)."""
    erase: Annotated[float, Fraction] = 0.0
    """Probability that a random rectangle turns black (arXiv 1708.04896): 2 to 33 % of the area."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate."""

    name: Literal["sgd", "adam", "adamw", "lamb", "lion"] = "sgd"
    """sgd: with momentum; adam (arXiv 1412.6980); with decoupled weight decay: adamw (1711.05101),
    lamb for large batches (1904.00962), lion (2302.06675: give a third of adamw's learning rate and
    three times its decay)."""
    learning_rate: Annotated[float, Positive] = 0.1
    """The highest learning rate of the schedule."""
    momentum: Annotated[float, FractionBelowOne] = 0.9
    """Momentum of sgd; the first decay rate of the others."""
    nesterov: bool = False
    """Nesterov's momentum; only for sgd, with a momentum above 0."""
    weight_decay: Annotated[float, NotNegative] = 0.0
    """Weight decay of parameters named kernel, not of biases or batch norm. sgd and adam: added to
    the gradient."""
    body_rate: Annotated[float, Positive] = 1.0
    """Learning rate of all layers but the head, as a fraction of the head's (for --init-from)."""
    clip_norm: Annotated[float | None, Positive] = None
    """Largest global norm of the gradient; a longer one is scaled down. None: no limit."""
    schedule: Literal["constant", "cosine", "one_cycle", "piecewise"] = "constant"
    """constant; cosine: down to zero; one_cycle: from 1/25 of the rate up, then to almost nothing
    (arXiv 1708.07120); piecewise: divided by ten at --optim.boundaries. See --optim.warmup."""
    warmup: Annotated[float, FractionBelowOne] = 0.0
    """Fraction of the run in which the learning rate rises: linearly, for one_cycle as a cosine."""
    boundaries: Annotated[tuple[float, ...], Fraction] = (0.5, 0.75)
    """piecewise: fractions of the run after which the learning rate is divided by ten; one within
    the warm-up divides at its end."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `resnet_jax.train(config, run_dir)` carries it out. Values out of bounds, in
    its parts too, raise a `ResNetJaxError` here."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init_from: str | None = None
    """Start from the weights in a .safetensors or .pth file, or in a run's folder. None: random."""
    init_head: Literal["auto", "keep", "fresh"] = "auto"
    """Head of --init-from's weights. auto: kept if their classes are the same, else fresh."""
    epochs: Annotated[float, Positive] = 1.0
    """Passes over the training images."""
    batch_size: Annotated[int, Count] = 64
    """Images in a step, over all devices together: a multiple of devices times --accumulate."""
    accumulate: Annotated[int, Count] = 1
    """Accumulate the gradient over this many parts of the batch, for a fraction of the memory.
    Batch norm takes the statistics of each part; the update is the parts' mean."""
    seed: Annotated[int, Within("at least 0 and at most 2147483647")] = 0
    """Seed of the parameters, of the order of the images and of the augmentation."""
    label_smoothing: Annotated[float, FractionBelowOne] = 0.0
    """Weight of the uniform distribution in the targets (arXiv 1512.00567, section 7)."""
    ema: Annotated[float | None, FractionBelowOne] = None
    """Decay of a moving average of the weights, which evaluation then uses. None: no average."""
    eval_every: Annotated[int | None, Count, Effect.SELECTION] = None
    """Steps between evaluations on the validation images and checkpoints. None: an epoch."""
    patience: Annotated[int | None, Count, Effect.SELECTION] = None
    """Stop after this many evaluations without a better validation accuracy. None: never."""
    target: Annotated[float | None, Fraction, Effect.SELECTION] = None
    """Stop as soon as the validation accuracy, a fraction, reaches this. None: never."""
    log_every: Annotated[int, Count, Effect.EXECUTION] = 50
    """Steps between two lines of metrics."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 products on GPU and TPU; highest is float32 throughout."""
    tensorboard: Annotated[bool, Effect.EXECUTION] = False
    """Write TensorBoard events into the run's folder too (extra `tensorboard`)."""
    compilation_cache: Annotated[bool, Effect.EXECUTION] = True
    """Keep compiled programs in the user's cache for the next start; not with several processes."""

    def __post_init__(self) -> None:
        check(self)
        crop, resized_crop = self.augment.crop, self.augment.resized_crop
        if self.optim.nesterov and (self.optim.name != "sgd" or not self.optim.momentum):
            raise ResNetJaxError(
                "--optim.nesterov needs the momentum of sgd: give --optim.name sgd "
                "and --optim.momentum 0.9, or --optim.no-nesterov"
            )
        if crop and resized_crop:
            raise ResNetJaxError(
                f"--augment.crop {crop} and --augment.resized-crop {resized_crop:g} exclude each "
                "other: give 0 for one of them"
            )
        if self.data.center_crop and self.data.image_size is None:
            raise ResNetJaxError("--data.center-crop needs a size: give --data.image-size")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the settings as nested dictionaries of plain values, for `config.yaml`."""
    # Through JSON, tuples become lists and NumPy's numbers Python's.
    text = json.dumps(dataclasses.asdict(config), default=lambda number: number.item())
    return dict(json.loads(text))


def from_dict(values: Any, cls: Any = TrainConfig, prefix: str = "") -> Any:
    """Invert `to_dict`; raise a `ResNetJaxError` for unknown or misshapen settings."""
    if not isinstance(values, Mapping):
        raise ResNetJaxError(f"setting {prefix or 'config'} is {values!r}: expected a mapping")
    kinds = get_type_hints(cls)
    if cls is ModelConfig and "shortcut" not in values:  # before 0.2.0
        values = {k: None if FORMER.get(f"model.{k}") == v else v for k, v in values.items()}
    known = {}
    for name, value in values.items():
        if f"{prefix}{name}" == "data.from_idx":  # of 0.1.0; it decided nothing about a run
            continue
        if name not in kinds:
            raise ResNetJaxError(f"setting {prefix}{name} is not one of this version's")
        if dataclasses.is_dataclass(kinds[name]):
            value = from_dict(value, kinds[name], f"{prefix}{name}.")
        known[name] = tuple(value) if isinstance(value, list) else value
    return cls(**known)


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the options in which two configurations differ, with both values."""
    pairs = zip(settings(one), settings(other), strict=True)
    return {a.option: (a.value, b.value) for a, b in pairs if a.value != b.value}


# Options whose values may change when a run continues.
MAY_CHANGE = {s.option for s in settings(TrainConfig()) if s.effect != Effect.LEARNING}


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
    document = to_dict(config)
    for option, value in values.items():
        group, _, name = option.replace("-", "_").rpartition(".")
        (document[group] if group else document)[name] = value
    return from_dict(document, type(config))
