"""Shared by the experiments: rows of results on disk, calls timed in turns, and summaries."""

import contextlib
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tables import ROOT
from resnet_jax.errors import ResNetJaxError
from resnet_jax.memory import cores

Row = dict[str, Any]
CPU_INFO = Path("/proc/cpuinfo")  # on Linux


def read_rows(path: Path, **values: Any) -> list[Row]:
    """Return the rows that have these values, sorted by seed; skip lines cut short by a kill."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    found = (row for row in rows if values.items() <= row.items())
    return sorted(found, key=lambda row: row.get("seed", 0))


def append_row(path: Path, row: Row) -> None:
    """Append a row as a line of its own, even if the file ends in half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * bool(torn) + json.dumps(row, separators=(",", ":")) + "\n")


def of_processor(folder: Path, name: str) -> Path:
    """Return the path of a results file in the folder of this kind of processor."""
    from resnet_jax.ops.heuristics import instruction_set  # loads JAX: not in PyTorch's processes

    amx = CPU_INFO.exists() and "amx_tile" in CPU_INFO.read_text()  # on Intel, besides AVX-512
    kind = instruction_set() if "86" in platform.machine() else platform.machine()
    return folder / ("amx" if amx else kind) / f"{name}.json"


def read_json(path: Path, missing: Any = None) -> Any:
    """Read what `write_json` wrote; without a file, return ``missing`` if it is given."""
    return missing if missing and not path.exists() else json.loads(path.read_text())


def write_json(path: Path, value: list[Row] | Row) -> None:
    """Write a list of rows, or a dictionary of values and such lists, with a line for each row."""
    path.parent.mkdir(exist_ok=True)
    row = 1 if isinstance(value, list) else 2  # spaces before the line of a row
    inside = rf"\n( {{{row + 1},}}| {{{row}}}(?=[]}}]))"
    path.write_text(re.sub(inside, " ", json.dumps(value, indent=1)) + "\n")


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    times: int = 1,
    warm_rounds: int = 0,
    warm_calls: int = 0,
) -> dict[str, list[float]]:
    """Return the seconds of each call over rounds in which the calls take turns, ``times`` each.

    Thus a slow minute falls on all of them. ``warm_rounds`` whole rounds, and ``warm_calls`` calls
    at the start of every turn, are not measured. A call has to wait for its own result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-warm_rounds, rounds):
        for name, call in calls.items():
            for number in range(-warm_calls, times):
                began = time.perf_counter()
                call()
                if round_ >= 0 and number >= 0:
                    seconds[name].append(time.perf_counter() - began)
    return seconds


def milliseconds(calls: Mapping[str, Callable[[], Any]], **turns: int) -> dict[str, float]:
    """Return the median milliseconds of each call of JAX, timed by `in_turns`."""
    import jax

    waiting = {n: lambda call=call: jax.block_until_ready(call()) for n, call in calls.items()}
    seconds = in_turns(waiting, **turns)
    return {name: round(1e3 * statistics.median(s), 3) for name, s in seconds.items()}


def with_cache(folder: Path | str) -> dict[str, str]:
    """Return environment variables that make JAX cache every compiled program in a folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def in_process(module: str, function: str, *arguments: Any, **environment: str) -> Any:
    """Call a function of an experiment in a process of its own; return its result, through JSON."""
    code = f"""import json, sys; from experiments.{module} import {function}
print(json.dumps({function}(*json.loads(sys.argv[1]))))"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def mean_and_sd(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Format as ``98.27 % ± 0.31``; one value has no spread, and no values give an empty string."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{unit}{spread}" if len(values) else ""


def count_seeds(values: Sized) -> str:
    return f"{len(values)} seed" + "s" * (len(values) != 1)


def interval(*samples: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean (Student's t) or of a difference (Welch's)."""
    from scipy import stats

    if min(map(len, samples)) < 2:
        return np.nan, np.nan  # one value has no spread
    if not any(map(np.ptp, samples)):
        difference = float(np.subtract.reduce([np.mean(sample) for sample in samples]))
        return difference, difference
    if len(samples) == 1:
        test = stats.ttest_1samp(*samples, 0)
    else:
        test = stats.ttest_ind(*samples, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return float(low), float(high)


def machine(*packages: str) -> Row:
    """Return what measured times depend on: processor, accelerator, cores, system, and versions."""
    names = re.findall(r"model name\s*: (.*)", CPU_INFO.read_text()) if CPU_INFO.exists() else []
    accelerator = {}
    if "jax" in packages:
        import jax

        device = jax.devices()[0]
        accelerator = {} if device.platform == "cpu" else {"device": device.device_kind}
    return {
        "processor": names[0] if names else platform.processor(),
        **accelerator,
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def place(machine: Row) -> str:
    """Describe the machine that was measured on, from a row of `machine`."""
    packages = [f"{name} {machine[name]}" for name in ("jax", "onnxruntime") if name in machine]
    on = [machine["device"]] if "device" in machine else []
    return ", ".join([*on, f"{machine['cores']} cores of an {machine['processor']}", *packages])


def command(main: Callable[..., None]) -> None:
    """Call a function with the command line's options; exit with a `ResNetJaxError`'s message."""
    import tyro  # imported here, because a process whose start is measured does not need it

    try:
        tyro.cli(main)
    except ResNetJaxError as error:
        sys.exit(str(error))


def resident_mib(which: str = "VmHWM") -> float:
    """Return this process's peak of resident memory in MiB, or with ``VmRSS`` what is resident now.

    Unlike ru_maxrss, the peak is of this program alone.
    """
    if not Path("/proc").exists():  # macOS, where it is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(which)) / 1024
