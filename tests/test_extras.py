"""Each extra's features with that extra alone: whatever else is installed cannot be imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = pytest.mark.slow

ALONE = """
import importlib.metadata as metadata, sys, tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

extra, pyproject, *arguments = sys.argv[1:]
project = tomllib.loads(open(pyproject).read())["project"]
waiting = project["dependencies"] + project["optional-dependencies"].get(extra, [])
waiting = [(Requirement(text), "") for text in waiting]
allowed = set()
while waiting:
    requirement, of = waiting.pop()
    if requirement.marker and not requirement.marker.evaluate({"extra": of}):
        continue
    for part in {"", *requirement.extras}:
        name = canonicalize_name(requirement.name)
        if (name, part) not in allowed:
            allowed.add((name, part))
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # of an extra that is not installed
            waiting += [(Requirement(text), part) for text in needs]
names = {name for name, _ in allowed} | {"resnet-jax"}
blocked = {
    module
    for module, of in metadata.packages_distributions().items()
    if not names & set(map(canonicalize_name, of))
}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
assert "pytest" in blocked
if arguments[0] == "demo":
    import resnet_jax as rj
    from resnet_jax.demo.app import make_server
    make_server(rj.Run.open(arguments[1]))
else:
    from resnet_jax.cli import main
    sys.exit(main(arguments))
"""


@pytest.mark.parametrize(
    ("extra", "needs", "words"),
    [
        ("none", "jax", "export RUN --format torchvision --output OUT/a.safetensors"),
        ("none", "flatbuffers", "export RUN --format stablehlo --output OUT/a"),
        ("onnx", "onnxruntime", "export RUN --format onnx --output OUT/a.onnx"),
        pytest.param("none", "matplotlib", "report RUN", marks=SLOW),
        pytest.param("demo", "gradio", "demo RUN", marks=SLOW),
        pytest.param(
            "tensorboard", "tensorboardX", "train --tensorboard --run-dir OUT/run", marks=SLOW
        ),
    ],
)
def test_an_extra_alone_suffices(extra, needs, words, finished_run, tiny_options, tmp_path):
    pytest.importorskip(needs)
    run = shutil.copytree(finished_run.path, tmp_path / "copy")
    words = words.replace("RUN", str(run)).replace("OUT", str(tmp_path)).split()
    options = [*tiny_options, "--epochs", "0.2"] if words[0] == "train" else []
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, extra, str(pyproject), *words, *options],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
