"""The file of results: a line of JSON for each finished run."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    """The finished runs; what a kill left of a line is none."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a line, on a line of its own even after half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n")
    with path.open("a") as file:
        file.write("\n" * bool(torn) + json.dumps(row, separators=(",", ":")) + "\n")
