"""Checkpoints from elsewhere, whose checksums agree."""

import json

from make_datasets import refused

from resnet_jax import storage
from resnet_jax.training import checkpoint


def test_a_manifest_of_another_kind_is_damaged(checkpoints):
    whole = checkpoints.manifest(12)
    for change in (
        {"validation": 5},
        {"validation": {"accuracy": 1.0}},
        {"validation": {"accuracy": "x", "loss": "y"}},
        {"files": 5},
    ):
        body = {**vars(whole), **change}
        body["sha256"] = storage.json_sha256(body)
        (checkpoints.directory / "12" / "manifest.json").write_text(json.dumps(body))
        assert next(checkpoints.good_steps()) == 10, change


def test_a_state_that_would_fill_the_memory_or_is_none_is_refused(checkpoints, monkeypatch):
    assert checkpoints.restore_variables(12)
    monkeypatch.setattr(checkpoint, "SAVED", ("another",))
    assert "it is no training state" in refused(checkpoints.restore_variables, 12)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "HARMLESS", 0)
    monkeypatch.setattr(checkpoint, "MOST_COMPRESSED", 1e-9)  # as of zeros
    assert "bytes would become" in refused(checkpoints.restore_variables, 12)
