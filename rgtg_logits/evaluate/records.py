"""One record for each answer, on disk in parts that appear whole, so that a run that was killed goes on where it was.

The columns of a record, in order:

| column | what |
|---|---|
| `method`, `curve`, `beta`, `greedy` | the policy |
| `prompt`, `seed` | which prompt (its row in the data, left-out rows included), and which answer to it, from 0 |
| `prompt_text`, `answer` | texts, special tokens left out |
| `tokens`, `ended` | tokens of the answer, the one that ends it included, and whether there is one |
| `kl` | KL(policy ‖ base model) in nats: at each step over the whole vocabulary, summed over the steps |
| `log_ratio` | log π(answer) − log π_base(answer) in nats, whose expectation is the KL |
| `nll` | −log π_base(answer) in nats |
| `cut` | −log of the base model's probability of all tokens that can be drawn, summed over the steps, in nats |
| `distinct_1`, `distinct_2`, `distinct_3` | share of n-grams of the answer's tokens that are different |
| `batch_rows`, `batch_steps`, `batch_seconds` | of the batch of the answer: its records, steps of its longest, time |
| `batch_guide_forwards`, `batch_guide_tokens` | forwards of reward models for that batch, and tokens they read |
| `reward_NAME` | what judge NAME says; NaN where it cannot read so long a text |

Of the best of several answers, time, forwards and tokens are those of all that were drawn, and `kl` is log π −
log π_base of the answer under the policy that drew it, plus log n − (n − 1)/n: exact if rewards do not tie, else an
upper bound (arXiv 2401.01879).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow
import pyarrow.parquet

from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.files import write_atomically, write_json


class Record(TypedDict):
    """The columns that every record has, before it is judged; see the module."""

    method: str
    curve: str
    beta: float
    greedy: bool
    prompt: int
    seed: int
    prompt_text: str
    answer: str
    tokens: int
    ended: bool
    kl: float
    log_ratio: float
    nll: float
    cut: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    batch_rows: int
    batch_steps: int
    batch_seconds: float
    batch_guide_forwards: int
    batch_guide_tokens: int


def reward_column(judge: str) -> str:
    """The column of a judge's rewards."""
    return f"reward_{judge}"


class Store:
    """Tables on disk by name, each of which appears whole or not at all.

    Args:
        folder: Where they are.
        identity: Everything that decides what they are, as JSON values.

    Raises:
        InvalidArgumentError: If the folder holds tables of other settings.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        file, own = folder / "identity.json", json.loads(json.dumps(identity))
        if not file.exists():
            write_json(file, own)
        found = json.loads(file.read_text())
        differing = [name for name in own if name not in found or found[name] != own[name]]
        if differing:
            changes = ", ".join(f"{name} was {found.get(name)!r} and is {own[name]!r}" for name in differing)
            raise InvalidArgumentError(
                f"Expected the settings that the evaluation in {str(folder)!r} was begun with, but {changes}. Use "
                "those settings to go on with it, or another --output."
            )

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a table; when it returns, it is on the disk."""
        write_table(self._path(name), rows)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        return pyarrow.parquet.read_table(self._path(name)).to_pylist()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.parquet"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as Parquet, whole or not at all."""
    table = pyarrow.Table.from_pylist([dict(row) for row in rows])
    write_atomically(path, lambda file: pyarrow.parquet.write_table(table, file))
