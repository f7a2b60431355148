"""Faults of runs of several processes, in one process: what they agree on, and waiting."""

import errno
import hashlib
import os
import signal
import threading
from unittest import mock

import numpy as np
from faults import ended, forked
from make_datasets import refused

import resnet_jax as rj
from resnet_jax import cli, cli_train
from resnet_jax.signals import Stop
from resnet_jax.training import distributed, loop


def waiting_for_other_processes():
    stop = Stop()
    stop.meeting = True
    with stop.handling():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # in C, where no handler runs
    os._exit(1)


def test_a_signal_while_a_process_waits_for_others_ends_it():
    assert ended(forked(waiting_for_other_processes), 20) == 75


def test_the_command_says_that_it_waits(command, monkeypatch):
    stop, waits = Stop(), []
    monkeypatch.setattr(cli, "Stop", lambda: stop)
    monkeypatch.setattr(cli_train.Processes, "meet", lambda self: waits.append(stop.meeting))
    monkeypatch.setattr(cli_train, "_planned", lambda *_: [])
    assert command("train", "--distributed")[0] == 0
    assert (waits, stop.meeting) == ([True], False)


def test_a_run_looks_whether_its_folder_is_shared(own_run, tiny_config, monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "assert_shared", seen.append)
    rj.train(tiny_config, own_run, quiet=True)
    assert seen == [own_run]


def test_a_folder_that_processes_do_not_share_is_refused(tmp_path, monkeypatch):
    """This was noticed ten minutes after the first save, and then called a lack of space.

    So it was once more where each host held a copy of the run.
    """
    waited = []
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "process_allgather", lambda seen: np.array([True, seen]))
    monkeypatch.setattr(distributed.time, "sleep", waited.append)
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda make: make())
    (tmp_path / "config.yaml").touch()
    distributed.assert_shared(tmp_path)
    assert not waited
    assert os.listdir(tmp_path) == ["config.yaml"]
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda make: "made elsewhere")
    said = refused(distributed.assert_shared, tmp_path)
    assert said.startswith(f"process 1 does not see {tmp_path}")
    assert "--run-dir" in said
    assert sum(waited) >= 60  # NFS may show a new file only after a minute
    stale = mock.Mock(side_effect=OSError(errno.ESTALE, "Stale file handle"))
    monkeypatch.setattr(distributed.os, "stat", stale)  # then too, all must be told
    assert "process 1 does not see" in refused(distributed.assert_shared, tmp_path)
