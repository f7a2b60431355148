"""A run that starts from other weights: which of them it takes, which move, and how fast."""

import dataclasses
import functools
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faults import saved
from flax import traverse_util
from make_datasets import refused

import resnet_jax as rj
from resnet_jax.interop import load_weights, save_weights, to_torchvision
from resnet_jax.interop.weights import initial_variables
from resnet_jax.models import make_model
from resnet_jax.training import loop
from resnet_jax.training.optim import make_optimizer
from resnet_jax.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_unit")

DIGITS = tuple("0123456789")
CONFIG = rj.TrainConfig(model=rj.ModelConfig(width=4, lowering="reference"))
KEY = jax.random.key(7)


def started(source, class_names=DIGITS, channels=1, **changes):
    """The variables that a run starts from, and the sentence."""
    config = dataclasses.replace(CONFIG, init_from=str(source), **changes)
    model = make_model(config, len(class_names))
    return initial_variables(config, model, class_names, channels, KEY)


def starting_from(*arguments, **changes):
    return started(*arguments, **changes)[0]


@functools.cache
def fresh_head(num_classes):
    """The kernel of a new network's head."""
    init = partial(make_model(CONFIG, num_classes).init, train=False)
    images = jnp.zeros((1, 32, 32, 1))
    return np.asarray(jax.jit(lambda key: init(key, images)["params"]["head"]["kernel"])(KEY))


def is_fresh(variables, num_classes):
    return np.array_equal(variables["params"]["head"]["kernel"], fresh_head(num_classes))


@pytest.fixture
def exported(run, tmp_path):
    return run.export("torchvision", tmp_path / "weights.safetensors")


@pytest.fixture(params=["run", "file"])
def source(request, run, exported):
    return run.path if request.param == "run" else exported


def test_the_same_classes_keep_the_head_and_others_start_fresh(run, source):
    variables = jax.device_get(run.variables())
    chex.assert_trees_all_equal(starting_from(source), variables)
    others = tuple("abcdefghij")
    assert is_fresh(starting_from(source, others), 10)
    chex.assert_trees_all_equal(starting_from(source, others, init_head="keep"), variables)
    assert is_fresh(starting_from(source, init_head="fresh"), 10)
    said = refused(starting_from, source, ("a", "b", "c"), init_head="keep")
    assert "knows 10 classes, mnist_5k has 3" in said
    three = starting_from(source, ("a", "b", "c"))
    assert is_fresh(three, 3)
    del three["params"]["head"], variables["params"]["head"]
    chex.assert_trees_all_equal(three, variables)


def test_weights_of_another_network_are_refused_by_the_options_that_differ(run, source):
    """The file was read: of its entries a plain network lacks but the shortcuts."""
    plain = dataclasses.replace(CONFIG.model, residual=False)
    assert "--model.residual True, not False" in refused(starting_from, source, model=plain)
    said = refused(starting_from, run.path, model=rj.ModelConfig(width=8, stem="small"))
    assert "--model.width 4, not 8, --model.stem" in said


def test_weights_of_pixels_normalised_in_another_way_say_so(source):
    def end(**data):
        _, sentence = started(source, data=dataclasses.replace(CONFIG.data, **data))
        return sentence.partition("statistics kept")[2]

    expected = "; they were trained with --data.mean 0.5 --data.std 0.5"
    assert end(mean=(0.1307,), std=(0.5,)) == expected
    assert end(mean=(0.5,), std=(0.5,)) == end() == ""


def test_without_class_names_the_number_decides(run, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, to_torchvision(run.variables()), {"class_names": "not JSON"})
    variables = jax.device_get(run.variables())
    chex.assert_trees_all_equal(starting_from(weights, tuple("abcdefghij")), variables)
    assert is_fresh(starting_from(weights, ("a", "b", "c")), 3)
    hostile = dict.fromkeys(("class_names", "model", "preprocessing"), "[" * 100000)
    save_weights(weights, to_torchvision(run.variables()), hostile)
    chex.assert_trees_all_equal(starting_from(weights, tuple("abcdefghij")), variables)
    # Names do without anything else.
    save_weights(weights, to_torchvision(run.variables()), {"class_names": json.dumps(DIGITS)})
    assert is_fresh(starting_from(weights, tuple("abcdefghij")), 10)


def test_reading_a_float64_run_is_reading_its_file_and_configures_nothing(make_run, tmp_path):
    source = make_run(dtype="float64")
    file = source.export("torchvision", tmp_path / "weights.safetensors")
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    before = [jax.config.values[name] for name in names]
    for head in ("keep", "fresh"):
        read = [starting_from(start, init_head=head) for start in (file, source.path)]
        chex.assert_trees_all_equal(*read)
        assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype(np.float32)}
    assert [jax.config.values[name] for name in names] == before


@pytest.mark.parametrize(
    ("given", "channels", "classes", "said"),
    [
        (1, 1, DIGITS, "head kept, stem kept, "),
        (3, 1, DIGITS, "head kept, stem summed to grey, "),
        (1, 3, ("a", "b", "c"), "head drawn fresh for 3 classes, stem spread to 3 channels, "),
    ],
)
def test_a_sentence_says_what_became_of_the_weights(exported, given, channels, classes, said):
    if given == 3:
        weights = load_weights(exported)
        weights["conv1.weight"] = np.repeat(weights["conv1.weight"], 3, axis=1)
        save_weights(exported, weights)
    variables, sentence = started(exported, classes, channels)
    rest = "other layers and running statistics kept"
    assert sentence == f"starts from {exported}: {said}{rest}"
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    assert kernel.shape[2] == channels
    if given == 3:
        expected = weights["conv1.weight"].sum(1, keepdims=True).transpose(2, 3, 1, 0)
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert is_fresh(variables, len(classes)) == ("fresh" in said)


def test_a_runs_weights_are_read_without_its_optimiser_or_opening_it(finished_run):
    """The averaged ones: the run has an EMA."""
    alone = RunFolder(finished_run.path).read_variables("latest")
    chex.assert_trees_all_equal(alone, saved(finished_run.path / "checkpoints/12", "")["ema"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(alone))


def test_several_processes_start_from_the_same_weights(run, exported, tmp_path, monkeypatch):
    """A file of the same path may be another one on another host."""
    asked = []

    def noted(what, digest, _):
        asked.append((what, digest))
        if what == "weights with digest":
            raise rj.ResNetJaxError("that suffices")

    monkeypatch.setattr(loop, "assert_equal", noted)
    variables = run.variables()
    other = jax.tree.map(lambda leaf: leaf + 1, variables)
    for number, weights in enumerate((variables, variables, other)):
        rj.interop.save_weights(exported, rj.interop.to_torchvision(weights))
        config = dataclasses.replace(run.config, init_from=str(exported))
        with pytest.raises(rj.ResNetJaxError, match="that suffices"):
            rj.train(config, tmp_path / str(number), quiet=True)
    (first, again, differs) = (digest for what, digest in asked if what == "weights with digest")
    assert first == again != differs


def moved(before, after):
    """Layers any of whose numbers changed."""
    before, after = (traverse_util.flatten_dict(tree) for tree in (before, after))
    return {path[0] for path in before if (np.asarray(before[path]) != after[path]).any()}


@pytest.mark.parametrize(
    ("frozen", "unit"),
    [
        (1, rj.BasicUnit),
        # Of a pre-activation network the last norm went on learning with all stages frozen.
        (2, rj.PreActivationUnit),
        *(pytest.param(n, rj.BasicUnit, marks=pytest.mark.slow) for n in (None, 0)),
    ],
)
def test_frozen_stages_keep_parameters_and_statistics_to_the_bit(frozen, unit):
    # Weight decay and momentum too must leave them alone.
    settings = rj.OptimConfig(weight_decay=0.1, learning_rate=0.1, body_rate=0.5)
    tx = make_optimizer(settings, lambda step: 0.1, frozen)
    model = rj.ResNet((1, 1), unit, width=4, frozen_stages=frozen, lowering="reference")
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 1))
    state = rj.TrainState.create(model, tx, jax.random.key(0), images)
    step = jax.jit(rj.train_step)
    after = state
    for _ in range(2):
        after, _ = step(after, rj.Batch(images, np.arange(8, dtype=np.int32)))
    layers = ["stem", "stage1_unit1", "stage2_unit1", "head"]
    moving = set(layers[0 if frozen is None else frozen + 1 :])
    assert moved(state.params, after.params) == moving
    assert moved(state.batch_stats, after.batch_stats) == moving - {"head"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_body_moves_at_its_share_of_the_rate(name):
    params = {"head": {"kernel": jnp.ones((2, 2))}, "stem": {"kernel": jnp.ones((2, 2))}}
    grads = jax.tree.map(lambda x: 0.3 * x, params)

    def after_three_steps(body_rate):
        config = rj.OptimConfig(name=name, weight_decay=0.01, body_rate=body_rate)
        tx = make_optimizer(config, lambda step: 0.1)
        state, moving = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
            moving = optax.apply_updates(moving, updates)
        return jax.tree.map(lambda a, b: float((a - b).mean()), moving, params)

    full, slow = after_three_steps(1.0), after_three_steps(0.1)
    assert slow["head"]["kernel"] == full["head"]["kernel"]
    np.testing.assert_allclose(slow["stem"]["kernel"], 0.1 * full["stem"]["kernel"], rtol=1e-5)


def test_bad_weights_are_one_line_and_nothing_is_written(exported, tmp_path, tiny_options, refusal):
    exported.write_bytes(exported.read_bytes()[:-1])
    words = ["train", "--run-dir", tmp_path / "tuned", *tiny_options, "--init-from"]
    assert "damaged" in refusal(*words, exported)
    said = "is not a run, and holds weights.safetensors: give that file"
    assert said in refusal(*words, tmp_path)
    assert not (tmp_path / "tuned").exists()
