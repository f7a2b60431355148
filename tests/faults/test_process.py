"""What a process did before does not change a run, and a run does not change the process."""

import dataclasses
import json
import os

import jax
import pytest

import resnet_jax as rj

# Runs of two types and two matmul precisions, in an order that is given; prints a digest of each.
# One unit has all that a type or a precision may change.
RUNS = """
import dataclasses, functools, hashlib, json, os, sys
import jax, numpy as np
import resnet_jax as rj
from resnet_jax.models import VARIANTS
VARIANTS["resnet18"] = functools.partial(rj.ResNet, stage_sizes=(1,), unit=rj.BasicUnit)
BASE = rj.TrainConfig(
    model=rj.ModelConfig(width=2, lowering="reference"),
    data=rj.DataConfig(name="mnist_5k", subset=(40, 20, 20), mean=(0.1307,), std=(0.3081,)),
    augment=rj.AugmentConfig(shift=2, rotation=10, erase=0.5),
    optim=rj.OptimConfig(learning_rate=0.05), epochs=1, batch_size=20,
)
CONFIGS = {
    "float32": BASE,
    "float64": dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, dtype="float64")),
    "default": dataclasses.replace(BASE, matmul_precision="default"),
}
found = []
for number, name in enumerate(sys.argv[2:]):
    run = rj.train(CONFIGS[name], os.path.join(sys.argv[1], str(number)), quiet=True)
    leaves = jax.tree.leaves(run.variables("latest"))
    digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in leaves)).hexdigest()
    found.append(digest + str(leaves[0].dtype))
print(json.dumps(found))
"""


@pytest.fixture
def runs(python):
    """The digests of runs in one new process: the first is what that run is alone."""

    def run(folder, *names, **environment):
        return json.loads(python("-c", RUNS, folder, *names, **environment).stdout.splitlines()[-1])

    return run


def test_a_float32_run_after_a_float64_run_is_what_it_is_alone(tmp_path, runs):
    alone, other, after = runs(tmp_path, "float32", "float64", "float32")
    assert other.endswith("float64")
    assert after == alone


@pytest.mark.slow
def test_runs_in_one_process_after_any_other_are_what_they_are_alone(tmp_path, runs):
    """Two types and two matmul precisions, and an environment that sets x64."""
    a, b, c = "float32", "float64", "default"
    alone = {c: runs(tmp_path / "alone", c)[0]}
    # Each follows each other one, and begins a process.
    first, second = runs(tmp_path / "0", a, b, c, a), runs(tmp_path / "1", b, a, c, b)
    alone |= {a: first[0], b: second[0]}
    assert first == [alone[name] for name in (a, b, c, a)]
    assert second == [alone[name] for name in (b, a, c, b)]
    assert runs(tmp_path / "x64", a, b, JAX_ENABLE_X64="1") == [alone[a], alone[b]]


@pytest.fixture
def own_programs(tmp_path, monkeypatch):
    """Takes the compilation cache that the tests share away: runs set up their own."""
    cache = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("RESNET_JAX_CACHE_DIR", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache/compiled"
    jax.config.update("jax_compilation_cache_dir", cache)


def test_the_compilation_cache_does_not_grow_without_bound(tiny_config, own_programs, tmp_path):
    """At 2 GiB the oldest programs make room."""
    own_programs.mkdir(parents=True)
    for number in range(4):
        with (own_programs / f"old-{number}").open("wb") as file:
            file.truncate(2**30)  # takes no room on the disk
        os.utime(file.name, (1000 + number, 1000 + number))
    with pytest.raises(rj.ResNetJaxError):
        rj.train(dataclasses.replace(tiny_config, batch_size=7, accumulate=2), tmp_path / "run")
    assert {path.name for path in own_programs.glob("old-*")} == {"old-2", "old-3"}
