"""Each extra's features work with that extra alone: no other package can be imported."""

from pathlib import Path

import pytest

from resnet_jax.errors import ResNetJaxError, importing

SLOW = pytest.mark.slow

ALONE = """
import contextlib, importlib.metadata as metadata, sys, tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

extra, pyproject, *commands = sys.argv[1:]
project = tomllib.loads(open(pyproject).read())["project"]
allowed = set()

def allow(needs, of=""):
    for need in map(Requirement, needs):
        name = canonicalize_name(need.name)
        if not need.marker or need.marker.evaluate({"extra": of}):
            for part in {"", *need.extras} - {part for known, part in allowed if known == name}:
                allowed.add((name, part))
                with contextlib.suppress(metadata.PackageNotFoundError):  # an extra's
                    allow(metadata.requires(name) or [], part)

allow(project["dependencies"] + project["optional-dependencies"].get(extra, []))
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
import worker
worker.shrink()
for command in commands:
    verb, *words = command.split()
    if verb == "demo":
        from resnet_jax.demo.app import make_server
        make_server(worker.rj.Run.open(*words))
    else:
        assert worker.main([verb, *words]) == 0, command
"""


EXPORT = "export run --output network --format"
TENSORBOARD = "train --tensorboard --run-dir new {options} --epochs 0.2"


@pytest.mark.parametrize(
    ("extra", "needs", "commands"),
    [
        ("none", "flatbuffers", [f"{EXPORT} torchvision", f"{EXPORT} stablehlo"]),
        pytest.param("onnx", "onnxruntime", [f"{EXPORT} onnx"], marks=SLOW),
        pytest.param("none", "matplotlib", ["report run"], marks=SLOW),
        pytest.param("demo", "gradio", ["demo run"], marks=SLOW),
        pytest.param("tensorboard", "tensorboardX", [TENSORBOARD], marks=SLOW),
    ],
)
def test_an_extra_alone_suffices(extra, needs, commands, own_run, tiny_options, python):
    pytest.importorskip(needs)
    commands = [command.format(options=" ".join(tiny_options)) for command in commands]
    project = Path(__file__).parents[1] / "pyproject.toml"
    python("-c", ALONE, extra, project, *commands, cwd=own_run.parent)


def test_a_package_of_another_version_is_not_called_missing():
    said = "the demo cannot be imported .cannot import name 'nothing' from 'json'"
    with pytest.raises(ResNetJaxError, match=said), importing("the demo", "'resnet_jax[demo]'"):
        from json import nothing  # noqa: F401
