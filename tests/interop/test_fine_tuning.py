"""Runs that start from other weights: which weights they take, which move, and how fast."""

import dataclasses
import functools
import json
import unicodedata
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

DIGITS, LETTERS = tuple("0123456789"), tuple("abcdefghij")
CONFIG = rj.TrainConfig(model=rj.ModelConfig(width=4, lowering="reference"))
KEY = jax.random.key(7)


def started(source, class_names=DIGITS, channels=1, **changes):
    """Return the variables that a run starts from, and the sentence that describes them."""
    config = dataclasses.replace(CONFIG, init_from=str(source), **changes)
    model = make_model(config, len(class_names))
    return initial_variables(config, model, class_names, channels, KEY)


def starting_from(*arguments, **changes):
    return started(*arguments, **changes)[0]


@functools.cache
def fresh_head(num_classes):
    """Return the kernel of a new network's head."""
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


@pytest.fixture(scope="module")
def variables(run):
    return jax.device_get(run.variables())


def test_grey_pictures_are_told_the_means_of_the_colours(exported):
    weights = load_weights(exported)
    weights["conv1.weight"] = np.repeat(weights["conv1.weight"], 3, axis=1)
    own = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    save_weights(exported, weights, {"preprocessing": json.dumps(own)})
    data = dataclasses.replace(CONFIG.data, mean=(0.5,), std=(0.25,))
    sentence = started(exported, data=data)[1]
    assert sentence.endswith("were trained with --data.mean 0.449 --data.std 0.226")
    own = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2, 0.2, 0.2]}
    save_weights(exported, weights, {"preprocessing": json.dumps(own)})
    data = dataclasses.replace(CONFIG.data, mean=(0.473367,), std=(0.2,))
    assert "trained with" not in started(exported, data=data)[1]  # its advice was followed


def test_the_same_classes_keep_the_head_and_others_start_fresh(source, variables):
    chex.assert_trees_all_equal(starting_from(source), variables)
    assert is_fresh(starting_from(source, LETTERS), 10)
    chex.assert_trees_all_equal(starting_from(source, LETTERS, init_head="keep"), variables)
    assert is_fresh(starting_from(source, init_head="fresh"), 10)
    said = refused(starting_from, source, LETTERS[:3], init_head="keep")
    assert "knows 10 classes, mnist_5k has 3" in said
    three = starting_from(source, LETTERS[:3])
    assert is_fresh(three, 3)
    three["params"]["head"] = variables["params"]["head"]
    chex.assert_trees_all_equal(three, variables)


def test_weights_of_another_network_are_refused_by_the_options_that_differ(run, source):
    """A plain network read the file of a residual one, of which it lacks only the shortcuts."""
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


def test_class_names_decide_and_without_them_their_number(variables, tmp_path):
    file, weights = tmp_path / "weights.safetensors", to_torchvision(variables)
    hostile = dict.fromkeys(("class_names", "model", "preprocessing"), "[" * 100000)
    infinite = {"preprocessing": f'{{"mean": [1{"0" * 400}], "std": [1]}}'}  # as a float
    for metadata in ({"class_names": "not JSON"}, hostile, infinite):
        save_weights(file, weights, metadata)
        chex.assert_trees_all_equal(starting_from(file, LETTERS), variables)
        assert is_fresh(starting_from(file, LETTERS[:3]), 3)
    # Names are decomposed in a folder that was copied from a Mac.
    mac, linux = (tuple(unicodedata.normalize(f, f"{k}é") for k in DIGITS) for f in ("NFD", "NFC"))
    save_weights(file, weights, {"class_names": json.dumps(mac)})
    chex.assert_trees_all_equal(starting_from(file, linux), variables)
    assert is_fresh(starting_from(file, LETTERS), 10)


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
    ("stem", "given", "channels", "classes", "said"),
    [
        # The deep stem's third convolution, of half the width, was taken for its first.
        ("deep", 3, 1, DIGITS, "head kept, stem summed to grey, "),
        ("imagenet", 1, 3, LETTERS[:3], "head drawn fresh for 3 classes, stem spread to 3 chan"),
    ],
)
def test_a_sentence_says_what_became_of_the_weights(
    make_run, tmp_path, stem, given, channels, classes, said
):
    exported = make_run(stem=stem).export("torchvision", tmp_path / "weights.safetensors")
    first, name = ("conv1", "conv1.0.weight") if stem == "deep" else ("conv", "conv1.weight")
    weights = load_weights(exported)
    weights[name] = np.repeat(weights[name], given, axis=1)
    save_weights(exported, weights)
    network = dataclasses.replace(CONFIG.model, stem=stem)
    variables, sentence = started(exported, classes, channels, model=network)
    assert sentence.startswith(f"starts from {exported}: {said}")
    assert sentence.endswith("other layers and running statistics kept")
    kernel = variables["params"]["stem"][first]["kernel"]
    assert kernel.shape[2] == channels
    if given == 3:
        expected = weights[name].sum(1, keepdims=True).transpose(2, 3, 1, 0)
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    assert is_fresh(variables, len(classes)) == ("fresh" in said)


def test_a_runs_weights_are_read_without_its_optimiser_or_opening_it(finished_run):
    """They are the averaged weights, because the run has an EMA."""
    alone = RunFolder(finished_run.path).read_variables("latest")
    chex.assert_trees_all_equal(alone, saved(finished_run.path / "checkpoints/12", "")["ema"])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(alone))


def test_several_processes_start_from_the_same_weights(
    run, exported, variables, tmp_path, monkeypatch
):
    """The same path may lead to different files on different hosts."""
    digests = []

    def noted(what, digest, _):
        if what == "weights with digest":
            digests.append(digest)
            raise rj.ResNetJaxError("that suffices")

    monkeypatch.setattr(loop, "assert_equal", noted)
    config = dataclasses.replace(run.config, init_from=str(exported))
    for more in (0, 0, 1):
        changed = jax.tree.map(lambda leaf, more=more: leaf + more, variables)
        save_weights(exported, to_torchvision(changed))
        assert "that suffices" in refused(rj.train, config, tmp_path / "new", quiet=True)
    assert digests[0] == digests[1] != digests[2]


def moved(before, after):
    """Return the layers in which any number changed."""
    before, after = (traverse_util.flatten_dict(tree) for tree in (before, after))
    return {path[0] for path in before if (np.asarray(before[path]) != after[path]).any()}


@pytest.mark.parametrize(
    ("frozen", "unit"),
    [
        (1, rj.BasicUnit),
        # A pre-activation network's last norm went on learning with all stages frozen.
        (2, rj.PreActivationUnit),
        *(pytest.param(n, rj.BasicUnit, marks=pytest.mark.slow) for n in (None, 0)),
    ],
)
def test_frozen_stages_keep_parameters_and_statistics_to_the_bit(frozen, unit, draw):
    # Weight decay and momentum must not change frozen stages either.
    settings = rj.OptimConfig(weight_decay=0.1, learning_rate=0.1, body_rate=0.5)
    tx = make_optimizer(settings, lambda step: 0.1, frozen)
    model = rj.ResNet((1, 1), unit, width=4, frozen_stages=frozen, lowering="reference")
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    state = rj.TrainState.of_variables(model, jax.device_put(draw(model, (8, 8, 1))), tx)
    step = jax.jit(rj.train_step)
    after = state
    for _ in range(2):
        after, _ = step(after, rj.Batch(images, np.arange(4, dtype=np.int32)))
    layers = ["stem", "stage1_unit1", "stage2_unit1", "head"]
    moving = set(layers[0 if frozen is None else frozen + 1 :])
    assert moved(state.params, after.params) == moving
    assert moved(state.batch_stats, after.batch_stats) == moving - {"head"}


def test_a_fresh_head_is_as_wide_as_the_last_convolution_of_the_last_of_ten_stages():
    """Sorted as text, the tenth stage is the second; other parts of a unit may start with conv."""
    units = {f"stage{n}_unit1": {"conv2": {"kernel": np.zeros((3, 3, 1, n))}} for n in (1, 9, 10)}
    units["stage10_unit1"]["convs_0"] = {"kernel": np.zeros((3, 3, 1, 5))}
    params = {"stem": {"conv": {"kernel": np.zeros((3, 3, 1, 1), np.float32)}}, **units}
    head = rj.interop.with_fresh_head({"params": params}, 4)["params"]["head"]
    assert head["kernel"].shape == (10, 4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_body_moves_at_its_share_of_the_rate(name):
    params = {layer: {"kernel": np.ones((2, 2))} for layer in ("head", "stem")}
    grads = jax.tree.map(lambda x: 0.3 * x, params)

    def after_three_steps(body_rate):
        config = rj.OptimConfig(name=name, weight_decay=0.01, body_rate=body_rate)
        tx = make_optimizer(config, lambda step: 0.1)
        state, moving = tx.init(params), params
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
            moving = optax.apply_updates(moving, updates)
        return [moving[layer]["kernel"] - 1 for layer in params]

    (full_head, full_stem), (head, stem) = after_three_steps(1.0), after_three_steps(0.1)
    np.testing.assert_array_equal(head, full_head)
    np.testing.assert_allclose(stem, 0.1 * full_stem, rtol=1e-5)


def test_bad_weights_are_one_line_and_nothing_is_written(exported, tmp_path, tiny_options, refusal):
    exported.write_bytes(exported.read_bytes()[:-1])
    words = ["train", "--run-dir", tmp_path / "tuned", *tiny_options, "--init-from"]
    assert "damaged" in refusal(*words, exported)
    said = "is not a run, and holds weights.safetensors: give that file"
    assert said in refusal(*words, tmp_path)
    assert not (tmp_path / "tuned").exists()
