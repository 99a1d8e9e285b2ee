"""Times the benchmark's reward model reading a prompt, whole and in pieces (chunked prefill), on a CPU.

    python examples/cost/pieces.py

Prints milliseconds as Markdown: medians of rounds in which both take turns.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, set_seed

from rgtg_logits import CausalScorer, RewardModel
from rgtg_logits.scorers.engine import tree_attention

SIZES = ((1, 512), (1, 1024), (1, 2048), (4, 1024))
TYPES = (torch.float32, torch.bfloat16)
K = 20
ROUNDS = 5


def main() -> None:
    """Prints the table."""
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=4096, num_labels=1,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    print("| type | batch, prompt | whole | in pieces | ratio |\n|---|---|---|---|---|")
    for dtype in TYPES:
        scorer = CausalScorer(RewardModel(model.to(dtype)))
        for batch, length in SIZES:
            rows, candidates = torch.randint(32_000, (batch, length)), torch.randint(32_000, (batch, K))
            times: dict[int, list[float]] = {length + K: [], tree_attention.PREFILL_CHUNK: []}
            for _ in range(ROUNDS):
                for piece, measured in times.items():
                    measured.append(milliseconds(scorer, rows, candidates, piece))
            whole, pieces = (median(measured) for measured in times.values())
            name = str(dtype).removeprefix("torch.")
            print(f"| {name} | {batch}, {length} | {whole:.0f} | {pieces:.0f} | {pieces / whole:.2f} |", flush=True)


def milliseconds(scorer: CausalScorer, rows: torch.Tensor, candidates: torch.Tensor, piece: int) -> float:
    """The time of a first request, whose prompt is read in pieces of about `piece` columns."""
    default = tree_attention.PREFILL_CHUNK
    tree_attention.PREFILL_CHUNK = piece
    scorer.reset()
    begun = perf_counter()
    scorer.score(rows, torch.ones_like(rows), candidates)
    tree_attention.PREFILL_CHUNK = default
    return 1000 * (perf_counter() - begun)


if __name__ == "__main__":
    main()
