"""The residual study: its measurements equal definitions and the package's own runs."""

import dataclasses
import json
import re
import threading
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import resnet_jax as rj
from experiments.measuring import append_row, read_rows
from experiments.residual_study import __main__ as command
from experiments.residual_study import torchvision
from experiments.residual_study.analysis import Study
from experiments.residual_study.study import QUICK_SETTINGS, RESULTS, Run, keeps_shape, units_of
from experiments.tables import ROOT
from resnet_jax.config import replaced
from resnet_jax.models import VARIANTS, Affine, BatchNorm, shapes_of

IMAGES = np.random.default_rng(0).normal(size=(3, 12, 12, 1)).astype(np.float32)
UNITS = ["stage1_unit1", "stage1_unit2", "stage2_unit1"]
SMALL = {"unit": rj.BasicUnit, "width": 4, "stem": "small", "lowering": "reference"}
RESIDUAL = rj.ResNet(stage_sizes=(2, 1), norm=Affine, **SMALL)
NETWORKS = [
    RESIDUAL.clone(norm=norm, residual=r) for norm in (Affine, BatchNorm) for r in (False, True)
]


def trained(model: rj.ResNet):
    """Return a network's variables, with scales, biases and statistics as training moves them."""
    draw = np.random.default_rng(1)

    def moved(path, leaf):
        if path[-1].key == "kernel":
            return draw.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        low = 0.5 if path[-1].key in ("scale", "var") else -0.5
        return draw.uniform(low, low + 1, leaf.shape)

    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    return jax.tree.map(np.float32, jax.tree_util.tree_map_with_path(moved, shapes))


@pytest.fixture(scope="module")
def params():
    return trained(RESIDUAL)["params"]


@partial(jax.jit, static_argnums=0)
def logits(model: rj.ResNet, variables) -> jax.Array:
    return model.apply(variables, IMAGES, train=False)


def logits_without(model: rj.ResNet, variables, unit: int) -> jax.Array:
    return logits(model, command.without(variables, UNITS[unit], model.residual))


@pytest.mark.parametrize(
    "model",
    [pytest.param(m, marks=[pytest.mark.slow] * (n in (0, 3))) for n, m in enumerate(NETWORKS)],
)
def test_a_unit_left_out_leaves_the_network_without_it(model):
    variables = trained(model)
    shorter = {name: {**tree} for name, tree in variables.items()}
    for tree in shorter.values():
        tree["stage1_unit1"] = tree.pop("stage1_unit2")
    expected = logits(model.clone(stage_sizes=(1, 1)), shorter)
    found = logits_without(model, variables, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.abs(found - logits(model, variables)).max() > 1e-3


def test_a_residual_unit_left_out_keeps_its_projection(params):
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    look = jax.jit(partial(RESIDUAL.apply, train=False, **options))
    _, inside = look({"params": params}, IMAGES)
    (shortcut,) = inside["intermediates"][UNITS[2]]["shortcut_norm"]["__call__"]
    expected = nn.relu(shortcut).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    found = logits_without(RESIDUAL, {"params": params}, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_shares_follow_the_scale_of_the_branch(params):
    @jax.jit
    def look(factor):
        last = jax.tree.map(lambda p: factor * p, params[UNITS[0]]["norm2"])
        scaled = {**params, UNITS[0]: {**params[UNITS[0]], "norm2": last}}
        return command.shortcut_shares(RESIDUAL, {"params": scaled}, IMAGES, UNITS)

    one, two, none = map(look, (1.0, 2.0, 0.0))
    assert ((one > 0.05) & (one < 0.95)).all()
    # The share is s / (s + b); if the branch is doubled, its energy b is four times as large.
    np.testing.assert_allclose(two[0], one[0] / (one[0] + 4 * (1 - one[0])), rtol=1e-5)
    np.testing.assert_allclose(none[0], 1.0, rtol=1e-6)


def test_gradient_norms_are_kept_and_the_gradient_passes():
    tx = optax.chain(command.gradient_norms(), optax.sgd(1.0))
    params = {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}
    grads = {"a": jnp.array([[3.0], [4.0]]), "b": jnp.array([1.0, -2.0, 2.0])}
    updates, state = tx.update(grads, tx.init(params), params)
    assert jax.tree.map(float, state[0]) == {"a": 5.0, "b": 3.0}
    np.testing.assert_array_equal(updates["b"], [-1.0, 2.0, -2.0])


def test_names_of_a_network_are_those_of_its_parameters():
    network = Run("book", 18, True, "batch", width=4, rate=0.005, seed=0)
    places = shapes_of(network.module(QUICK_SETTINGS["book"]), (32, 32, 1))
    assert len(network.kernels) == 18
    assert {"stem", *network.units, "head"} == {path[1] for path in places}
    assert {("params", *kernel, "kernel") for kernel in network.kernels} <= places.keys()


def test_numbers_that_are_not_finite_become_null():
    found = command.rounded({"loss": [float("nan"), 1234.56], "step": 79})
    assert found == {"loss": [None, 1235.0], "step": 79}


def test_differences_are_paired_by_seed(tmp_path):
    path = tmp_path / "results.jsonl"
    key = {"setting": "book", "layers": 18, "rate": 0.005, "norm": "batch"}
    # Seed 3 has one side only. The other seeds differ by 2, 3 and 4 points.
    by_seed = {2: (0.74, 0.70), 0: (0.92, 0.90), 1: (0.83, 0.80), 3: (0.1, None)}
    for seed, accuracies in by_seed.items():
        for residual, accuracy in zip((True, False), accuracies, strict=True):
            if accuracy:
                row = {"residual": residual, "seed": seed, "test": {"accuracy": accuracy}}
                append_row(path, key | row)
    study = Study(path)
    # 4.30 standard errors of 1 / sqrt(3)
    assert study.gain("book", 18, 0.005) == "+3.0 points (+0.5 to +5.5, 3 seeds)"
    assert study.accuracy("book", "plain", 18, 0.005) == "80.0 ± 10.0 % (3 seeds)"
    assert study.gain("book", 34, 0.005) == "not yet measured"


@pytest.mark.slow
def test_quick_gives_the_same_numbers_twice_also_after_a_kill(tmp_path):
    def rows(path: Path, networks: str) -> list[dict]:
        only = f"^book/({networks})/0.005/"
        command.main(["--quick", "--results", str(path), "--only", only])
        return [row | {"seconds": 0} for row in read_rows(path)]

    once, again = tmp_path / "once.jsonl", tmp_path / "again.jsonl"
    first = rows(once, "residual-10|plain-10-without-norm")
    lines = once.read_text().splitlines(keepends=True)
    # As a kill leaves it: one run done and half of the next one's line.
    again.write_text(lines[0] + lines[1][:100])
    assert rows(again, "residual-10") == [row for row in first if row["residual"]]
    assert [row["residual"] for row in first] == [True, False] * 2
    assert any(row["removal"]["whole"] not in row["removal"]["without"] for row in first)
    for row in first:
        gaps = [accuracy is None for accuracy in row["removal"]["without"]]
        # Only a plain unit that changes the shape cannot be left out.
        assert gaps == [not row["residual"] and not keeps_shape(u) for u in units_of(row["layers"])]


@pytest.mark.slow
def test_a_run_of_the_study_is_a_run_of_the_package(tmp_path, monkeypatch):
    """The run has one unit for each stage, and a learning rate that rises and falls."""
    monkeypatch.setitem(VARIANTS, "resnet18", partial(rj.ResNet, (1, 1, 1, 1), rj.BasicUnit))
    run = Run("stronger", 10, True, "batch", width=4, rate=0.02, seed=3)
    config = QUICK_SETTINGS["stronger"]
    lab = command.Laboratory(run, config)
    result = command.carry_out(run, lab)
    compiled: list[str] = []
    listen = jax.monitoring.register_event_duration_secs_listener
    here = threading.get_ident()  # others may still compile a step of an earlier test
    listen(lambda name, *_, **__: threading.get_ident() == here and compiled.append(name))
    command.carry_out(dataclasses.replace(run, rate=0.01, seed=4), lab)
    # Learning rate and seed are not constants of the program, so that one serves all runs.
    assert not [name for name in compiled if "backend_compile" in name]
    same = {"model.width": 4, "optim.learning-rate": 0.02, "seed": 3, "log-every": 1}
    metrics = rj.train(replaced(config, same), tmp_path / "run", quiet=True).metrics()
    losses = metrics[metrics["kind"] == "train"]["loss"]
    np.testing.assert_allclose(result["train"]["loss"], losses, rtol=1e-3)


@pytest.mark.slow
def test_figures_are_drawn_from_any_results(tmp_path):
    """Draw from all results of the study, and from those of its first networks alone."""
    from experiments.residual_study.figures import FIGURES  # importing Matplotlib takes a second

    lines = RESULTS.read_text().splitlines(keepends=True)
    beginning = tmp_path / "beginning.jsonl"
    beginning.write_text("".join(line for line in lines if json.loads(line)["layers"] == 18))
    for path in (RESULTS, beginning):
        for name, draw in FIGURES.items():
            assert [a for a in draw(Study(path)).axes if a.lines], f"{name} shows nothing"


def test_the_notebook_shows_nothing_of_the_machine():
    """It shows no absolute path and no object's address."""
    assert not re.search(r" at 0x|[>']/\w+/", (ROOT / "experiments/results.ipynb").read_text())


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(ROOT / "experiments/results.ipynb", as_version=4)
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = {"metadata": {"path": str(ROOT / "experiments")}}
    nbclient.NotebookClient(book, timeout=300, resources=place).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 7


@pytest.mark.slow
def test_the_comparison_with_torchvision_is_the_one_on_the_page(monkeypatch):
    """Here only the smallest image is compared; the command compares all sizes."""
    monkeypatch.setattr(torchvision, "SIZES", torchvision.SIZES[:1])
    (found,) = torchvision.compare()["rows"]
    expected = json.loads(torchvision.RESULTS.read_text())["rows"][0]
    assert found["largest_difference"] < 1e-5 * found["largest_logit"]
    for name in ("size", "torchvision", "largest_logit", "same_class"):
        assert found[name] == expected[name]
    np.testing.assert_allclose(found["ours"], expected["ours"], rtol=1e-4)
