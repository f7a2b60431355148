"""What compiling leaves is handed back to the system."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import memory

COMPILED = "/jax/core/compile/backend_compile_duration"


def test_jax_says_when_it_has_compiled() -> None:
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: events.append(event)
    )
    jax.jit(lambda x: 3 * x + 1.25)(jnp.ones(7))
    assert COMPILED in events


def test_what_compiling_leaves_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = mock.Mock()
    monkeypatch.setattr(memory, "_glibc", lambda: libc)
    memory.trim_after_compiling.__wrapped__()
    jax.monitoring.record_event_duration_secs(COMPILED, 0.05)
    jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 5.0)
    libc.malloc_trim.assert_not_called()
    jax.monitoring.record_event_duration_secs(COMPILED, 0.2)
    libc.malloc_trim.assert_called_once_with(0)


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    assert not memory.keep_freed_memory()
    with mock.patch.object(jax.monitoring, "register_event_duration_secs_listener") as listen:
        memory.trim_after_compiling.__wrapped__()
    listen.assert_not_called()
