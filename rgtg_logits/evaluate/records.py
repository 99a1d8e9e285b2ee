"""Records of the answers, kept on disk batch by batch, from which an interrupted evaluation resumes.

The columns of a record, in order:

| column | meaning |
|---|---|
| `method`, `curve`, `beta`, `greedy` | the policy |
| `prompt`, `seed` | row of the prompt in the data, counting rows left out; number of the answer to it, from 0 |
| `prompt_text`, `answer` | texts without special tokens |
| `tokens`, `ended` | tokens of the answer with its end-of-text token, and whether it has one |
| `kl` | KL(policy ‖ base model) in nats: at each step over the whole vocabulary, summed over the steps |
| `log_ratio` | log π(answer) − log π_base(answer) in nats, whose expectation is the KL |
| `nll` | −log π_base(answer) in nats |
| `cut` | −log of the base model's probability of all tokens that can be sampled, summed over the steps, in nats |
| `distinct_1`, `distinct_2`, `distinct_3` | share of n-grams of the answer's tokens that are different |
| `batch_rows`, `batch_steps`, `batch_seconds` | records of the batch, steps of its longest answer, time |
| `batch_guide_forwards`, `batch_guide_tokens` | forwards of reward models for the batch, and their tokens |
| `reward_NAME` | reward by judge NAME; NaN for a text that is too long for it |

For best of n, time, forwards and tokens are those of all n draws, and `kl` is log π − log π_base of the answer under
the policy that sampled it, plus log n − (n − 1)/n: exact if rewards do not tie, else an upper bound (arXiv 2401.01879).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import pyarrow
import pyarrow.parquet

from rgtg_logits.files import write_atomically, write_json
from rgtg_logits.settings import check_same_run


class Record(TypedDict):
    """The columns of a record before it is judged; see the module docstring."""

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
    """Name of the column of a judge's rewards."""
    return f"reward_{judge}"


class Store:
    """A folder of tables, each of which appears whole or not at all.

    Several processes write to it at once, each its own tables, in any order.

    Args:
        folder: The folder.
        identity: The settings that determine the tables, as JSON values.

    Raises:
        InvalidArgumentError: If the folder holds tables of other settings.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        file = folder / "identity.json"
        if not file.exists():
            write_json(file, identity)
        check_same_run(
            json.loads(file.read_text()),
            # As it is read back: tuples are lists in JSON.
            json.loads(json.dumps(identity)),
            f"of the evaluation in {str(folder)!r}",
            "Use those settings to resume it, or another --output.",
        )

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a table; it is on the disk when this returns."""
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
