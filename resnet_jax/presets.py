"""The table of presets: training recipes with their sources.

``resnet-jax train NAME`` runs one. Results with their spread are measured by
``experiments/presets/measure.py`` and stand in the README; the comments here say what to expect.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from resnet_jax.config import (
    MAY_CHANGE,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    differences,
    replaced,
)
from resnet_jax.errors import MALFORMED, ResNetJaxError
from resnet_jax.settings import has_type, settings

# SGD under the 1cycle policy (arXiv 1708.07120), with PyTorch's ramps and a constant momentum.
_one_cycle = partial(
    OptimConfig, nesterov=True, weight_decay=5e-4, schedule="one_cycle", warmup=0.25
)
_MNIST = DataConfig(name="mnist", mean=(0.1307,), std=(0.3081,), find_digit=True)
_DISTORTED = AugmentConfig(shift=2.0, rotation=12.0, scale=0.12, shear=8.0)
# The recipe of arXiv 1512.03385, section 4.2: 64,000 updates, the rate divided by ten after 32,000
# and 48,000. (The paper found these on 45,000 images and trains on all 50,000; here 5,000 are held
# out. It subtracts the mean of each pixel; here each channel is normalised by its mean and
# deviation, after the padding; and only kernels decay.)
_PAPER = TrainConfig(
    data=DataConfig(name="cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    augment=AugmentConfig(flip=True, crop=4),
    optim=OptimConfig(
        learning_rate=0.1, weight_decay=1e-4, schedule="piecewise", boundaries=(0.5, 0.75)
    ),
    epochs=64_000 * 128 / 45_000,
    batch_size=128,
)


def _of_paper(name: Any, warmup: float = 0.0) -> TrainConfig:
    return replace(_PAPER, model=ModelConfig(name), optim=replace(_PAPER.optim, warmup=warmup))


PRESETS: dict[str, TrainConfig] = {
    # Trains on 4,000 real digits without a network connection, in under two minutes on two cores,
    # compilation included. Expect 98 % of 500 test digits. Eight epochs are too few for the
    # distortions and the learning rate that pay off over forty.
    "quickstart": TrainConfig(
        data=replace(_MNIST, name="mnist_5k"),
        augment=AugmentConfig(shift=1.2, rotation=7.0, scale=0.07, shear=5.0),
        optim=_one_cycle(learning_rate=0.05),
        epochs=8,
        eval_every=125,
        label_smoothing=0.1,
        log_every=25,
    ),
    # NNDL: Practice, section 5.4, with one learning rate for the plain and the residual network.
    # (The book gives them 0.005 and 0.01, so that its comparison confounds learning rate and
    # shortcut.) Expect 92 to 93 % of 10,000 test digits from 1,000 training digits.
    "book": TrainConfig(
        model=ModelConfig(initializer="torch"),
        data=replace(_MNIST, subset=(1000, 200, 200), image_size=32, mean=(0.5,), std=(0.5,)),
        optim=OptimConfig(learning_rate=0.005, momentum=0.0),
        epochs=5,
        eval_every=15,
        log_every=1,
    ),
    # Expect 99.5 % in 5 epochs. The stem's stride of 4 leaves little of 28 pixels, so that 32 are
    # worth their time.
    "mnist": TrainConfig(
        data=replace(_MNIST, image_size=32),
        augment=_DISTORTED,
        optim=_one_cycle(learning_rate=0.1),
        epochs=5,
        label_smoothing=0.1,
        ema=0.999,
    ),
    # Meant to be the most accurate, by the ablations of experiments/mnist_record on the validation
    # images, on which it trains as well; the distortion lies between values tried there. Expect
    # 99.7 % of the test digits, in 66 to 89 minutes on two cores.
    "record": TrainConfig(
        data=replace(_MNIST, validation=0, image_size=48),
        augment=replace(_DISTORTED, elastic=0.4),
        optim=_one_cycle(learning_rate=0.1),
        epochs=20,
        batch_size=128,
        label_smoothing=0.1,
        ema=0.999,
    ),
    # Takes the least time to 99.0 % of the test digits on two cores: no augmentation, which does
    # not pay off in one epoch, and a stop once the validation accuracy is above that by a margin.
    "fast": TrainConfig(
        data=_MNIST,
        # At 0.1 one seed of three diverged in the warm-up and ended at 96 %.
        optim=_one_cycle(learning_rate=0.05),
        epochs=1.5,
        batch_size=128,
        eval_every=110,  # at 50, evaluating and saving took a fifth of the time
        target=0.991,
    ),
    "fashion_mnist": TrainConfig(
        data=DataConfig(name="fashion_mnist", mean=(0.2860,), std=(0.3530,)),
        augment=AugmentConfig(shift=2.0, erase=0.5),
        optim=_one_cycle(learning_rate=0.1),
        epochs=10,
        label_smoothing=0.1,
        ema=0.999,
    ),
    # He et al.'s recipe for CIFAR-10 (arXiv 1512.03385, section 4.2: padded crops and flips,
    # batch 128, learning rate 0.1) as used since wide residual networks (arXiv 1605.07146, section
    # 3: Nesterov, weight decay 5e-4, 200 epochs), with smoothed labels (arXiv 1512.00567) and, in
    # place of steps, a cosine (arXiv 1608.03983). The stem keeps the image's size, as in both.
    # Not trained by us.
    "cifar10": replace(
        _PAPER,
        model=ModelConfig(stem="small"),
        optim=OptimConfig(learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine"),
        epochs=200,
        label_smoothing=0.1,
    ),
    # The paper's own networks by its recipe: 8.75, 7.51, 7.17, 6.97 and 6.43 % test error in its
    # table 6. Not trained by us.
    **{f"resnet{depth}_cifar10": _of_paper(f"resnet{depth}") for depth in (20, 32, 44, 56)},
    # The paper trains at 0.01 until the error is below 80 % (400 updates); here a linear warm-up.
    "resnet110_cifar10": _of_paper("resnet110", warmup=400 / 64_000),
    # ResNet-20 in 40 epochs, one cycle, for two cores. On a lossy JPEG copy of the images it
    # reaches 87.6 % (experiments/cifar10); not trained on the original by us.
    "cifar10_fast": replace(
        _PAPER, model=ModelConfig("resnet20"), optim=_one_cycle(learning_rate=0.2), epochs=40
    ),
    # ResNet-50 in 90 epochs: a learning rate of 0.1 per 256 images of a batch, five epochs of
    # warm-up and a last scale of zero (arXiv 1706.02677, sections 2 and 5.1); a cosine, smoothed
    # labels and no decay of biases (arXiv 1812.01187, sections 3 and 5); Inception's crops (arXiv
    # 1409.4842). Evaluated on the central 224x224 of the image resized to 256. Not trained by us.
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
            learning_rate=0.1, nesterov=True, weight_decay=1e-4, schedule="cosine", warmup=5 / 90
        ),
        epochs=90,
        batch_size=256,
        label_smoothing=0.1,
    ),
    # The user's images in --data.dir. The mean and standard deviation suit both grey and colour.
    # Flips, crops and learning rate were chosen on 200 to 20,000 pictures by validation
    # (experiments/folder_preset).
    "folder": TrainConfig(
        data=DataConfig(name="folder", fit="crop", mean=(0.5,), std=(0.25,)),
        augment=AugmentConfig(flip=True, resized_crop=0.6),
        optim=_one_cycle(learning_rate=0.05),
        epochs=30,
        label_smoothing=0.1,
    ),
}

# Settings of presets in 0.1.0, with which a run begun then continues by the same command.
EARLIER: dict[str, dict[str, Any]] = {
    "folder": {"augment.flip": False, "augment.resized-crop": 0.0, "optim.learning-rate": 0.1}
}


def preset(name: str) -> TrainConfig:
    """Return the preset of that name, or raise a `ResNetJaxError` that names the nearest one."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(PRESETS)}"
    raise ResNetJaxError(f"preset {name} is not known: {hint}")


def run_name(
    name: str, reference: TrainConfig, config: TrainConfig, always: Iterable[str] = ()
) -> str:
    """Return a name with the settings that differ from a reference, such as ``book-plain``.

    The name leaves out the epochs, the seed and settings that do not change what is learnt,
    except the options in ``always``; it has the last part of the path of a folder of images.
    """
    changes = differences(reference, config)
    values = {setting.option: setting.value for setting in settings(config)}
    unnamed = {"epochs", "seed", *MAY_CHANGE}
    if "data.name" in changes:  # which resets the preset's mean and deviation
        unnamed |= {o for o in ("data.mean", "data.std") if None in changes.get(o, ())}
    named = (changes.keys() - unnamed).union(always)
    parts = [name, *(_part(option, values[option]) for option in sorted(named))]
    if config.data.name == "folder" and "data.dir" in changes.keys() - named:
        parts.insert(1, os.path.basename(os.path.realpath(config.data.dir or "")))
    # All printable characters of other scripts stay: vowel signs and emoji are no letters to `re`.
    shown = "".join(c if c.isprintable() else " " for c in "-".join(parts))
    full = re.sub(r"[^\w.\-\x80-\U0010ffff]+", "_", shown)
    # File systems allow 255 bytes, the seed included.
    if len(full) <= 100 and len(full.encode()) <= 240:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()
    return f"{full[:90].encode()[:231].decode(errors='ignore')}-{digest[:8]}"


def _part(option: str, value: Any) -> str:
    leaf = option.split(".")[-1]
    if option == "model.residual":
        return "residual" if value else "plain"
    if value is None or isinstance(value, bool):
        return leaf if value else f"no-{leaf}"
    if isinstance(value, tuple):
        value = "_".join(f"{number:g}" for number in value)
    shown = f"{value:g}" if isinstance(value, float) else Path(str(value)).name
    return shown if leaf == "name" else f"{leaf}-{shown}"


def grid(config: TrainConfig, axes: Sequence[str]) -> list[TrainConfig]:
    """Return a configuration for each combination of values: ``optim.learning-rate=0.01,0.1``.

    Raises:
        ResNetJaxError: an axis is no ``OPTION=VALUE,VALUE``, or a value is refused.
    """
    kinds = {setting.option: setting.type for setting in settings(config)}
    columns: dict[str, list[Any]] = {}
    for axis in axes:
        option, equals, texts = axis.removeprefix("--").partition("=")
        if option not in kinds or not equals or "" in texts.split(",") or option in columns:
            near = difflib.get_close_matches(option, kinds, n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != option else ""
            raise ResNetJaxError(
                f"--grid must be OPTION=VALUE,VALUE,..., each once, got {axis}{hint}"
            )
        columns[option] = [_parsed(text, kinds[option]) for text in texts.split(",")]
    combinations = itertools.product(*columns.values())
    return [replaced(config, dict(zip(columns, values, strict=True))) for values in combinations]


def _parsed(text: str, kind: Any) -> Any:
    """Parse a value as JSON if that gives the setting's type, alone or as a tuple of one."""
    written = {"None": "null", "True": "true", "False": "false"}.get(text, text)  # as for options
    for read in (json.loads, float):  # JSON; then .1 and 1., which options accept too
        with suppress(*MALFORMED):
            value = read(written)
            float(value or 0)  # too large an int: as a float it is infinite, and refused
            for found in (value, (value,)):
                if has_type(found, kind):
                    return found
    return text
