"""Faults of the command's start, end and surroundings (FAULTS B5, E7, E10)."""

import contextlib
import functools
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

import resnet_jax as rj
from resnet_jax.cli import main
from resnet_jax.models import VARIANTS
from resnet_jax.signals import Stop

COMMAND = f"{sys.executable} -m resnet_jax"
TRAIN = [
    *("train", "--model.width", "2", "--model.lowering", "reference", "--no-report"),
    *("--data.subset", "60", "20", "20", "--batch-size", "20", "--epochs", "1"),
]


def shell(script, *arguments, **environment):
    """Run a shell script; in it ``$0`` is the command."""
    return subprocess.run(
        ["sh", "-c", script.replace("$0", COMMAND), COMMAND, *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | environment, timeout=100,
    )  # fmt: skip


def one_line(errors):
    (line,) = errors.splitlines()
    assert line.startswith("resnet-jax: ")
    return line


# E10: closed descriptors


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_changes_nothing(closed):
    done = shell(f"$0 data list {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("mnist_5k" in done.stdout) == (">&- " not in f"{closed} ".replace("2>&-", ""))


def test_what_is_printed_to_closed_descriptors_reaches_no_file(tmp_path):
    """Else the first file that is opened gets the number of standard output, or of input."""
    done = shell(f"$0 {' '.join(TRAIN)} --run-dir $1 <&- >&- 2>&-", tmp_path / "run")
    assert done.returncode == 0
    run = rj.Run.open(tmp_path / "run")
    assert run.verify().ok
    assert "epoch" not in (run.path / "run.log").read_text()


# E10: signals during the start


def python_path(folder, name, text):
    (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


RAISE = "import os, signal, time\n{guard}signal.raise_signal(signal.SIGINT)\n"
MOMENTS = {
    "while the command is being imported": ("tyro", "data list", RAISE.format(guard="")),
    "while it starts again with settings of malloc": (
        "sitecustomize",
        "train --seeds 0",
        RAISE.format(guard="if 'GLIBC_TUNABLES' in os.environ: "),
    ),
    "in an import that raises something else": (
        "flax",
        "summary",
        "import signal\ntry:\n signal.raise_signal(signal.SIGINT)\n"
        "except BaseException:\n raise ImportError('flax is half imported')\n",
    ),
    "where Python cannot raise": (
        "flax",
        "summary",
        "import signal, time\nclass Dying:\n"
        " def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "one = Dying()\none = None\ntime.sleep(20)\n",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the command starts again on Linux alone")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_during_the_start_is_one_line(moment, tmp_path):
    module, arguments, text = MOMENTS[moment]
    began = time.monotonic()
    done = shell(f"unset GLIBC_TUNABLES; $0 {arguments}", **python_path(tmp_path, module, text))
    assert done.returncode == 75, done.stderr
    assert "stopped by a signal" in one_line(done.stderr)
    assert time.monotonic() - began < 15


def test_under_nohup_the_command_outlives_its_terminal():
    """The shell's way to ignore SIGHUP, which a program is started with."""
    program = "import signal; from resnet_jax.signals import end_at_a_signal; end_at_a_signal(); "
    program += "signal.raise_signal(signal.SIGHUP); print('lives')"
    done = shell(f'trap "" HUP; exec {sys.executable} -c "{program}"')
    assert done.stdout == "lives\n"
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        assert shell(f'exec {sys.executable} -c "{program}"').returncode in (75, -signal.SIGHUP)


def test_a_signal_interrupts_until_training_begins_and_is_acknowledged_then(capfd):
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), stop.handling():
        signal.raise_signal(signal.SIGTERM)
    assert stop() is None
    with stop.handling():
        stop.on_start(0, 10)
        signal.raise_signal(signal.SIGTERM)
        end = time.monotonic() + 5
        while not stop():
            assert time.monotonic() < end
        assert stop() == "SIGTERM"
    assert "SIGTERM: stopping after this step; again to end now" in one_line(capfd.readouterr().err)


# E10, B5: names


@pytest.mark.parametrize("name", [b"r\xffun", b"r\x1b[31mun"], ids=["not UTF-8", "escape"])
def test_a_strange_name_is_shown_escaped(name, finished_run, tmp_path, capsys):
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
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == (1 if err else 0), err
        assert all(line.startswith("resnet-jax: ") for line in err.splitlines()), err
        assert "\x1b" not in out + err
        (out + err).encode()  # as a terminal gets it


def test_a_run_folder_that_is_no_utf8_is_refused(tmp_path, capsys):
    """Checkpoints cannot be written there."""
    assert main([*TRAIN, "--run-dir", str(tmp_path / os.fsdecode(b"r\xffun"))]) == 1
    assert "is no UTF-8: rename it, or give another --run-dir" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


# B5: surroundings


@pytest.mark.parametrize("arguments", [["evaluate", "RUN"], ["verify", "fashion_mnist"]])
def test_without_a_home_one_line_says_what_to_set(arguments, finished_run, monkeypatch, capsys):
    for name in ("HOME", "XDG_CACHE_HOME", "RESNET_JAX_CACHE_DIR", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert main([str(finished_run.path) if word == "RUN" else word for word in arguments]) == 1
    assert "cannot be located" in (line := one_line(capsys.readouterr().err))
    assert "set " in line


def test_a_run_of_another_network_is_one_line(finished_run, monkeypatch, capsys):
    """Trained by a program that put its own network into the table, or the other way round."""
    other = functools.partial(rj.ResNet, stage_sizes=(1,), unit=rj.BasicUnit)
    monkeypatch.setitem(VARIANTS, "resnet18", other)
    assert main(["evaluate", str(finished_run.path)]) == 1
    assert "was trained with another network than resnet18" in one_line(capsys.readouterr().err)


# E7: limits


@pytest.mark.parametrize("limit", ["-n 16", "-v 2200000"])
def test_limits_that_are_too_low_are_named(limit, finished_run):
    done = shell(f"ulimit {limit}; $0 evaluate $1", finished_run.path)
    assert done.returncode == 1
    assert f"(ulimit {limit[:2]}) must be at least" in one_line(done.stderr)


@contextlib.contextmanager
def largest_file(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files_is_named(finished_run, tmp_path, capsys):
    export = ["export", str(finished_run.path), "--format", "torchvision", "--output"]
    for arguments in ([*export, str(tmp_path / "net")], [*TRAIN, "--run-dir", str(tmp_path)]):
        with largest_file(1000):
            assert main(arguments) == 1
        assert "cannot be written (File too large)" in one_line(capsys.readouterr().err)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("net", ".net"))]


def test_a_checkpoint_without_permission_is_named(finished_run, tmp_path):
    run = shutil.copytree(finished_run.path, tmp_path / "run")
    (file,) = run.glob("checkpoints/12/state/_METADATA")
    file.chmod(0)
    drop = ""
    if os.geteuid() == 0:  # who may read everything
        powers = "-dac_override,-dac_read_search"
        drop = f"setpriv --bounding-set {powers} --inh-caps {powers}"
        if shutil.which("setpriv") is None:
            pytest.skip("nothing here takes root's powers away")
    done = shell(f"{drop} $0 evaluate $1 --checkpoint latest", run)
    assert done.returncode == 1
    assert "Permission denied" in (line := one_line(done.stderr))
    assert str(file) in line
