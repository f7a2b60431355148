"""Two processes agree, and neither is left waiting for one that fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import member
import portpicker
import pytest
from faults import ended, forked, wait_until
from make_datasets import refused

from resnet_jax.errors import STOPPED
from resnet_jax.training import distributed, jax_settings


def start(folder: Path, what: str) -> "list[subprocess.Popen[str]]":
    port = str(portpicker.pick_unused_port())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, member.__file__, port]
    return [subprocess.Popen([*command, number, folder, what], **pipes) for number in "01"]


def ends(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Return exit code, output and errors of a process that must end within a minute."""
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "line"), [("bug", 1, "KeyError('no such name')"), ("interrupt", 75, STOPPED)]
)
def test_a_failure_of_one_ends_the_other_which_waits_for_it(what, code, line, tmp_path):
    """Before that they agree on values. The package's own errors: `reliability/test_hosts.py`."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".failed-0badcafe").write_text('["of an earlier start", 1]')
    waiting, failing = start(tmp_path, what)
    failed, output, _ = ends(failing)
    waited, first, errors = ends(waiting)
    assert failed == waited == code
    assert errors == f"resnet-jax: {line}\n"
    assert [path.name for path in run_dir.iterdir()] == [".failed-0badcafe"]
    main, other = (json.loads(text.splitlines()[-1]) for text in (first, output))
    assert main.pop("main") > other.pop("main")
    refused = ["the main process refuses", 7]
    assert main == other
    assert main == {
        "processes": 2,
        "long": [True, waiting.pid],
        "none": None,
        "refused": refused,
        "cached": str(waiting.pid),
        "refused first": refused,
        "differs": "process 1 has data abababababab and process 0 abababababab: give the same",
    }


def test_a_killed_process_ends_the_other(tmp_path):
    port = str(portpicker.pick_unused_port())
    members = [forked(member.main, port, number, tmp_path, "hang") for number in "01"]
    try:
        wait_until(lambda: all((tmp_path / f"agreed{number}").exists() for number in "01"), 60)
    finally:  # pytest would wait for them at its end
        members[0].kill()
    assert [ended(each, 60) for each in members] == [-signal.SIGKILL, -signal.SIGABRT]


def test_devices_of_other_processes_need_distributed_and_the_same_number_of_each(monkeypatch):
    """A TPU's other hosts have some; without --distributed each process would be a main process.

    With fewer of one, each ended in a ValueError on shapes; with no GPU, in an AssertionError.
    """
    devices = [SimpleNamespace(process_index=number // 2) for number in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert "are of 2 processes: give --distributed" in refused(jax_settings.find_devices)
    monkeypatch.setattr(jax_settings, "process_count", lambda: 2)
    assert jax_settings.find_devices() == devices
    monkeypatch.setattr(jax, "devices", lambda: devices[:3])
    assert "have 1 to 2 devices: give each the same number" in refused(jax_settings.find_devices)
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=AssertionError))
    assert "set JAX_PLATFORMS" in refused(jax_settings.find_devices)


def test_one_process_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "broadcast_one_to_all", None)
    monkeypatch.setattr(distributed, "process_allgather", None)
    assert distributed.broadcast_from_main(os.getpid) == os.getpid()
    assert distributed.main_process_first(object) is not None
    distributed.assert_equal("data", "not hexadecimal", "never said")
    with pytest.raises(ZeroDivisionError), distributed.failing_together(tmp_path / "run"):
        _ = 1 / 0
    assert not (tmp_path / "run").exists()
