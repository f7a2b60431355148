"""Every setting of a training run, and the table of presets.

Nothing heavy is imported here: the command line reads this file to print its help.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from resnet_jax.errors import ResNetJaxError


@dataclass(frozen=True)
class Within:
    """The interval that a number must lie in; infinite ends are open, so infinity is refused."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high or self.high == math.inf else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


Count = Within(1)
NotNegative = Within(0)
Positive = Within(0, open_low=True)
Share = Within(0, 1)
ShareBelowOne = Within(0, 1, open_high=True)


@dataclass(frozen=True)
class ModelConfig:
    """The network (`resnet_jax.ResNet`)."""

    name: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "preact_resnet18",
        "preact_resnet34",
    ] = "resnet18"
    """Row of the table of variants, `resnet_jax.models.VARIANTS`."""
    residual: bool = True
    """Without: the plain network, same layers and no shortcuts."""
    width: Annotated[int, Count] = 64
    """Features of the stem and of the first stage."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """imagenet: 7x7 stride 2 and max-pool; small: 3x3 at the image's size (16 times the work)."""
    initializer: Literal["he", "torch"] = "he"
    """Initialisation of convolutions: He et al. (fan-out) or PyTorch's default."""
    zero_init_last: bool = False
    """Start every residual branch at zero."""
    lowering: Literal["auto", "reference"] = "auto"
    """auto: the fastest formulation for the platform; reference: XLA's own convolution."""
    remat: bool = False
    """Keep only the input of each unit for the gradient and compute the unit again on the way back
    (`jax.checkpoint`): a third more work for less memory. XLA's CPU compiler gains next to none."""
    frozen_stages: Annotated[int | None, Within(0, 4)] = None
    """Keep the stem and this many stages as they are, batch norm too (for --init-from)."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the computation. Parameters are float32 (float64 with float64)."""


@dataclass(frozen=True)
class DataConfig:
    """The images and how they become the network's input."""

    name: str = "mnist_5k"
    """A data set that `resnet-jax data list` shows, another of TFDS (`cifar10`), or `folder`."""
    dir: str | None = None
    """Folder of data sets prepared by TFDS. Default: $TFDS_DATA_DIR, then ~/tensorflow_datasets.
    With --data.name folder: the folder of images."""
    from_idx: str | None = None
    """Folder with the four IDX files of MNIST or Fashion-MNIST, to prepare without a network."""
    validation: Annotated[int | None, NotNegative] = None
    """Training examples held out for validation. Default: the data set's own split, or a tenth of
    the training examples; 0: none."""
    subset: Annotated[tuple[int, int, int] | None, NotNegative] = None
    """Use a fixed random sample of this many (training, validation, test) images only."""
    subset_seed: Annotated[int, NotNegative] = 0
    """Seed of that sample. It does not depend on the run's seed."""
    image_size: Annotated[int | None, Count] = None
    """Side in pixels to which images are resized, bilinearly. Default: as they are."""
    read_size: Annotated[int | None, Count] = None
    """Side at which the files of a folder, or pictures of several sizes, are read; the device
    resizes them to --data.image-size after augmentation. Default: --data.image-size."""
    center_crop: bool = False
    """Cut --data.image-size out of the middle of what is read, rather than resize it."""
    fit: Literal["pad", "crop"] = "pad"
    """How a picture of other proportions becomes square. pad: all of it, on black; crop: its
    centre."""
    background: Annotated[int | None, Within(0, 255)] = None
    """Grey level put under transparent pixels: 0 black, 255 white. Default: they are refused."""
    skip_bad: bool = False
    """Leave out a folder's broken, empty and duplicate files. Without: broken ones end the run."""
    streaming: Literal["auto", "always", "never"] = "auto"
    """Read images from disk as they are needed. auto: if all of them take more than
    --data.memory-limit. Either way a step gets the same images."""
    memory_limit: Annotated[float, Positive] = 2.0
    """GiB that the images of all splits may take in memory, one byte a value."""
    workers: Annotated[int | None, Count] = None
    """Threads that decode images. Default: one for each core."""
    mean: tuple[float, ...] = (0.1307,)
    """Mean of the pixels scaled to [0, 1], for each channel: subtracted."""
    std: Annotated[tuple[float, ...], Positive] = (0.3081,)
    """Standard deviation of the pixels scaled to [0, 1], for each channel: divided by."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, drawn for each image; shift to shear from [-x, x]."""

    flip: bool = False
    """Mirror half of the images left to right."""
    crop: Annotated[int, NotNegative] = 0
    """Pad by this many pixels and cut the image's size out anywhere (arXiv 1512.03385)."""
    resized_crop: Annotated[float, Share] = 0.0
    """Cut out this share of the image's area or more, of an aspect from 3:4 to 4:3, and resize it
    to --data.image-size (arXiv 1409.4842); 0.08 for photographs."""
    randaugment: Annotated[int, Within(0, 10)] = 0
    """This many of fourteen operations on form and colour (RandAugment, arXiv 1909.13719)."""
    magnitude: Annotated[float, Within(0, 10)] = 9.0
    """How strong those operations are."""
    mixup: Annotated[float, NotNegative] = 0.0
    """Mix images and labels of two, in shares drawn from Beta(x, x) (arXiv 1710.09412)."""
    cutmix: Annotated[float, NotNegative] = 0.0
    """Paste a rectangle of another image, of a share drawn from Beta(x, x) (arXiv 1905.04899)."""
    shift: Annotated[float, NotNegative] = 0.0
    """Translation in pixels, in both directions."""
    rotation: Annotated[float, Within(0, 180)] = 0.0
    """Rotation in degrees."""
    scale: Annotated[float, ShareBelowOne] = 0.0
    """Relative change of size; 0.1 is 90 % to 110 %."""
    shear: Annotated[float, Within(0, 90, open_high=True)] = 0.0
    """Shear in degrees."""
    erase: Annotated[float, Share] = 0.0
    """Probability that a random rectangle is erased (arXiv 1708.04896)."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum; adamw: decoupled weight decay (arXiv 1711.05101)."""
    learning_rate: Annotated[float, Positive] = 0.1
    """The highest rate of the schedule."""
    momentum: Annotated[float, ShareBelowOne] = 0.9
    """Momentum of sgd; the first decay rate of adamw."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: Annotated[float, NotNegative] = 0.0
    """Weight decay on kernels alone, not on biases or batch norm. sgd: added to the gradient."""
    body_rate: Annotated[float, Positive] = 1.0
    """Learning rate of all layers but the head, as a share of the head's (for --init-from)."""
    clip_norm: Annotated[float | None, Positive] = None
    """Largest global norm of the gradient; a longer one is scaled down."""
    schedule: Literal["constant", "cosine", "one_cycle", "piecewise"] = "constant"
    """How the rate moves over the run, step by step."""
    warmup: Annotated[float, ShareBelowOne] = 0.0
    """Share of the run in which the rate rises: in a line, or for one_cycle along a cosine."""
    boundaries: Annotated[tuple[float, ...], Share] = (0.5, 0.75)
    """piecewise: shares of the run after which the rate is divided by ten."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `resnet_jax.train(config, run_dir)` carries it out."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init_from: str | None = None
    """Start from the weights in a .safetensors or .pth file, or in another run's folder."""
    init_head: Literal["auto", "keep", "fresh"] = "auto"
    """The head of those weights. auto: kept where they know the same classes, else fresh."""
    epochs: Annotated[float, Positive] = 1.0
    """Passes over the training images."""
    batch_size: Annotated[int, Count] = 64
    """Images in a step, over all devices together."""
    accumulate: Annotated[int, Count] = 1
    """Compute the gradient in this many parts of the batch, one after the other, for a fraction of
    the memory. Batch norm takes the statistics of each part; the update is the parts' mean."""
    seed: Annotated[int, Within(0, 2**31 - 1)] = 0
    """Seed of the parameters, of the order of the images and of the augmentation."""
    label_smoothing: Annotated[float, ShareBelowOne] = 0.0
    """Share of the target spread over all classes (arXiv 1512.00567, section 7)."""
    ema: Annotated[float | None, ShareBelowOne] = None
    """Decay of an exponential moving average of the weights, which evaluation then uses."""
    eval_every: Annotated[int | None, Count] = None
    """Steps between evaluations on the validation images, each followed by a checkpoint. Default:
    an epoch."""
    patience: Annotated[int | None, Count] = None
    """Stop after this many evaluations without a better validation accuracy."""
    target: Annotated[float | None, Share] = None
    """Stop as soon as the validation accuracy reaches this."""
    log_every: Annotated[int, Count] = 50
    """Steps between two lines of metrics."""
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    """Precision of float32 products on GPU and TPU; highest is float32 throughout."""
    tensorboard: bool = False
    """Write TensorBoard events into the run's folder too (extra `tensorboard`)."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder: a second start compiles nothing."""

    def __post_init__(self) -> None:
        """Refuses values that make no sense, naming the option (`ResNetJaxError`)."""
        for option, value, hint in all_settings(self):
            _check(option, value, hint)
        if self.optim.nesterov and (self.optim.name == "adamw" or not self.optim.momentum):
            raise ResNetJaxError(
                "--optim.nesterov makes no sense without sgd's momentum: give --optim.name sgd "
                "and --optim.momentum 0.9, or --optim.no-nesterov"
            )
        if self.augment.crop and self.augment.resized_crop:
            raise ResNetJaxError(
                f"--augment.crop {self.augment.crop} and --augment.resized-crop "
                f"{self.augment.resized_crop:g} exclude each other: give 0 for one of them"
            )
        if self.data.center_crop and self.data.image_size is None:
            raise ResNetJaxError(
                "--data.center-crop needs to know the size to cut out: give --data.image-size"
            )


def all_settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Option, value and type of every setting, nested ones too."""
    hints = get_type_hints(type(config), include_extras=True)
    for name in (f.name for f in dataclasses.fields(config)):
        value, option = getattr(config, name), prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from all_settings(value, f"{option}.")
        else:
            yield option, value, hints[name]


def _check(option: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = ", ".join(map(str, get_args(hint)))
        raise ResNetJaxError(f"--{option} {value} is not known: give one of {choices}")
    if get_origin(hint) is not Annotated or value is None:
        return
    _, interval = get_args(hint)
    for number in value if isinstance(value, tuple) else (value,):
        if number not in interval:
            raise ResNetJaxError(f"--{option} {number:g} makes no sense: give {interval}")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as nested dictionaries of plain values, for `config.yaml`."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {k: list(v) if type(v) is tuple else v for k, v in items},
    )


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_dict`; unknown or misshapen settings are refused (`ResNetJaxError`)."""
    return _from_dict(TrainConfig, values, "")


def _from_dict(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ResNetJaxError(f"setting {prefix or 'config'} is {values!r}: expected a mapping")
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := [name for name in values if name not in kinds]:
        raise ResNetJaxError(
            f"setting {prefix}{unknown[0]} is not known to this version of resnet_jax"
        )
    settings = {}
    for name, value in values.items():
        kind = get_type_hints(cls)[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            value = _from_dict(kind, value, f"{prefix}{name}.")
        settings[name] = tuple(value) if isinstance(value, list) else value
    return cls(**settings)


def differences(one: TrainConfig, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The options in which two configurations differ, with both values."""
    pairs = zip(all_settings(one), all_settings(other), strict=True)
    return {option: (a, b) for (option, a, _), (_, b, _) in pairs if a != b}


_MNIST_AUGMENT = AugmentConfig(shift=2.0, rotation=12.0, scale=0.12, shear=8.0)

PRESETS: dict[str, TrainConfig] = {
    # 4,000 real digits, in under two minutes on two cores, compilation included; no network.
    # Eight passes have not the time for the distortions and the rate that pay over forty.
    "quickstart": TrainConfig(
        augment=AugmentConfig(shift=1.2, rotation=7.0, scale=0.07, shear=5.0),
        optim=OptimConfig(
            learning_rate=0.05, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
        ),
        epochs=8,
        eval_every=125,
        label_smoothing=0.1,
        log_every=25,
    ),
    # NNDL: Practice, section 5.4, with one rate for the plain and the residual network. (The book
    # trains them at 0.005 and 0.01, so that its comparison mixes two causes.)
    "book": TrainConfig(
        model=ModelConfig(initializer="torch"),
        data=DataConfig(
            name="mnist", subset=(1000, 200, 200), image_size=32, mean=(0.5,), std=(0.5,)
        ),
        optim=OptimConfig(learning_rate=0.005, momentum=0.0),
        epochs=5,
        eval_every=15,
        log_every=1,
    ),
    "mnist": TrainConfig(
        # A stride of 4 in the stem leaves little of 28 pixels: 32 are worth their time.
        data=DataConfig(name="mnist", image_size=32),
        augment=_MNIST_AUGMENT,
        optim=OptimConfig(
            learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
        ),
        epochs=5,
        label_smoothing=0.1,
        ema=0.999,
    ),
    # The least time to 99.0 % of the test digits on two cores: no augmentation, which one pass does
    # not repay, and a stop as soon as the validation images pass that by a margin.
    "fast": TrainConfig(
        data=DataConfig(name="mnist"),
        # At 0.1 one seed of three lost its way in the warm-up and ended at 96 %.
        optim=OptimConfig(
            learning_rate=0.05, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
        ),
        epochs=1.5,
        batch_size=128,
        eval_every=110,  # at 50, evaluating and saving were a fifth of its time
        target=0.991,
    ),
    "fashion_mnist": TrainConfig(
        data=DataConfig(name="fashion_mnist", mean=(0.2860,), std=(0.3530,)),
        augment=AugmentConfig(shift=2.0, erase=0.5),
        optim=OptimConfig(
            learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
        ),
        epochs=10,
        label_smoothing=0.1,
        ema=0.999,
    ),
    # He et al.'s recipe for CIFAR-10 (arXiv 1512.03385, section 4.2: padded crops and flips,
    # batch 128, rate 0.1) as it is used since wide residual networks (arXiv 1605.07146, section 4:
    # Nesterov, weight decay 5e-4, 200 epochs), with a cosine (arXiv 1608.03983) for its steps and
    # smoothed labels (arXiv 1512.00567). The stem is at the image's size, as in both.
    "cifar10": TrainConfig(
        model=ModelConfig(stem="small"),
        data=DataConfig(
            name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
        ),
        augment=AugmentConfig(flip=True, crop=4),
        optim=OptimConfig(learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine"),
        epochs=200,
        batch_size=128,
        label_smoothing=0.1,
    ),
    # ResNet-50 in 90 epochs: a rate of 0.1 for each 256 images of a batch, five epochs of warm-up
    # and a last scale of zero (arXiv 1706.02677, sections 2 and 5.1); a cosine, smoothed labels and
    # no decay of biases (arXiv 1812.01187, sections 3 and 5); Inception's crops (arXiv 1409.4842).
    # Evaluation is torchvision's: the shorter side to 256, and the 224x224 in the middle.
    "imagenet": TrainConfig(
        model=ModelConfig(name="resnet50", zero_init_last=True),
        data=DataConfig(
            name="imagenet2012",
            read_size=256,
            fit="crop",
            image_size=224,
            center_crop=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        augment=AugmentConfig(flip=True, resized_crop=0.08),
        optim=OptimConfig(
            learning_rate=0.1,
            nesterov=True,
            weight_decay=1e-4,
            schedule="cosine",
            warmup=5 / 90,
        ),
        epochs=90,
        batch_size=256,
        label_smoothing=0.1,
    ),
    # A person's own images, --data.dir. Mean and standard deviation suit grey and colour alike.
    "folder": TrainConfig(
        data=DataConfig(name="folder", fit="crop", mean=(0.5,), std=(0.25,)),
        optim=OptimConfig(
            learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
        ),
        epochs=30,
        label_smoothing=0.1,
    ),
}


def preset(name: str) -> TrainConfig:
    """The preset of that name, or a `ResNetJaxError` that names the nearest one."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PRESETS)}"
    raise ResNetJaxError(f"preset {name} is not known: {hint}")
