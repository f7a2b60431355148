"""The verb ``train``: one run of a preset, or one for each seed and grid point, with reports."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

import resnet_jax as rj
from resnet_jax import display, presets
from resnet_jax.config import FORMER, TrainConfig, differences, replaced
from resnet_jax.errors import DivergedError, ResNetJaxError, command, importing, message_and_code
from resnet_jax.signals import Stop
from resnet_jax.storage import expanded, json_sha256


@dataclasses.dataclass(frozen=True)
class Processes:
    """Several processes that carry out one run."""

    distributed: bool = False
    """run as one process of several; start the same command for each. JAX finds the others under
    Slurm, Open MPI 4, Kubernetes and on TPUs."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where JAX does not find it."""
    num_processes: int | None = None
    """number of processes, where JAX does not find it."""
    process_id: int | None = None
    """number of this process, from 0, where JAX does not find it."""
    meet_within: int = 300
    """seconds to wait for the other processes at the start."""

    def meet(self) -> None:
        """Connect this process to the others, where there are any; only process 0 prints."""
        if self.distributed:
            # Otherwise JAX's coordination prints warnings beside the one line on why a run ends.
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            from resnet_jax.training.distributed import initialize, is_main_process
            from resnet_jax.training.jax_settings import find_devices

            initialize(self.coordinator, self.num_processes, self.process_id, self.meet_within)
            find_devices()  # or say what is wrong with them
            display.console.quiet = not is_main_process()
        elif self != Processes():
            raise ResNetJaxError(
                "--coordinator, --num-processes, --process-id and --meet-within need "
                "--distributed: give it too"
            )

    def agreed(self, planned: list[tuple[TrainConfig, Path]]) -> list[tuple[TrainConfig, Path]]:
        """Return the planned runs; raise if the names of their folders differ between processes."""
        if self.distributed:
            from resnet_jax.training.distributed import assert_equal

            digest = json_sha256([folder.name for _, folder in planned])
            remedy = "give all processes the same --run-dir, --seeds and --grid"
            assert_equal("run folders with digest", digest, remedy)
        return planned


def train_verb(arguments: list[str], stop: Stop) -> Callable[..., None]:
    """Return `train` with the defaults of the preset that the arguments begin with."""
    name = _preset_named(arguments)
    verb = partial(train, preset=name, config=presets.preset(name), arguments=arguments, stop=stop)
    verb.__doc__ = train.__doc__  # the help's text
    return verb


def _preset_named(arguments: list[str]) -> str:
    named = arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-")
    return arguments[1] if named else "quickstart"


def _check_places(preset: str, arguments: list[str]) -> None:
    """Raise for a preset after options, which took another's defaults, and for a second --grid."""
    presets.preset(preset)  # raises for an unknown one, wherever it stands
    if preset != _preset_named(arguments):
        raise ResNetJaxError(
            f"preset {preset} stands after options: give it first, `resnet-jax train {preset} ...`"
        )
    if sum(argument.split("=")[0] == "--grid" for argument in arguments) > 1:
        raise ResNetJaxError("--grid is given twice: give all its options after one --grid")


def train(
    preset: Annotated[Positional[str], tyro.conf.arg(help=f"one of {', '.join(presets.PRESETS)}.")],
    config: Annotated[TrainConfig, tyro.conf.arg(name="")],
    arguments: Annotated[list[str], tyro.conf.Suppress],
    stop: Annotated[Stop, tyro.conf.Suppress],
    run_dir: Path | None = None,
    seeds: int | None = None,
    grid: tuple[str, ...] = (),
    report: bool = True,
    from_idx: Annotated[Path | None, tyro.conf.arg(name="data.from-idx")] = None,
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes(),
) -> None:
    """Train a network, or resume the run in the folder.

    PRESET comes first; options change it: `resnet-jax train mnist --epochs 2`.

    Args:
        run_dir: the run's folder. None: runs/PRESET-seedN, with settings that change what is
            learnt, except the epochs, in the name.
        seeds: repeat with seeds 0 to SEEDS - 1, a folder each, and compare the runs.
        grid: train each combination of values, a folder each, and compare the runs:
            `--grid optim.learning-rate=0.01,0.1 model.residual=true,false`.
        report: make the run's report, as `resnet-jax report` does; not with --distributed.
        from_idx: prepare MNIST or Fashion-MNIST first from the IDX files in this folder.
    """
    _check_places(preset, arguments)
    stop.meeting = processes.distributed
    processes.meet()
    stop.meeting = False
    run_dir = run_dir and expanded(run_dir)
    runs: list[rj.Run] = []
    planned = _planned(preset, config, run_dir, seeds, grid, arguments)
    for settings, folder in processes.agreed(planned):
        stop.training = False
        display.print_line(
            f"{settings.model.title} on {settings.data.name}, seed {settings.seed}: "
            f"{settings.epochs:g} epochs in batches of {settings.batch_size}, run folder {folder}"
        )
        from resnet_jax import run as library
        from resnet_jax.training.distributed import failing_together

        try:
            with failing_together(folder):
                if from_idx is not None and settings is planned[0][0]:
                    _prepare(planned, from_idx)
                run = library.train(settings, folder, should_stop=stop, callbacks=[stop])
        except DivergedError as error:  # the other runs may converge
            if len(planned) == 1 or processes.distributed:
                raise
            display.print_error(f"{folder}: {error}")
            continue
        trained = stop.training
        if trained and (reason := stop()) and not processes.distributed:  # during the last tests
            raise ResNetJaxError(
                f"{reason}: {folder} is finished at step {stop.step}; the same command goes on",
                exit_code=75,
            )
        stop.training = False  # a report is interrupted at once
        if not trained:
            _print_result(run)
        if report and not processes.distributed:
            _report_if_new(copy(run), trained)  # a copy: `runs` must not keep the parameters
        runs.append(run)
    if runs and (seeds is not None or grid):
        from resnet_jax.inspection.compare import compare_runs

        display.print_comparison(compare_runs(runs))
    if diverged := len(planned) - len(runs):
        raise ResNetJaxError(
            f"{diverged} of {len(planned)} runs diverged, as said above: give them a smaller "
            "--optim.learning-rate"
        )


def _prepare(planned: list[tuple[TrainConfig, Path]], from_idx: Path) -> None:
    """Prepare the first run's dataset, and no other, in each folder where a run looks for it."""
    from resnet_jax.data.prepare import prepare
    from resnet_jax.training.distributed import main_process_first

    name = planned[0][0].data.name
    for root in dict.fromkeys(s.data.dir for s, _ in planned if s.data.name == name):
        main_process_first(partial(prepare, name, root, from_idx))


def _print_result(run: "rj.Run") -> None:
    """Print the result of a run that had been finished before."""
    from resnet_jax.inspection.compare import final_tests

    for row in final_tests(run.metrics()).to_dict("records"):
        display.print_line(display.test_result(row))


def _planned(
    preset: str,
    config: TrainConfig,
    run_dir: Path | None,
    seeds: int | None,
    axes: tuple[str, ...],
    arguments: list[str],
) -> list[tuple[TrainConfig, Path]]:
    if seeds is not None and seeds < 1:
        raise ResNetJaxError(f"--seeds must be at least 1, got {seeds}")
    if seeds is not None and config.seed:
        raise ResNetJaxError(
            f"--seed {config.seed} and --seeds {seeds} exclude each other: --seeds repeats with "
            f"seeds 0 to {seeds - 1}"
        )
    if seeds is not None:
        axes = (*axes, f"seed={','.join(map(str, range(seeds)))}")
    if axes and run_dir is not None and run_dir.name in ("", ".."):
        raise ResNetJaxError(f"--run-dir {run_dir} has no name for several runs: give runs/NAME")
    planned: list[tuple[TrainConfig, Path]] = []
    words = (argument.removeprefix("--grid=") for argument in arguments)
    told = {word.split("=")[0].lstrip("-").replace("_", "-") for word in words}
    varied = {axis.removeprefix("--").partition("=")[0] for axis in axes} - {"seed"}
    folder, default = run_dir or Path("runs", preset), presets.PRESETS[preset]
    reference = _reset_dataset_settings(config, default, told) if run_dir else default
    for settings in presets.grid(config, axes):
        settings = _reset_dataset_settings(settings, default, told)
        named = folder
        if axes or run_dir is None:
            name = folder.name  # --run-dir with --seeds alone keeps its name, as in 0.1.0
            if varied or run_dir is None:
                name = presets.run_name(name, reference, settings, varied)
            named = folder.with_name(f"{name}-seed{settings.seed}")
        plain = named if run_dir else named.with_name(f"{preset}-seed{settings.seed}")
        begun, named = _as_begun(settings, named, plain, preset, varied, told)
        if kept := differences(settings, begun):
            listing = ", ".join(f"--{option} {value}" for option, (_, value) in kept.items())
            display.print_line(f"{named} goes on as preset {preset} was in 0.1.0: {listing}")
        if named in (at for _, at in planned):
            raise ResNetJaxError(
                f"--grid makes {named} the folder of two runs: give each value once, and files of "
                "different names"
            )
        planned.append((begun, named))
    return planned


def _as_begun(
    config: TrainConfig, named: Path, plain: Path, preset: str, varied: set[str], told: set[str]
) -> tuple[TrainConfig, Path]:
    """Return a run's settings and folder, or those with which an earlier version began the run.

    That version used the folder ``plain``, whatever the settings, and the presets of `EARLIER`.
    """
    earlier = presets.EARLIER.get(preset, {})
    usual, named_too = presets.PRESETS[preset], varied and varied | {"epochs"}
    name = partial(presets.run_name, "", usual, always=named_too)
    asked = {option: value for option, (_, value) in differences(usual, config).items()}
    former = [option for option, value in FORMER.items() if asked.get(option) == value]
    for folder in (f for f in (named, plain) if (f / "config.yaml").is_file()):
        if folder == named and not (earlier or former):  # the first line need not wait for JAX
            break
        from resnet_jax.training.run_folder import RunFolder

        theirs = folder != named  # maybe another run, perhaps damaged
        with suppress(*[ResNetJaxError] * theirs):
            record = RunFolder(folder).read_record()
            changed = differences(config, record.config)
            then = {option: value for option, (_, value) in changed.items()}
            kept = {k: v for k, v in earlier.items() if then.get(k) == v and k not in told}
            if record.instructions is None:  # of 0.1.0, which recorded a number for this None
                kept |= {option: None for option in former if then.get(option, ...) is None}
            begun = replaced(config, kept)
            own = {  # a mean that was not given is computed from the images, and recorded
                option: None
                for option in differences(usual, record.config).keys() & {"data.mean", "data.std"}
                if option in changed and changed[option][0] is None
            }
            if not theirs or name(begun) == name(replaced(record.config, own)):
                return begun, folder
    return config, named


def _reset_dataset_settings(
    config: TrainConfig, preset: TrainConfig, told: set[str]
) -> TrainConfig:
    """Reset settings that suit the preset's dataset if another is chosen, except those given."""
    if config.data.name == preset.data.name:
        return config
    reset = {"data.mean": None, "data.std": None, "data.find-digit": False}
    return replaced(config, {name: reset[name] for name in reset.keys() - told})


def make_report(run: "rj.Run", *arguments: Any) -> None:
    with importing("a report"):
        from resnet_jax.inspection.report import write_report
    display.print_line(f"report: {write_report(run, *arguments)}")


def _report_if_new(run: "rj.Run", trained: bool) -> None:
    """Make a run's report unless it is up to date; a failure to make it is only a warning."""
    page, metrics = run.path / "report" / "index.html", run.path / "metrics.jsonl"
    if not trained and page.exists() and page.stat().st_mtime >= metrics.stat().st_mtime:
        return
    split = "train"
    try:
        tested = set(run.metrics().get("split", ()))
        split = next((s for s in ("test", "test_all", "validation") if s in tested), split)
        make_report(run, split)
    except Exception as error:
        line, code = message_and_code(error)
        if code is None or isinstance(error, BrokenPipeError):  # printing its path failed
            raise
        reason = error if isinstance(error, OSError) else line
        display.print_error(
            f"warning: no report ({reason}); the run is whole, "
            f"{command('report', run.path, '--split', split)} tries again"
        )
