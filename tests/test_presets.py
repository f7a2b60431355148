"""What a run is called, and what a grid of settings expands to."""

import dataclasses
import shutil
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import cli_train, display, run
from resnet_jax.cli import main
from resnet_jax.config import OptimConfig, TrainConfig, replaced
from resnet_jax.data import prepare
from resnet_jax.data.sampler import EpochSampler
from resnet_jax.errors import DivergedError
from resnet_jax.inspection import compare
from resnet_jax.presets import EARLIER, PRESETS, grid, run_name
from resnet_jax.training.optim import make_schedule
from resnet_jax.training.run_folder import RunFolder


@pytest.mark.parametrize(
    ("preset", "changes", "name"),
    [
        ("book", {}, "book"),
        ("book", {"model.residual": False}, "book-plain"),
        ("book", {"epochs": 9.0, "seed": 3, "log-every": 7, "data.dir": "/tfds"}, "book"),
        (
            "mnist",
            {"model.name": "resnet34", "optim.schedule": "cosine"},
            "mnist-resnet34-schedule-cosine",
        ),
        ("mnist", {"data.name": "kmnist", "data.mean": None, "data.std": None}, "mnist-kmnist"),
        ("mnist", {"data.name": "kmnist"}, "mnist-kmnist"),  # with equal mean and deviation
        ("quickstart", {"optim.learning-rate": 0.01}, "quickstart-learning-rate-0.01"),
        ("quickstart", {"augment.flip": True, "ema": None}, "quickstart-flip"),
        ("mnist", {"ema": None}, "mnist-no-ema"),
        ("mnist", {"data.subset": (100, 10, 10)}, "mnist-subset-100_10_10"),
        ("folder", {"data.dir": "/data/my photos"}, "folder-my_photos"),
        ("folder", {"data.dir": "x", "init-from": "runs/a/b.pth"}, "folder-x-init-from-b.pth"),
        ("folder", {"data.dir": "/किताबें"}, "folder-किताबें"),  # two such folders had one name
        ("folder", {"data.dir": "/\U0001f431\u3000\U0001f436"}, "folder-\U0001f431_\U0001f436"),
    ],
)
def test_names(preset, changes, name):
    assert run_name(preset, PRESETS[preset], replaced(PRESETS[preset], changes)) == name


@pytest.fixture
def trained(monkeypatch):
    """Makes the command train nothing; the list gets the folder and settings of each run."""
    runs = []

    def train(config, folder, should_stop, callbacks):
        runs.append((folder, config))
        should_stop.training = True  # as a run that is not finished

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(compare, "compare_runs", lambda runs: None)
    monkeypatch.setattr(display, "print_comparison", lambda found: None)
    return runs


@pytest.fixture
def plan(trained):
    """Has the command plan runs of a preset; returns their folders and settings."""

    def plan(words):
        trained.clear()
        assert main(["train", *words.split(), "--no-report"]) == 0
        return list(trained)

    return plan


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--grid epochs=1,2", ["mnist-epochs-1-seed0", "mnist-epochs-2-seed0"]),
        ("--grid log-every=5,50", ["mnist-log-every-5-seed0", "mnist-log-every-50-seed0"]),
        ("--grid seed=1,2", ["mnist-seed1", "mnist-seed2"]),
        ("--grid epochs=1,2 --run-dir r", ["r-epochs-1-seed0", "r-epochs-2-seed0"]),
        ("--grid model.residual=true,false", ["mnist-residual-seed0", "mnist-plain-seed0"]),
        ("--epochs 2 --seeds 2", ["mnist-seed0", "mnist-seed1"]),
        # Named as the prefix is: version 0.1.0 put the run there.
        ("--seeds 1 --run-dir rate=0.1,b", ["rate=0.1,b-seed0"]),
        (
            "--data.name kmnist --run-dir r --grid data.name=kmnist,mnist",
            ["r-kmnist-seed0", "r-mnist-seed0"],
        ),
    ],
)
def test_each_run_of_a_grid_has_a_folder(options, names, plan):
    """Its name has each varied option, even one that does not change what is learnt."""
    assert [folder.name for folder, _ in plan(f"mnist {options}")] == names


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--data.name kmnist", [("kmnist", None, False)]),
        ("--data.name kmnist --data.find_digit", [("kmnist", None, True)]),
        ("--grid data.name=mnist,kmnist", [("mnist", (0.1307,), True), ("kmnist", None, False)]),
        (
            "--data.name kmnist --run-dir r --grid data.name=kmnist,mnist",
            [("kmnist", None, False), ("mnist", (0.1307,), True)],
        ),
        (
            "--grid=data.mean=0.5 data.name=mnist,kmnist",
            [("mnist", (0.5,), True), ("kmnist", (0.5,), False)],
        ),
    ],
)
def test_what_a_preset_says_of_its_dataset_is_not_said_of_another(options, expected, plan):
    data = [config.data for _, config in plan(f"mnist {options}")]
    assert [(d.name, d.mean, d.find_digit) for d in data] == expected


def test_each_folder_of_a_grid_is_prepared_before_the_first_run(plan, trained, monkeypatch):
    """Only the first run's folder was prepared."""
    prepared = []
    monkeypatch.setattr(prepare, "prepare", lambda *of: prepared.append((*of, len(trained))))
    assert len(plan("mnist --data.from-idx idx --grid data.dir=a,b epochs=1,2")) == 4
    assert prepared == [("mnist", name, Path("idx"), 0) for name in "ab"]
    # The files are those of one dataset; the grid's others are expected to be prepared.
    plan("mnist --data.from-idx idx --grid data.name=mnist,fashion_mnist")
    assert prepared[2:] == [("mnist", None, Path("idx"), 0)]


@pytest.fixture
def began_as(own_run, tmp_path, monkeypatch):
    """Puts a run of a preset, with changes to its settings, into a folder below the test's own."""
    monkeypatch.chdir(tmp_path)

    def put(place, preset, changes):
        folder = RunFolder(Path(shutil.copytree(own_run, place)))
        config = replaced(PRESETS[preset], changes)
        folder.write_record(dataclasses.replace(folder.read_record(), config=config))

    return put


@pytest.mark.parametrize(
    ("preset", "options", "names"),
    [
        # The mean that the run recorded was taken for one that the command gives.
        ("quickstart", "--data.name kmnist", ["quickstart-kmnist-seed0"]),
        # The run in the preset's folder was taken for that of every value.
        ("mnist", "--grid epochs=1,5", ["mnist-epochs-1-seed0", "mnist-seed0"]),
        ("mnist", "--grid log-every=5,50", ["mnist-log-every-5-seed0", "mnist-seed0"]),
        # A trial of the preset was taken for the grid's run at the preset's own rate, and refused.
        (
            "mnist",
            "--epochs 9 --grid optim.learning-rate=0.1,0.2",
            ["mnist-learning-rate-0.1-seed0", "mnist-learning-rate-0.2-seed0"],
        ),
        # The run's mean was taken for any that the command gives.
        ("mnist", "--data.mean 0.5", ["mnist-mean-0.5-seed0"]),
        ("mnist", "--grid data.mean=null,0.5", ["mnist-no-mean-seed0", "mnist-mean-0.5-seed0"]),
        # The run was also taken for one on other images.
        ("folder", "--data.dir y", ["folder-y-seed0"]),
    ],
)
def test_the_folder_of_an_earlier_run_is_for_that_run_alone(preset, options, names, began_as, plan):
    began_as(f"runs/{preset}-seed0", preset, {**EARLIER.get(preset, {}), "data.dir": "x"})
    assert [folder.name for folder, _ in plan(f"{preset} {options}")] == names


def test_a_grid_goes_on_in_its_own_folder(began_as, plan):
    """Another run of the same settings had begun in the preset's own folder."""
    for name in ("mnist-learning-rate-0.1", "mnist"):
        began_as(f"runs/{name}-seed0", "mnist", {})
    (folder, _), _ = plan("mnist --grid optim.learning-rate=0.1,0.2")
    assert folder.name == "mnist-learning-rate-0.1-seed0"


def test_runs_of_a_sweep_keep_no_parameters(own_run, tmp_path, command, monkeypatch):
    """Each run kept the parameters that its report reads on the device until the sweep ended."""
    monkeypatch.chdir(tmp_path)
    kept = []
    monkeypatch.setattr(run, "train", lambda *_, **__: run.Run.open(own_run))
    monkeypatch.setattr(cli_train, "make_report", lambda found, *_: found.variables())
    monkeypatch.setattr(compare, "compare_runs", kept.extend)
    monkeypatch.setattr(display, "print_comparison", lambda found: None)
    assert command("train", "mnist", "--grid", "log-every=5,50")[0] == 0
    assert [found._states for found in kept] == [{}, {}]


def test_a_damaged_run_of_several_ends_the_command_before_any_is_trained(
    began_as, trained, refusal
):
    began_as("runs/folder-x-seed1", "folder", {"data.dir": "x"})
    Path("runs/folder-x-seed1/config.yaml").write_text("model: [")
    said = refusal("train", "folder", "--data.dir", "x", "--seeds", 2)
    assert "config.yaml is damaged" in said
    assert not trained


def test_a_damaged_run_elsewhere_stops_no_other(began_as, plan):
    """One in the preset's own folder stopped every run of the preset, whatever its settings."""
    began_as("runs/mnist-seed0", "mnist", {})
    Path("runs/mnist-seed0/config.yaml").write_text("model: [")
    assert [folder.name for folder, _ in plan("mnist --augment.flip")] == ["mnist-flip-seed0"]


def test_a_run_that_diverges_ends_not_the_others(trained, command, monkeypatch):
    """The others are trained or shown, and the command then says how many diverged."""
    train, shown = run.train, []

    def diverging(config, folder, should_stop, **more):
        if config.optim.learning_rate == 0.1:  # finished before: its result is shown
            return
        train(config, folder, should_stop, **more)
        if config.optim.learning_rate > 1:
            raise DivergedError("loss was not finite at step 3")

    monkeypatch.setattr(run, "train", diverging)
    monkeypatch.setattr(cli_train, "_print_result", shown.append)
    words = "train mnist --no-report --grid optim.learning-rate=9,0.1,0.2"
    code, _, errors = command(*words.split())
    assert (code, len(trained), len(shown)) == (1, 2, 1)
    assert "runs/mnist-learning-rate-9-seed0: loss was not finite at step 3" in errors
    assert errors.endswith(
        "resnet-jax: 1 of 3 runs diverged, as said above: give them a smaller "
        "--optim.learning-rate\n"
    )


@pytest.mark.parametrize(
    ("place", "told", "options", "expected"),
    [
        ("runs/folder-seed0", {}, "", (False, 0.0, 0.1)),  # 0.1.0 put it there
        ("r", {}, "--run-dir r", (False, 0.0, 0.1)),
        ("r", {}, "--run-dir=~/r", (False, 0.0, 0.1)),  # shells leave this ~ as it is
        ("r", {}, "--run-dir r --augment.flip", (True, 0.0, 0.1)),
        ("r", {}, "--run-dir r --optim.learning_rate=0.05", (False, 0.0, 0.05)),
        # Options given to 0.1.0 are not the preset's: the command must give them again.
        ("r", {"augment.flip": True}, "--run-dir r", (True, 0.0, 0.1)),
        ("r", {"optim.learning-rate": 0.2}, "--run-dir r", (False, 0.0, 0.05)),
    ],
)
def test_a_run_goes_on_with_what_its_preset_was_when_it_began(
    place, told, options, expected, began_as, plan, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    began_as(place, "folder", {**EARLIER["folder"], **told, "data.dir": "x"})
    ((at, config),) = plan(f"folder --data.dir x {options}")
    found = config.augment.flip, config.augment.resized_crop, config.optim.learning_rate
    assert (at.resolve(), found) == (tmp_path / place, expected)
    assert "was in 0.1.0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "options"), [("runs/cifar10-seed0", ""), ("r", "--run-dir r --model.width 64")]
)
def test_a_run_of_0_1_0_goes_on_that_was_told_what_is_none_now(place, options, began_as, plan):
    """It recorded the width and the stem for which None stands: its command began another run."""
    began_as(place, "cifar10", {"model.stem": None, "data.dir": "x"})
    words, folder = f"cifar10 --data.dir x --model.stem imagenet {options}", RunFolder(Path(place))
    ((_, config),) = plan(words)
    assert config.model.stem == "imagenet"  # the run is not of 0.1.0
    folder.write_record(dataclasses.replace(folder.read_record(), instructions=None))
    ((at, config),) = plan(words)
    assert (at, config.model) == (Path(place), folder.read_record().config.model)


def test_the_first_line_does_not_wait_for_the_run_that_goes_on(began_as, plan, monkeypatch):
    """Reading a run takes the import of JAX, seconds of silence."""
    began_as("r", "mnist", {})
    monkeypatch.setattr(RunFolder, "read_record", mock.Mock(side_effect=AssertionError))
    ((at, _),) = plan("mnist --run-dir r")
    assert at == Path("r")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--grid seed=1 --grid epochs=1,2", "--grid is given twice"),
        ("--grid optim.learning-rate", "OPTION=VALUE"),
        ("--grid seed=", "OPTION=VALUE"),
        ("--grid init-from=a.pth,", "OPTION=VALUE"),
        ("--grid optim.lr=0.1", "optim.lr=0.1; did you mean optim."),
        ("--grid optim.learning-rate=fast", "--optim.learning-rate must be float, got 'fast'"),
        ("--grid optim.learning-rate=1,-1", "--optim.learning-rate must be more than 0, got -1"),
        (f"--grid epochs={'[' * 10_000}", "--epochs must be float, got"),
        (f"--grid epochs=1{'0' * 400}", "--epochs must be more than 0 and finite, got inf"),
        ("--grid data.mean=[0.5]", "--data.mean must be"),
        # The second run was refused only when the first had been trained.
        ("--grid seed=1,1", "of two runs"),
        ("--grid init-from=a/net.pth,b/net.pth", "of two runs"),
        # The empty value that an unset variable leaves was dropped, or taken for another.
        ("--init-from ", "the value after --init-from is empty"),
        ("--init-from=", "the value of --init-from= is empty"),
        ("--data.dir loop", "loop is no folder"),
        *((f"--seeds 2 --run-dir {folder}", "give runs/NAME") for folder in (".", "..", "/")),
    ],
)
def test_what_is_no_plan_of_runs_is_one_line(words, said, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert said in refusal("train", "folder", *words.split(" "))
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_the_papers_recipe_is_64000_updates_with_drops_after_32000_and_48000():
    for depth in (20, 32, 44, 56, 110):
        config = PRESETS[f"resnet{depth}_cifar10"]
        steps = EpochSampler(45_000, config.batch_size, seed=0).steps(config.epochs)
        assert steps == 64_000
        places = jnp.array([0, 500, 31_999, 32_000, 47_999, 48_000, 63_999])
        first, *shown = jax.jit(jax.vmap(make_schedule(config.optim, steps)))(places).tolist()
        assert shown == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert (first < 0.01) == (depth == 110)


def test_a_long_name_is_cut_and_still_its_own():
    changes = {f"augment.{option}": 0.5 for option in ("shift", "rotation", "scale", "shear")}
    changes |= {f"augment.{option}": 0.25 for option in ("mixup", "cutmix", "erase")}
    changes |= {"label-smoothing": 0.2, "optim.weight-decay": 0.3, "optim.momentum": 0.4}
    long = [changes | {"optim.clip-norm": clip} for clip in (1.0, 2.0)]
    wide = [{"data.dir": f"/x/{'写' * 84}{last}"} for last in "写冩"]  # too long in bytes
    for preset, varied in (("book", long), ("folder", wide)):
        names = {run_name(preset, PRESETS[preset], replaced(PRESETS[preset], c)) for c in varied}
        assert len(names) == 2
        assert all(len(name) < 100 and len(name.encode()) <= 240 for name in names)


def test_a_grid_is_every_combination_in_order():
    base = TrainConfig()
    found = grid(base, ["optim.learning-rate=.01,1.", "model.residual=true,false", "data.mean=.5"])
    rates = [(c.optim.learning_rate, c.model.residual, c.data.mean) for c in found]
    assert rates == [
        (0.01, True, (0.5,)), (0.01, False, (0.5,)), (1.0, True, (0.5,)), (1.0, False, (0.5,)),
    ]  # fmt: skip
    assert grid(base, []) == [base]
    one = dataclasses.replace(base, optim=OptimConfig(learning_rate=0.1))
    assert grid(base, ["optim.learning-rate=1e-1"]) == [one]
    data = [config.data for config in grid(base, ["data.mean=null,0.5", "data.dir=2025"])]
    assert [(d.mean, d.dir) for d in data] == [(None, "2025"), ((0.5,), "2025")]
    for told in ("null,true", "None,True"):  # as JSON and as options
        assert [c.ema for c in grid(base, [f"ema={told[:4]},0.9"])] == [None, 0.9]
        assert [c.tensorboard for c in grid(base, [f"tensorboard={told[5:]}"])] == [True]
    assert [c.data.dir for c in grid(base, ["data.dir=True,a"])] == ["True", "a"]
