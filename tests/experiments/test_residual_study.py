"""The residual study: what it measures against definitions, what its pages say against the data."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import resnet_jax as rj
from experiments.residual_study import __main__ as command
from experiments.residual_study.analysis import Study, interval
from experiments.residual_study.measure import (
    gradient_norms,
    rounded,
    shortcut_shares,
    without_units,
)
from experiments.residual_study.report import MARK, PAGES, filled
from experiments.residual_study.results import append, read
from experiments.residual_study.study import Network, quick_runs, runs
from resnet_jax.models import Affine

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).normal(size=(3, 12, 12, 1)).astype(np.float32)
UNITS = ["stage1_unit1", "stage1_unit2", "stage2_unit1"]


def small(residual: bool, stage_sizes=(2, 1)) -> rj.ResNet:
    return rj.ResNet(
        stage_sizes=stage_sizes,
        unit=rj.BasicUnit,
        width=4,
        residual=residual,
        stem="small",
        norm=Affine,
        lowering="reference",
    )


@pytest.fixture(scope="module")
def variables():
    """Of the residual network; the plain one has the same but for the projection."""
    model = small(residual=True)
    return jax.jit(partial(model.init, train=False))(jax.random.key(0), IMAGES)


def logits_without(model: rj.ResNet, variables, unit: int | None) -> np.ndarray:
    kept = np.ones(len(UNITS), np.float32)
    if unit is not None:
        kept[unit] = 0
    with nn.intercept_methods(without_units(kept, UNITS)):
        return np.asarray(jax.jit(partial(model.apply, train=False))(variables, IMAGES))


@pytest.mark.parametrize("unit", [0, 2])
def test_a_residual_unit_left_out_is_one_whose_branch_is_zero(variables, unit):
    model, name = small(residual=True), UNITS[unit]
    last = jax.tree.map(jnp.zeros_like, variables["params"][name]["norm2"])
    params = {**variables["params"], name: {**variables["params"][name], "norm2": last}}
    expected = jax.jit(partial(model.apply, train=False))({"params": params}, IMAGES)
    found = logits_without(model, variables, unit)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.abs(found - logits_without(model, variables, None)).max() > 1e-3


def test_a_plain_unit_left_out_leaves_the_network_without_it(variables):
    params = dict(variables["params"])
    shorter = {**params, "stage1_unit1": params.pop("stage1_unit2")}
    expected = jax.jit(partial(small(residual=False, stage_sizes=(1, 1)).apply, train=False))(
        {"params": shorter}, IMAGES
    )
    found = logits_without(small(residual=False), variables, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # One that changes the shape stays.
    whole, without_last = (logits_without(small(False), variables, unit) for unit in (None, 2))
    np.testing.assert_array_equal(whole, without_last)


def test_shares_follow_the_scale_of_the_branch(variables):
    model = small(residual=True)

    def shares(factor: float) -> np.ndarray:
        params = variables["params"]
        first = params["stage1_unit1"]
        scaled = jax.tree.map(lambda p: factor * p, first["norm2"])
        params = {**params, "stage1_unit1": {**first, "norm2": scaled}}
        look = jax.jit(lambda p: shortcut_shares(model, {"params": p}, IMAGES, UNITS))
        return np.asarray(look(params))

    share = shares(1.0)
    assert ((share > 0.05) & (share < 0.95)).all()
    # s / (s + b) with the branch doubled: its energy b is four times as large.
    expected = share[0] / (share[0] + 4 * (1 - share[0]))
    np.testing.assert_allclose(shares(2.0)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(shares(0.0)[0], 1.0, rtol=1e-6)


def test_gradient_norms_are_kept_and_the_gradient_passes():
    tx = optax.chain(gradient_norms(), optax.sgd(1.0))
    params = {"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}
    grads = {"a": jnp.array([[3.0], [4.0]]), "b": jnp.array([1.0, -2.0, 2.0])}
    updates, state = tx.update(grads, tx.init(params), params)
    assert jax.tree.map(float, state[0]) == {"a": 5.0, "b": 3.0}
    np.testing.assert_array_equal(updates["b"], [-1.0, 2.0, -2.0])


def test_names_of_a_network_are_those_of_its_parameters():
    network = Network(34, residual=True, width=4)
    module = network.module(quick_runs()[0].config)
    shapes = jax.eval_shape(
        partial(module.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 1))
    )
    assert len(network.kernels) == 34
    assert set(network.units) == set(shapes["params"]) - {"stem", "head"}
    for path in network.kernels:
        part = shapes["params"]
        for name in (*path, "kernel"):
            part = part[name]


def test_a_line_that_a_kill_tore_is_done_again(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, {"seed": 0})
    with path.open("a") as file:
        file.write('{"seed": 1, "te')
    append(path, {"seed": 2})
    assert read(path) == [{"seed": 0}, {"seed": 2}]


def test_numbers_that_are_not_finite_become_null():
    assert rounded({"loss": [float("nan"), 1234.56], "step": 79}) == {
        "loss": [None, 1235.0],
        "step": 79,
    }


def rows_of(residual: bool, accuracies: dict[int, float]) -> list[dict]:
    key = {"setting": "book", "layers": 18, "residual": residual, "rate": 0.005, "norm": "batch"}
    return [{**key, "seed": s, "test": {"accuracy": a}} for s, a in accuracies.items()]


def test_differences_are_paired_by_seed(tmp_path):
    path = tmp_path / "results.jsonl"
    # Seed 3 has one side only. The differences of the others: 2, 3, 4 points.
    for row in rows_of(True, {0: 0.92, 1: 0.83, 2: 0.74, 3: 0.1}) + rows_of(
        False, {2: 0.70, 1: 0.80, 0: 0.90}
    ):
        append(path, row)
    study = Study(path)
    assert study.gain("book", 18, 0.005).startswith("+3.0 points (+2.")
    assert study.gain("book", 18, 0.005).endswith(", 3 seeds)")
    assert study.accuracy("book", "plain", 18, 0.005) == "80.0 ± 10.0 % (3 seeds)"
    assert study.gain("book", 34, 0.005) == "not yet measured"


def test_the_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = [
        low <= 0 <= high for low, high in (interval(random.normal(size=40)) for _ in range(40))
    ]
    assert 0.85 <= np.mean(covered) <= 1.0
    assert interval(np.array([2.0, 2.0])) == (2.0, 2.0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_number_of_the_pages_is_that_of_the_data(page):
    text = page.read_text()
    assert MARK.search(text), "no number in it comes from the data"
    assert filled(text, Study()) == text, "run python -m experiments.residual_study.report"


def test_no_number_stands_in_the_answers_but_by_an_expression():
    page = PAGES[0].read_text()
    answers = re.findall(r"^\*\*Answer.*?(?=\n\n)", MARK.sub("", page), re.MULTILINE | re.DOTALL)
    assert len(answers) >= 8
    for answer in answers:
        assert not re.search(r"\d+\.?\d* (points|%)", answer), answer


def test_results_are_of_runs_of_the_study_each_once():
    wanted = [run.key for run in runs()]
    frame = Study().frame
    keys = [{name: row[name] for name in wanted[0]} for row in frame.to_dict("records")]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    assert all(key in wanted for key in keys)


def quick(results: Path, *options: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "experiments.residual_study", "--quick"]
    subprocess.run(
        [*program, "--results", results, *options], check=True, env=environment, cwd=ROOT
    )


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("study") / "quick.jsonl"
    quick(path)
    return path


def without_times(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read(path)]


@pytest.mark.slow
def test_quick_gives_the_same_numbers_twice_also_after_a_kill(quick_results, tmp_path):
    again, network = tmp_path / "again.jsonl", "book/residual-10/"
    lines = quick_results.read_text().splitlines(keepends=True)
    # As a kill leaves it: one run done and half of the next one's line.
    again.write_text(lines[0] + lines[1][:100])
    quick(again, "--only", network)
    keys = [run.key for run in quick_runs() if network in str(run)]
    first, second = (
        {str(key): row for row in without_times(path) for key in keys if key.items() <= row.items()}
        for path in (quick_results, again)
    )
    assert len(first) == len(keys) > 8
    assert first == second


@pytest.mark.slow
def test_a_run_of_the_study_is_a_run_of_the_package(tmp_path):
    from experiments.residual_study.measure import Laboratory, carry_out
    from experiments.residual_study.study import Run

    run = Run("book", Network(18, True, "batch", 4), 0.005, seed=3, quick=True)
    lab, data = Laboratory(run.network, run.config), command.load(run.config)
    result = carry_out(run, lab, data)
    # Learning rate and seed are no constants: one program.
    carry_out(Run("book", run.network, 0.01, seed=4, quick=True), lab, data)
    assert lab.step._cache_size() == 1
    config = dataclasses.replace(
        run.config,
        model=dataclasses.replace(run.config.model, width=4),
        seed=3,
        log_every=1,
    )
    metrics = rj.train(config, tmp_path / "run", quiet=True).metrics()
    losses = metrics[metrics["kind"] == "train"]["loss"]
    np.testing.assert_allclose(result["train"]["loss"], losses, rtol=1e-3)


@pytest.mark.slow
def test_figures_are_drawn_from_any_results(quick_results):
    from experiments.residual_study.figures import FIGURES

    study = Study(quick_results)
    for name, draw in FIGURES.items():
        axes = [a for a in draw(study).axes if a.lines]
        assert axes, f"{name} shows nothing"


@pytest.mark.slow
def test_the_notebook_runs_top_to_bottom(quick_results, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "experiments/results.ipynb", as_version=4)
    environment = {"RESIDUAL_STUDY": str(quick_results), "RUN": str(tmp_path / "run"), "QUICK": "1"}
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        NotebookClient(
            book, timeout=300, resources={"metadata": {"path": str(ROOT / "experiments")}}
        ).execute()
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    pictures = [
        output
        for cell in book.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 7
