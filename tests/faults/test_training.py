"""Edge cases of training: frozen stages, schedules, and numbers that are not finite."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import yaml
from make_datasets import picture, refused

import resnet_jax as rj
from resnet_jax.config import replaced
from resnet_jax.data.augment import mix, preprocess
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.models import shapes_of
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.run_folder import RunFolder


@pytest.mark.parametrize(("stages", "frozen"), [(4, 5), (4, 6), (2, 3), (2, -1)])
def test_more_stages_than_there_are_cannot_be_frozen(stages, frozen):
    """With too many, batch norm was in evaluation mode while every parameter learnt."""
    model = rj.ResNet((1,) * stages, rj.BasicUnit, width=4, frozen_stages=frozen)
    assert f"got {frozen}" in refused(shapes_of, model, (8, 8, 1))


@pytest.mark.parametrize("total", [3, 4, 40])
def test_one_cycle_rises_however_long_its_warm_up(total):
    """If the warm-up rounded to the whole run, the rate stayed at a 25th of its maximum."""
    config = rj.OptimConfig(learning_rate=0.05, schedule="one_cycle", warmup=0.99)
    rates = jax.jit(jax.vmap(make_schedule(config, total)))(jnp.arange(total)).tolist()
    assert max(rates) == pytest.approx(0.05)
    assert rates == sorted(rates)


@pytest.fixture(scope="module")
def run_dir(finished_run, tmp_path_factory):
    """A run whose only checkpoint, before its end, has running statistics that are NaN."""
    folder = shutil.copytree(finished_run.path, tmp_path_factory.mktemp("nan") / "run")
    shutil.rmtree(folder / "checkpoints")
    tx = make_optimizer(finished_run.config.optim, optax.constant_schedule(0.1))
    variables = finished_run.variables()
    variables["batch_stats"] = jax.tree.map(lambda a: a * jnp.nan, variables["batch_stats"])
    state = rj.TrainState.of_variables(finished_run.model, variables, tx, ema=True)
    state = state.replace(step=jnp.asarray(10))
    Checkpoints(folder / "checkpoints").save(state, {"accuracy": 0.5, "loss": 1.0})
    return folder


@pytest.mark.parametrize(
    "words",
    [f"evaluate RUN{how}" for how in ("", " --json")]
    + [f"predict RUN DIGIT{how}" for how in ("", " --json", " --csv")]
    + ["report RUN"],
)
def test_the_command_says_so(words, run_dir, tmp_path, command):
    places = {"RUN": run_dir, "DIGIT": picture(tmp_path / "digit.png", 0, (28, 28), "L")}
    code, out, err = command(*(places.get(word, word) for word in words.split()))
    assert code == 1
    assert "not finite" in err
    assert "nan" not in out.lower()


def test_a_validation_that_is_not_finite_ends_the_run_and_is_not_recorded(run_dir):
    assert "not finite" in refused(rj.train, rj.Run.open(run_dir).config, run_dir, quiet=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_a_step_looks_at_no_line_of_a_long_history(own_run, tiny_config):
    """Count the package's lines that ten steps execute, which a busy machine does not change."""
    longer = replaced(tiny_config, {"epochs": 2 + 11 / 6, "eval-every": 100})
    # A program that the command's tests compile too.
    longer = dataclasses.replace(longer, optim=rj.OptimConfig(learning_rate=0.05))
    folder, metrics = RunFolder(own_run), own_run / "metrics.jsonl"
    folder.write_record(dataclasses.replace(folder.read_record(), config=longer))
    first, *others = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([first] * 600 + others))
    package, executed = str(Path(rj.__file__).parent), [0]

    def count(frame, event, _):
        executed[-1] += event == "line"
        return count if frame.f_code.co_filename.startswith(package) else None

    class Steps(rj.Callback):
        def on_step(self, step):
            executed.append(0)
            if not sys.gettrace():  # the first step is compiled by now
                sys.settrace(count)
                frame = sys._getframe(1)
                while frame := frame.f_back:
                    frame.f_trace = count(frame, "call", None)

    try:
        rj.train(longer, own_run, quiet=True, callbacks=[Steps()])
    finally:
        sys.settrace(None)
    assert len(executed) == 1 + 11
    assert 0 < sum(executed[1:-1]) < 3000  # lines in ten steps


def test_a_folder_is_normalised_by_its_own_images_and_finished_without_test_images(
    one_unit, tiny_options, tmp_path, command, refusal
):
    """MNIST's mean was used for every dataset; without test images, a run was never finished."""
    for seed in range(20):
        picture(tmp_path / "split/train" / "ab"[seed % 2] / f"{seed}.png", seed, (8, 8))
    train = ["train", *tiny_options, "--run-dir", tmp_path / "run", "--batch-size", 8]
    train += ["--data.name", "folder", "--data.dir", tmp_path / "split", "--data.subset", "None"]
    train += ["--data.validation", 2, "--augment.no-flip"]
    train += ["--epochs", 1, "--ema", "None"]
    assert command(*train)[0] == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["config"]["data"]
    data = rj.load_dataset("folder", tmp_path / "split", validation=2)
    pixels = data.train.images.reshape(-1, 3) / 255
    assert settings["mean"] == pytest.approx(pixels.mean(0), abs=1e-4)
    assert settings["std"] == pytest.approx(pixels.std(0), abs=1e-4)
    # The same command uses the mean that the run recorded, and has nothing left to do.
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    code, out, _ = command(*train)
    assert (code, "finished" in out) == (0, True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    # Another mean, given by the user, is another configuration.
    assert "data.mean" in refusal(*train, "--data.mean", "0.25")


def test_a_mean_of_other_channels_than_the_images_have_is_refused():
    """Three means turned a grey image into three channels; two for three failed to broadcast."""
    grey, mean = jnp.zeros((1, 4, 4, 1), jnp.uint8), jnp.array([0.5, 0.4, 0.3])
    assert "3 numbers for images of 1 channels" in refused(preprocess, grey, mean=mean)
    colours = jnp.zeros((1, 4, 4, 3), jnp.uint8)
    assert "2 numbers for images of 3 channels" in refused(preprocess, colours, std=mean[:2])
    assert preprocess(grey, mean=mean[:1], std=0.5).shape == (1, 4, 4, 1)


def test_the_step_of_a_state_is_one_to_sample_from():
    """A user's loop resumes so; a JAX scalar was unhashable, and int32 products could overflow."""
    sampler = EpochSampler(num_examples=5, batch_size=3, seed=0)
    for step in (np.int32(2), jnp.int32(2)):
        np.testing.assert_array_equal(sampler.batch(step), sampler.batch(2))


def test_a_mixed_label_of_a_byte_is_one_class_of_many():
    """One-hot labels of 8 bits marked every 256th class."""
    images, labels = jnp.zeros((2, 4, 4, 1)), jnp.array([5, 6], jnp.int8)
    _, mixed = mix(images, labels, jax.random.key(0), num_classes=300, mixup=0.2)
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
