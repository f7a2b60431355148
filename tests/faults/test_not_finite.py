"""Numbers that are not finite are never a result."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import resnet_jax as rj
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.optim import make_optimizer


@pytest.fixture(scope="module")
def run_dir(finished_run, tmp_path_factory):
    """A run whose only checkpoint, before its end, has running statistics that are NaN."""
    folder = shutil.copytree(finished_run.path, tmp_path_factory.mktemp("nan") / "run")
    shutil.rmtree(folder / "checkpoints")
    tx = make_optimizer(finished_run.config.optim, optax.constant_schedule(0.1))
    images = jnp.zeros((1, 28, 28, 1))
    state = rj.TrainState.create(finished_run.model, tx, jax.random.key(0), images, ema=True)
    stats = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), state.batch_stats)
    averages = {**state.ema, "batch_stats": stats}
    state = state.replace(step=jnp.asarray(10), batch_stats=stats, ema=averages)
    Checkpoints(folder / "checkpoints").save(state, {"accuracy": 0.5, "loss": 1.0})
    return folder


@pytest.mark.parametrize(
    "words",
    [
        *("evaluate RUN --json", "predict RUN DIGIT --json", "predict RUN DIGIT --csv"),
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("evaluate RUN", "predict RUN DIGIT")),
    ],
)
def test_the_command_says_so(words, run_dir, tmp_path, command):
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "digit.png")
    places = {"RUN": run_dir, "DIGIT": tmp_path / "digit.png"}
    code, out, err = command(*(places.get(word, word) for word in words.split()))
    assert code == 1
    assert "not finite" in err
    assert "nan" not in out.lower()


def test_a_validation_that_is_not_finite_ends_the_run_and_is_not_recorded(run_dir):
    config = rj.Run.open(run_dir).config
    assert config.eval_every
    with pytest.raises(rj.ResNetJaxError, match="not finite"):
        rj.train(config, run_dir, quiet=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in rows)
