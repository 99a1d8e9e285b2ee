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
| `distinct_1`, `distinct_2`, `distinct_3` | share of n-grams of the answer's tokens that are different |
| `batch_rows`, `batch_steps`, `batch_seconds` | of the batch that the answer was decoded in |
| `batch_guide_forwards`, `batch_guide_tokens` | forwards of reward models for that batch, and tokens they read |
| `reward_NAME` | what judge NAME says; NaN where it cannot read so long a text |

Of the best of several answers, batches count all that were drawn, and `kl` is log π − log π_base of the answer under
the policy that drew it, plus log n − (n − 1)/n: exact if rewards do not tie, else an upper bound (arXiv 2401.01879).
"""

from __future__ import annotations

from typing import TypedDict


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
