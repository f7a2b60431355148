"""The pages of docs/ and the docstrings: their code runs, what they quote and name is there."""

import ast
import code
import contextlib
import doctest
import importlib
import io
import itertools
import re
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.models import shapes_of
from resnet_jax.settings import settings

ROOT = Path(__file__).parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]

# ```python runs; ```python quote is an excerpt of the package; ```text under a block is its output.
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    text: str
    line: int  # of the block's first line in the page


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(match[2].strip(), match[3], text.count("\n", 0, match.start(3)) + 1)
        for match in FENCE.finditer(text)
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Where pages write runs/...: one for all, so that the run they share is trained once."""
    return tmp_path_factory.mktemp("docs")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.slow
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    namespace = {"__name__": f"docs_{page.stem}"}
    for block, following in itertools.pairwise([*blocks(page), None]):
        if block.kind != "python":
            continue
        printed = io.StringIO()
        # Empty lines before it give a traceback the line numbers of the page.
        program = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(program, namespace)
        if following is not None and following.kind == "text":
            assert printed.getvalue().rstrip() == following.text.rstrip(), (
                f"{page.name}, line {following.line}"
            )


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_the_code_of_a_page_can_be_pasted_into_python(page):
    """Where an empty line ends what is indented."""
    for block in blocks(page):
        if block.kind in ("python", "py"):
            typed: list[str] = []
            for number, line in enumerate([*block.text.splitlines(), ""], block.line):
                typed.append(line)
                if code.compile_command("\n".join(typed), f"{page.name}, line {number}"):
                    typed = []
            assert not typed, f"{page.name}, line {block.line}: has no end"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_what_a_page_quotes_is_in_the_package(page):
    """README quotes the model file."""
    readme = page.name == "README.md"
    files = (ROOT / "resnet_jax").glob("models/resnet.py" if readme else "**/*.py")
    sources = [path.read_text() for path in files]
    quotes = [block for block in blocks(page) if block.kind == "python quote"]
    assert len(quotes) == 1 or not readme
    for block in quotes:
        layouts = [textwrap.indent(block.text, width * " ") for width in (0, 4, 8)]
        assert any(f"\n{text}" in source for text in layouts for source in sources), (
            f"{page.name}, line {block.line}: the package reads otherwise"
        )


def test_relative_links_lead_somewhere():
    for page in [*TEXTS, *ROOT.glob("C*.md"), *ROOT.glob("experiments/**/README.md")]:
        for target in re.findall(r"\]\(([^)\s#]+)", FENCE.sub("", page.read_text())):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


@cache
def help_of(*command: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0, f"resnet-jax has no command {command}"
    return shown.getvalue()


def options(command: str) -> set[str]:
    """The options in the help of a command."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", help_of(command)))


def command_lines(page: Path) -> list[list[str]]:
    """The words after `resnet-jax`, from shell blocks and from code within the text."""
    shell = [b.text for b in blocks(page) if b.kind in ("", "sh", "bash", "shell", "console")]
    lines = [line for text in shell for line in text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(resnet-jax [^`]+)`", FENCE.sub("", page.read_text()))
    words = [re.split(r" #|[|;>]|&&", line)[0].replace('"', " ").split() for line in lines]
    return [line[line.index("resnet-jax") + 1 :] for line in words if "resnet-jax" in line]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    for command, *arguments in command_lines(page):
        if command.startswith("-"):  # resnet-jax --help
            continue
        named = {word.split("=")[0] for word in arguments if word.startswith("--")}
        assert named <= {*options(command), "--help"}, f"{page.name}: {command} {arguments}"
        if command == "train" and arguments and arguments[0][0].islower():
            assert arguments[0] in rj.PRESETS, f"{page.name}: {command} {arguments}"


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_options_in_the_text_exist(page):
    prose = FENCE.sub("", page.read_text())
    commands = ("train", "evaluate", "predict", "report", "compare", "demo", "summary", "data")
    named = set(re.findall(r"`(--[a-z][a-z.-]*[a-z])[ =`]", prose))
    assert named <= set.union(*map(options, commands)), page.name


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "resnet_jax").rglob("*.py")
    if ">>> " in path.read_text()
)


def computes(name: str) -> bool:
    """As users write them: compiled one operation at a time, which takes seconds."""
    place = ROOT / name.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return re.search(r"(>>>|\.\.\.) .*(jnp|jax\.random)\.", path.read_text()) is not None


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=[pytest.mark.slow] if computes(m) else []) for m in MODULES],
)
def test_examples_of_docstrings(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("resnet_jax"):
            raise
        pytest.skip(f"{name} needs {error.name}, which an extra brings")
    failures = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder().find(module):
        runner.run(example, out=failures.write)
    assert not runner.failures, failures.getvalue()


def test_every_promise_has_the_tests_that_the_page_names():
    page = (ROOT / "docs/reliability.md").read_text()
    promises, tests = page.split("\n## Tests\n")
    numbers = re.findall(r"^(\d+)\. ", promises, re.MULTILINE)
    assert re.findall(r"^(\d+)\. ", tests, re.MULTILINE) == numbers == list(map(str, range(1, 22)))
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests):
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_figures_of_reliability_are_those_of_the_tests():
    kills, soak = map(importlib.import_module, ("test_kills", "test_soak"))
    of_checkpoints = (ROOT / "tests/training/test_checkpoint.py").read_text()
    (flips,) = re.findall(r"^FLIPS = (\d+)", of_checkpoints, re.MULTILINE)
    page = (ROOT / "docs/reliability.md").read_text()
    shown = [int(cell) for cell in re.findall(r"^\| [^|]+ \| (\d+) \|$", page, re.MULTILINE)]
    assert shown == [len(kills.MOMENTS), soak.RESTARTS, soak.SAVES, int(flips)]


def test_the_map_names_every_module():
    """The files in the tree of architecture.md: a line that ends in `/` opens a folder."""
    (tree,) = (block.text for block in blocks(ROOT / "docs/architecture.md"))
    named, folders = set(), []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        first = line.split()[0]
        del folders[depth:]
        if first.endswith("/"):
            folders.append(first)
        named |= {"".join(folders) + name for name in re.findall(r"[a-z_0-9]+\.py", line)}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "resnet_jax").rglob("*.py")}
    assert named == {path for path in there if not path.endswith("__init__.py")}


def positive(option: str) -> str:
    return re.sub(r"^--((?:\w+\.)?)no-", r"--\1", option)


def test_the_page_of_the_command_names_every_command_preset_and_option():
    page = (ROOT / "docs/command.md").read_text()
    commands = set(re.search(r"\{([\w,]+)\}", help_of())[1].split(","))
    assert set(re.findall(r"^\| \[`(\w+)", page, re.MULTILINE)) == commands
    table = page.split("| preset |")[1].split("\n\n")[0]
    assert set(rj.PRESETS) <= set(re.findall(r"`(\w+)`", table))
    named = set(map(positive, re.findall(r"--[a-z][a-z.-]*[a-z]", page)))
    # Those of a run are on the page of the API, field by field.
    named |= {f"--{setting.option}" for setting in settings(rj.TrainConfig())}
    for command in commands:
        assert {positive(option) for option in options(command)} <= {*named, "--help"}, command


def test_the_page_of_the_api_shows_every_public_name():
    page = (ROOT / "docs/api.md").read_text()
    shown = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    networks = {f"resnet_jax.ResNet{depth}" for depth in (32, 34, 44, 50, 56, 101, 110, 152)}
    assert shown | networks >= {f"resnet_jax.{name}" for name in rj.__all__}


@pytest.mark.slow
def test_the_program_of_the_readme_runs(finished_run, tmp_path, monkeypatch):
    (program,) = (block.text for block in blocks(ROOT / "README.md") if block.kind == "python")
    images = jnp.zeros((2, 64, 64, 3))
    shapes = shapes_of(rj.ResNet50(num_classes=1000), (64, 64, 3))
    variables = unflatten_dict({path: np.zeros(shape) for path, shape in shapes.items()})
    monkeypatch.chdir(tmp_path)
    rj.interop.save_weights("resnet50.safetensors", rj.interop.to_torchvision(variables))
    monkeypatch.setattr(rj, "train", lambda config, run_dir: finished_run)  # eight epochs take long
    namespace = {"images": images}
    exec(program, namespace)
    assert namespace["logits"].shape == (2, 1000)


def test_imports_inside_functions_are_those_that_contributing_lists():
    found = set()  # by the name of their top
    for path in (ROOT / "resnet_jax").rglob("*.py"):
        functions = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, Function))
        for node in itertools.chain.from_iterable(map(ast.walk, functions)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "resnet_jax").split(".")[0])
    page = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"`([a-zA-Z_]+)`", page.split("inside functions:")[1].split("##")[0])
    assert found <= {*listed, "resnet_jax", *sys.stdlib_module_names}
