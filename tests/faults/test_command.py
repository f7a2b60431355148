"""Faults of the command's start, end and surroundings."""

import functools
import os
import pwd
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from unittest import mock

import jax
import pytest
import worker
from faults import ended, forked
from make_datasets import picture
from test_cli import SAME
from test_docs import help_of

import resnet_jax as rj
from resnet_jax import __main__, cli_train
from resnet_jax.cli import main
from resnet_jax.memory import MOST_FILES, check_limits
from resnet_jax.models import VARIANTS
from resnet_jax.signals import Stop
from resnet_jax.training.loop import Training

COMMAND = f"{shlex.quote(sys.executable)} -m resnet_jax"
WORKER = f"{shlex.quote(sys.executable)} {shlex.quote(worker.__file__)}"
TRAIN = ["train", *worker.OPTIONS]
NOT_ON_MACOS = pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such")


def shell(script, *arguments, **environment):
    """Run a shell script, in which ``$0`` is the command."""
    return subprocess.run(
        ["sh", "-c", script.replace("$0", COMMAND), COMMAND, *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | environment, timeout=100,
    )  # fmt: skip


def one_line(done):
    found = (done.returncode, done.stderr[:12], done.stderr.count("\n"))
    assert found == (1, "resnet-jax: ", 1), done.stderr
    return done.stderr


def test_a_signal_in_the_last_tests_ends_before_the_report(
    own_run, command, tiny_options, monkeypatch
):
    """The signal was acknowledged, but the report and the next seed followed, with exit code 0."""
    tested = Training._test

    def test(training):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.1)
        tested(training)

    monkeypatch.setattr(Training, "_test", test)
    report = mock.Mock()
    monkeypatch.setattr(cli_train, "make_report", report)
    metrics = own_run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))  # of a test
    words = ["train", *tiny_options, *SAME, "--report", "--run-dir", own_run]
    code, _, errors = command(*words)
    assert (code, "is finished at step 12; the same command goes on" in errors) == (75, True)
    assert not report.called
    assert command(*words)[0] == 0
    assert report.called


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- 2>&-"])
def test_a_closed_descriptor_changes_nothing(closed):
    done = shell(f"$0 data list {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("mnist_5k" in done.stdout) == (">&- " not in f"{closed} ".replace("2>&-", ""))


def with_closed_descriptors(words):
    os.closerange(0, 3)
    sys.stdin = sys.stdout = sys.stderr = None  # as Python sets closed streams
    sys.argv[1:], os.environ["GLIBC_TUNABLES"] = words, "glibc.malloc.arena_max=1"  # as restarted
    worker.shrink()
    code, nowhere = __main__.main(), os.stat(os.devnull)
    sys.exit(code or not all(os.path.samestat(os.fstat(n), nowhere) for n in range(3)))


def test_what_is_printed_to_closed_descriptors_reaches_no_file(own_run, tiny_options):
    """Otherwise the first file opened would get the descriptor of standard input or output."""
    shutil.rmtree(own_run / "checkpoints/12")  # so that the last two steps are trained again
    words = ["train", *tiny_options, *SAME, "--run-dir", str(own_run)]
    assert ended(forked(with_closed_descriptors, words)) == 0
    assert rj.Run.open(own_run).verify().ok
    assert "epoch" not in (own_run / "run.log").read_text()
    assert (own_run / "checkpoints/12").is_dir()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "words",
    ["$0 data list", pytest.param(f'{WORKER} evaluate "$1" --json', marks=pytest.mark.slow)],
)
def test_a_full_disk_under_the_output_is_one_line(words, finished_run):
    """Python flushed the rest at exit, with a traceback of its own and exit code 120."""
    done = shell(f"{words} > /dev/full", finished_run.path, PYTHONUNBUFFERED="")
    assert "No space left on device" in one_line(done)


# For each moment: a module that is imported, the command's arguments, and the module's code.
MOMENTS = {
    "while the command is being imported": ("tyro", "data list", "{interrupt}"),
    "while it starts again with settings of malloc": (
        "sitecustomize", "train --seeds 0", "if 'GLIBC_TUNABLES' in os.environ: {interrupt}"
    ),
    "in an import that swallows it": (
        "jax", "summary",
        "try: {interrupt}\nexcept KeyboardInterrupt: pass\ntime.sleep(20)",
    ),
    "in an import that raises something else": (
        "jax", "summary",
        "try: {interrupt}\nexcept BaseException: raise ImportError('jax is half imported')",
    ),
    "where Python cannot raise": (
        "jax", "summary",
        "class Dying:\n def __del__(self): {interrupt}\none = Dying()\none = None\ntime.sleep(20)",
    ),
}  # fmt: skip


def test_a_signal_that_comes_twice_in_one_moment_is_one(capfd):
    """`timeout` signals the process and its group; the second of these signals ended the run."""
    stop = Stop()
    stop.training, stop.within = True, 60
    with stop.handling():
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert stop() == "SIGTERM"
    assert capfd.readouterr().err.count("stopping after this step") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the command starts again on Linux alone")
@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[pytest.mark.slow] * (n > 2)) for n, m in enumerate(MOMENTS)],
)
def test_a_signal_during_the_start_is_one_line(moment, tmp_path):
    module, arguments, text = MOMENTS[moment]
    program = text.format(interrupt="signal.raise_signal(signal.SIGINT)")
    (tmp_path / f"{module}.py").write_text(f"import os, signal, time\n{program}\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    done = shell(f"unset GLIBC_TUNABLES; $0 {arguments}", PYTHONPATH=path)
    assert time.monotonic() - began < 15
    assert done.returncode == 75, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("resnet-jax: stopped by a signal")


def test_under_nohup_the_command_outlives_its_terminal():
    """`trap "" HUP` in a shell starts a program that ignores SIGHUP, as `nohup` does."""
    program = "import signal; from resnet_jax.signals import end_at_a_signal; end_at_a_signal(); "
    program += "signal.raise_signal(signal.SIGHUP); print('lives')"
    done = shell(f'trap "" HUP; exec {sys.executable} -c "{program}"')
    assert done.stdout == "lives\n"
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        assert shell(f'exec {sys.executable} -c "{program}"').returncode == 75


@pytest.mark.parametrize(
    "name",
    [pytest.param(b"r\xffun", marks=NOT_ON_MACOS), b"r\x1b[31mun"],
    ids=["not UTF-8", "escape"],
)
def test_a_strange_name_is_shown_escaped(name, finished_run, tmp_path, command):
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(finished_run.path, folder)
    for arguments in (
        ["evaluate", folder],
        ["verify", folder],
        ["compare", folder, finished_run.path],
        ["export", folder, "--format", "torchvision"],
        ["predict", finished_run.path, folder],
        ["evaluate", folder / "nothing"],
        ["train", os.fsdecode(name)],
    ):
        code, out, err = command(*arguments)
        assert code == (1 if err else 0), err
        assert all(line.startswith("resnet-jax: ") for line in err.splitlines()), err
        assert "\x1b" not in out + err
        (out + err).encode()  # fails if a byte that is not UTF-8 is left unescaped


def test_a_run_folder_that_is_no_utf8_is_refused(tmp_path, refusal):
    """Checkpoints cannot be written to a path that is not UTF-8."""
    line = refusal(*TRAIN, "--run-dir", tmp_path / os.fsdecode(b"r\xffun"))
    assert "is no UTF-8: rename it, or give another --run-dir" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_programs")  # if a cache is set, runs look for no other
def test_without_a_home_one_line_says_what_to_set(finished_run, monkeypatch, refusal):
    for name in ("HOME", "XDG_CACHE_HOME", "RESNET_JAX_CACHE_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", mock.Mock(side_effect=KeyError))
    for words in (("evaluate", finished_run.path), ("verify", "fashion_mnist")):
        assert re.search("cannot be located.*set ", refusal(*words))
    assert rj.load_dataset("mnist_5k").num_classes == 10  # needs no home


def test_a_run_of_another_network_is_one_line(finished_run, monkeypatch, refusal):
    """The run was trained, or is read, by a program that put its own network into `VARIANTS`."""
    other = functools.partial(rj.ResNet, stage_sizes=(1, 1), unit=rj.BasicUnit)
    monkeypatch.setitem(VARIANTS, "resnet18", other)
    line = refusal("evaluate", finished_run.path)
    assert "was trained with another network than resnet18" in line


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("-n 16", f'{" ".join(TRAIN)} --run-dir "$2"'),
        pytest.param("-v 1400000", 'evaluate "$1"', marks=NOT_ON_MACOS),
    ],
)
def test_limits_that_are_too_low_are_named(limit, words, finished_run, tmp_path):
    done = shell(f"ulimit {limit}; $0 {words}", finished_run.path, tmp_path / "run")
    assert f"(ulimit {limit[:2]}) must be at least" in one_line(done)


@pytest.mark.parametrize("error", [MemoryError, jax.errors.JaxRuntimeError])
def test_memory_that_does_not_suffice_is_one_line(error, finished_run, monkeypatch, refusal):
    """A run may have been trained in larger batches than this machine can evaluate."""
    lack = error("RESOURCE_EXHAUSTED: Out of memory allocating 2824000272 bytes.")
    monkeypatch.setattr(rj.Run, "evaluate", mock.Mock(side_effect=lack))
    assert "not enough memory" in refusal("evaluate", finished_run.path)
    monkeypatch.setattr(rj.Run, "evaluate", mock.Mock(side_effect=RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):  # its traceback is shown
        main(["evaluate", str(finished_run.path)])


@contextmanager
def limited(what, soft):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(what, before)


@pytest.mark.usefixtures("own_cache", "no_programs")  # shared caches would keep cut files
def test_a_limit_on_the_size_of_files_is_named(finished_run, tmp_path, refusal):
    export = ["export", finished_run.path, "--format", "torchvision", "--output"]
    for words in ([*export, tmp_path / "net"], [*TRAIN, "--run-dir", tmp_path]):
        with limited(resource.RLIMIT_FSIZE, 1000):
            assert "cannot be written (File too large)" in refusal(*words)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("net", ".net"))]


def test_a_checkpoint_without_permission_is_named(own_run, unprivileged):
    file = own_run / "checkpoints/12/state/_METADATA"
    file.chmod(0)
    line = one_line(unprivileged("evaluate", own_run))
    assert "Permission denied" in line
    assert str(file) in line


@pytest.mark.parametrize("most", [MOST_FILES, 12_000])
def test_as_many_files_may_be_open_as_the_system_allows(most, monkeypatch):
    """macOS may refuse the limit that it reports, and then the limit stayed at 256."""
    setrlimit = resource.setrlimit

    def of_system(what, limits):
        if limits[0] > most:
            raise ValueError("current limit exceeds maximum limit")
        setrlimit(what, limits)

    with limited(resource.RLIMIT_NOFILE, 256) as hard:
        with monkeypatch.context() as patch:
            patch.setattr(resource, "setrlimit", of_system)
            check_limits()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] in (min(hard, most), 10_240)


def test_a_home_folder_that_is_not_there_is_one_line(tmp_path, refusal):
    place = "~nosuchuser/x"
    for words in (
        ("train", "folder", "--data.dir", place),
        ("train", "mnist", "--data.dir", place),
        ("data", "prepare", "mnist", "--from-idx", place, "--dir", tmp_path),
    ):
        assert f"{place} has no home folder: give the whole path" in refusal(*words)


def test_a_terminal_without_the_letters_gets_escapes(tmp_path, python):
    for name in ("日本", "b"):
        picture(tmp_path / name / "0.png", len(name))
    done = python("-m", "resnet_jax", "verify", tmp_path, PYTHONIOENCODING="latin-1")
    assert done.stderr == ""
    assert "\\u65e5\\u672c (1 images)" in done.stdout


def test_the_help_states_each_default_once():
    """The help said "Default: 300. (default: None)"."""
    commands = ("train", "export", "demo", "predict", "summary", "data", "verify")
    text = " ".join("".join(map(help_of, commands)).replace("│", " ").split())
    assert "Train a network, or resume" in text  # it was `functools.partial`'s text
    assert "(default:" in text
    assert "Default:" not in text
    # For paths that must be given, the help said "(default: )".
    for command in ("compare", "predict"):
        assert "(default: )" not in help_of(command)


def without_device(errors, *commands):
    jax.config.update("jax_platforms", "rocm")  # as JAX_PLATFORMS sets it
    with errors.open("w") as file, redirect_stderr(file):
        codes = [main(list(map(str, words))) for words in commands]
    sys.exit(codes != [0, 1, 1, 1, 1])


def test_a_device_that_is_not_there_is_one_line_and_a_summary_needs_none(finished_run, tmp_path):
    """The summary began to use the accelerator, which another process may hold."""
    run, errors = finished_run.path, tmp_path / "errors.txt"
    verbs = [["evaluate", run], ["report", run], ["export", run, "--format", "torchvision"]]
    verbs = [["summary"], *verbs, ["train", "--run-dir", tmp_path / "run"]]
    assert ended(forked(without_device, errors, *verbs)) == 0
    lines = errors.read_text().splitlines()
    assert (len(lines), all("JAX_PLATFORMS" in line for line in lines)) == (4, True), lines
