"""What README and the pages of docs/ used of version 0.1.0, code block by code block: it stays.

The pages may be rewritten, and test_docs.py then looks at what they say by then. The lists below
are of the day when 0.1.0 was closed: programs that people wrote by those pages go on working.
"""

import ast
import functools
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from test_docs import options

import resnet_jax as rj

# Parts below the top that blocks import. Where one moves or gets another name, its line here
# changes (`from ... import NewName as Name`), and nothing below. CALLS names those that look
# unused.
# ruff: noqa: F401
from resnet_jax.config import MAY_CHANGE
from resnet_jax.data.augment import augment, preprocess
from resnet_jax.data.dataset import ArraySplit as Split
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.sampler import EpochSampler as IndexStream
from resnet_jax.inspection import plots
from resnet_jax.models import Affine, BatchNorm, Conv, Unit, make_model, summarize
from resnet_jax.training.checkpoint import Checkpoints

PICTURES = Path(__file__).parent / "reliability/stored_runs/split_pictures"

NAMES = """
    PRESETS AugmentConfig DataConfig ModelConfig OptimConfig TrainConfig Dataset load_dataset
    ResNetJaxError BasicUnit BottleneckUnit PreActivationUnit ResNet ResNet18 ResNet34 ResNet50
    ResNet101 ResNet152 Run train Batch TrainState eval_step train_step inspection interop
"""

# A line for each way of calling: only the number of arguments and their keywords matter here.
CALLS = """
rj.AugmentConfig(crop=2, randaugment=1, mixup=0.2)
rj.DataConfig(name="mnist_5k", subset=(120, 50, 30), dir="photos", image_size=32)
rj.ModelConfig(width=4, lowering="reference")
rj.OptimConfig(learning_rate=0.05)
rj.TrainConfig(model=0, data=0, augment=0, optim=0, epochs=2, batch_size=20, seed=1, init_from="")
rj.load_dataset("mnist_5k")
rj.load_dataset("folder", "photos", size=32, fit="crop", streaming="always")
rj.train(config, "runs/tiny")
rj.train(config, "runs/tiny", quiet=True)
rj.Run.open("runs/tiny")
rj.Run.metrics(run)
rj.Run.variables(run, "best")
rj.Run.predict(run, images)
rj.Run.evaluate(run, "test")
rj.Run.evaluate(run, "test", "latest")
rj.Run.split(run, "test")
rj.Run.preprocess(run, images)
rj.ResNet18(num_classes=10)
rj.ResNet18(num_classes=10, residual=False)
rj.ResNet34(num_classes=10)
rj.ResNet50(num_classes=1000)
rj.ResNet(stage_sizes=(1, 1), unit=unit, num_classes=2, width=8, stem="small", lowering="reference")
rj.ResNet(stage_sizes=(1, 1), unit=unit, num_classes=2, width=8, residual=False, norm=norm)
rj.ResNet.__call__(model, images, train=False)
rj.BasicUnit(features=8, conv=conv, norm=norm, strides=2)
rj.BasicUnit(features=8, conv=conv, norm=norm, residual=False)
rj.BasicUnit(8, conv, norm, zero_init_last=True)
rj.BasicUnit.__call__(unit, x, train=True)
rj.BottleneckUnit(64, conv, norm)
rj.PreActivationUnit(8, conv, norm, zero_init_last=True)
rj.TrainState.create(model, optimizer, key, images)
rj.TrainState.create(model, optimizer, key, images, ema=True)
rj.Batch(images, labels)
rj.train_step(state, batch, label_smoothing=0.1)
rj.train_step(state, batch, ema=0.999)
rj.eval_step(state, batch)
rj.inspection.examine(run)
rj.inspection.explain(run, images)
rj.inspection.explain(run, images, labels, stage="stage1")
rj.inspection.overlay(images, maps)
rj.inspection.grad_cam(model, variables, pixels)
rj.inspection.feature_maps(model, variables, pixels)
rj.inspection.embedding(features)
rj.inspection.confusion_matrix(labels, predictions, 10)
rj.inspection.calibration(probabilities, labels)
rj.inspection.compare_runs(runs)
plots.curves(metrics)
plots.confusion(confusion, class_names)
plots.reliability(calibration)
plots.mistakes(found, count=8)
plots.feature_maps(maps, image)
plots.filters(kernel)
plots.embedding(points, found)
rj.interop.load_weights("resnet50.safetensors")
rj.interop.from_torchvision(state_dict)
rj.interop.from_torchvision(state_dict, residual=False)
rj.interop.from_torchvision(state_dict, num_classes=10, in_channels=1)
Dataset.of("stripes", train, validation, test, class_names=("along", "across"))
Dataset.of("again", train, validation, test, ("along", "across"))
Split(images, labels)
IndexStream(num_examples=320, batch_size=32, seed=0)
IndexStream.steps(stream, epochs=6)
IndexStream.batch(stream, 0)
augment(pixels, key, erase=0.2)
preprocess(images, mean=0.5, std=0.25)
Conv(8, 3, lowering="reference", name="conv1")
Conv(features=4, kernel_size=3, strides=2, lowering="reference")
BatchNorm()
BatchNorm(name="norm1")
BatchNorm.__call__(norm, x, train=True)
Affine(scale_init=0, dtype=0, param_dtype=0)
summarize(model, (28, 28, 1))
Checkpoints(path)
Checkpoints.save(checkpoints, state, validation=None)
Checkpoints.restore(checkpoints, state, 60)
Checkpoints.good_steps(checkpoints)
make_model(config, num_classes=10)
"""


@functools.cache
def own_loop() -> tuple[Any, Any, Any]:
    """The state of a loop of one's own, and the shapes that a step and an evaluation return."""
    images = jnp.zeros((2, 12, 12, 1))
    model = rj.ResNet(
        stage_sizes=(1,), unit=rj.BasicUnit, num_classes=2, width=8, lowering="reference"
    )
    create = functools.partial(rj.TrainState.create, model, optax.sgd(0.1))
    state = jax.eval_shape(create, jax.random.key(0), images)
    batch = rj.Batch(images, jnp.zeros(2, jnp.int32))
    train = functools.partial(rj.train_step, label_smoothing=0.1)
    _, metrics = jax.eval_shape(train, state, batch)
    return state, metrics, jax.eval_shape(rj.eval_step, state, batch)


# The objects that the blocks hold, and what they ask them for.
MEMBERS = {
    "run": "class_names config metrics model path predict variables",
    "run.evaluate('test')": "accuracy confusion count",
    "rj.inspection.examine(run)": (
        "calibration class_names evaluation features images maps mistakes probabilities"
    ),
    "rj.inspection.calibration([[0.4, 0.6]], [1])": "ece",
    "run.metrics()": (
        "accuracy checkpoint epoch grad_norm kind last learning_rate loss seconds split step"
    ),
    "rj.load_dataset('mnist_5k')": (
        "class_names fingerprint image_shape num_classes test train validation"
    ),
    "rj.load_dataset('mnist_5k').test": "__len__ images labels",
    "rj.load_dataset('folder', str(PICTURES), size=8, streaming='always').train": "__len__ take",
    "own_loop()[0]": "first_bad_step params step variables",
    "own_loop()[1]": "accuracy loss",
    "own_loop()[2]": "confusion loss",
    "summarize(rj.ResNet18(num_classes=10), (28, 28, 1))[0]": "multiply_adds name parameters",
    "Unit(8, Conv, BatchNorm)": (
        "conv expansion features groups norm param preactivation residual shortcut strides "
        "widening zero_init_last"
    ),
    "Checkpoints(run.path / 'checkpoints')": "directory",
    "rj.ResNetJaxError('reason')": "exit_code",
}

# Of each command: its options in shell blocks and in the text.
OPTIONS = {
    "train": """
        --accumulate --augment.crop --augment.cutmix --augment.elastic --augment.erase
        --augment.flip --augment.magnitude --augment.mixup --augment.randaugment
        --augment.resized-crop
        --augment.rotation --augment.scale --augment.shear --augment.shift --batch-size
        --compilation-cache --coordinator --data.background --data.center-crop --data.dir --data.fit
        --data.from-idx --data.image-size --data.mean --data.memory-limit --data.name
        --data.read-size --data.skip-bad --data.std --data.streaming --data.subset
        --data.subset-seed --data.validation --data.workers --distributed --ema --epochs
        --eval-every --init-from --init-head --label-smoothing --log-every --matmul-precision
        --meet-within --model.dtype --model.frozen-stages --model.name --model.no-residual
        --model.remat --model.zero-init-last --no-report --num-processes --optim.body-rate
        --optim.clip-norm --optim.learning-rate --optim.warmup --patience --process-id --run-dir
        --seed --seeds --target --tensorboard""",
    "evaluate": "--data.dir --json",
    "predict": "--csv --explain --invert --json --topk",
    "report": "--data.dir",
    "compare": "--json --output",
    "summary": "--channels --image-size --num-classes",
    "data": "--dir",
    "verify": "--data.background --data.dir",
    "export": "--format --output",
    "demo": "--port",
}
# Options of `train` that are no settings of the run.
NO_FIELDS = """
    --coordinator --data.from-idx --distributed --meet-within --no-report --num-processes
    --process-id --run-dir --seeds
"""
PRESETS = """
    quickstart book mnist fashion_mnist fast cifar10 imagenet folder resnet20_cifar10 cifar10_fast
"""
CHANGEABLE = """
    compilation-cache data.dir data.memory-limit data.streaming data.workers
    eval-every log-every model.remat patience target tensorboard
"""

# Paths in the tree of a network's variables, the places of its parameters in every checkpoint.
TREE = """
    params/stem/conv/kernel params/stem/norm/scale params/stem/norm/bias batch_stats/stem/norm/mean
    batch_stats/stem/norm/var params/stage1_unit1/conv1/kernel params/stage1_unit1/norm1/scale
    params/stage1_unit1/conv2/kernel params/stage1_unit1/norm2/bias
    params/stage2_unit1/shortcut_conv/kernel params/stage2_unit1/shortcut_norm/scale
    params/head/kernel params/head/bias
"""
MAPS = "stem stage1 stage2"


def missing(expected: str, found: Any) -> set[str]:
    return set(expected.split()) - set(found)


def test_public_names():
    for name in NAMES.split():
        assert hasattr(rj, name), name


@pytest.mark.parametrize("line", CALLS.split("\n")[1:-1])
def test_calls(line):
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    function = eval(ast.unparse(call.func))
    keywords = dict.fromkeys(str(keyword.arg) for keyword in call.keywords)
    inspect.signature(function).bind(*call.args, **keywords)


@pytest.mark.parametrize("what", MEMBERS)
def test_members(what, finished_run):
    thing = eval(what, globals() | {"run": finished_run})
    for name in MEMBERS[what].split():
        assert hasattr(thing, name), f"{type(thing).__name__} of {what} has no {name}"


@pytest.mark.parametrize("command", OPTIONS)
def test_options(command):
    assert not missing(OPTIONS[command], options(command))


def test_fields_of_the_configuration():
    for option in set(OPTIONS["train"].split()) - set(NO_FIELDS.split()):
        field = option.removeprefix("--").replace(".no-", ".").replace("-", "_")
        value: Any = rj.TrainConfig()
        for name in field.split("."):
            assert hasattr(value, name), field
            value = getattr(value, name)


def test_values_of_settings():
    rj.DataConfig(name="folder", dir="photos", streaming="always", fit="crop", read_size=256)
    rj.DataConfig(streaming="never", fit="pad", memory_limit=2.0, workers=2, background=255)
    for dtype in ("float32", "bfloat16", "float64"):
        rj.ModelConfig(name="resnet50", dtype=dtype, stem="small", initializer="torch")
    for schedule in ("constant", "cosine", "one_cycle", "piecewise"):
        rj.OptimConfig(name="adamw", schedule=schedule, warmup=0.2, body_rate=0.1)
    for head in ("auto", "keep", "fresh"):
        rj.TrainConfig(init_from="resnet50.safetensors", init_head=head, matmul_precision="high")


def test_places_of_parameters_and_names_of_maps():
    model = rj.ResNet(stage_sizes=(1, 1), unit=rj.BasicUnit, num_classes=2, width=8)
    images = jnp.zeros((1, 12, 12, 1))
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    places = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(variables)
    }
    assert not missing(TREE, places)
    maps = functools.partial(rj.inspection.feature_maps, model)
    assert not missing(MAPS, jax.eval_shape(maps, variables, images))


def test_presets_and_what_may_change():
    assert not missing(PRESETS, rj.PRESETS)
    assert not missing(CHANGEABLE, MAY_CHANGE)
