"""Files of weights: safetensors without torch, ``.pth`` with it. Nothing in a file may run code."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import ResNetJaxError

PICKLES = (".pth", ".pt", ".bin")


def load_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a file of named arrays.

    Args:
        path: ``.safetensors``, or torch's ``.pth``, ``.pt``, ``.bin``, which need torch and are
            read with ``weights_only=True``: numbers and names, no objects. A training script's
            ``{"model": ...}`` or ``{"state_dict": ...}`` is looked into.

    Returns:
        Arrays by name, in the file's precision.

    Raises:
        ResNetJaxError: the file is missing, cut short, of another kind, or tries to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ResNetJaxError(f"{path} is not a file: give a .safetensors or .pth file of weights")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in PICKLES:
        return _load_pickle(path)
    raise ResNetJaxError(
        f"{path} has the suffix {path.suffix or 'none'}: "
        f"expected .safetensors, {', '.join(PICKLES)}"
    )


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that a ``.safetensors`` file carries beside its arrays; other files have none."""
    from safetensors import SafetensorError, safe_open

    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(Path(path), error) from error


def save_weights(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a ``.safetensors`` file, as a whole or not at all."""
    from safetensors.numpy import save

    # The format knows "pt" as the mark of a file that torch's loader may take.
    marks = {"format": "pt", **(metadata or {})}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(Path(path), save(contiguous, metadata=marks))


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file as a whole or not at all.

    Raises:
        ResNetJaxError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ResNetJaxError(
            f"{path} cannot be written ({error.strerror}): give another --output"
        ) from error


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _load_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ResNetJaxError(
            f"{path} needs torch to be read: `pip install torch`, or give a .safetensors file"
        ) from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text advises to switch the protection off.
        raise ResNetJaxError(
            f"{path} holds more than numbers and names, or is damaged: it was not read, since a "
            f"pickle can run code; save its state_dict() alone"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ResNetJaxError(f"{path} holds a {type(content).__name__}: expected a state_dict")
    arrays = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise ResNetJaxError(
                f"{path} holds a {type(value).__name__} under {name!r}: expected a state_dict of "
                f"dense tensors"
            )
        value = value.detach()
        half = value.dtype == torch.bfloat16  # which numpy does not know
        arrays[str(name)] = (value.float() if half else value).numpy()
    return arrays


def _damaged(path: Path, error: Exception) -> ResNetJaxError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ResNetJaxError(f"{path} is damaged or not what its name says: {reason[:200]}")
