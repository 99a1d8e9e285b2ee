"""Times the matrix products of the benchmark's reward model by the libraries that torch calls, MKL and oneDNN.

    python examples/cost/products.py

On x86, torch multiplies float32 by MKL and bfloat16 by oneDNN. Here oneDNN also computes the same products, with
weights as torch lays them out and with a copy in oneDNN's own layout, such as `prepack=True` keeps. Prints microseconds
of one product, each weight cold, as Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from statistics import median
from time import perf_counter

import torch

SHAPES = ((768, 768), (2048, 768), (768, 2048))
TYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 5, 12, 20, 50, 160, 400, 912)
LAYERS = 12
ROUNDS = 15


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    onednn = torch.ops.mkldnn
    print("| type | outputs × inputs | tokens | torch | oneDNN | oneDNN, laid out | its GFLOP/s | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for dtype, shape in product(TYPES, SHAPES):
        generator = torch.Generator().manual_seed(0)
        full = [torch.randn(shape, generator=generator) / shape[1] ** 0.5 for _ in range(LAYERS)]
        weights = [weight.to(dtype) for weight in full]
        laid_out = [onednn._reorder_linear_weight(weight) for weight in weights]
        for tokens in TOKENS:
            states = torch.randn(tokens, shape[1], generator=generator).to(dtype)

            def by_torch(weight: torch.Tensor, states: torch.Tensor = states) -> torch.Tensor:
                return torch.nn.functional.linear(states, weight)

            def by_onednn(weight: torch.Tensor, states: torch.Tensor = states) -> torch.Tensor:
                return onednn._linear_pointwise(states, weight, None, "none", [], "")

            variants = ((by_torch, weights), (by_onednn, weights), (by_onednn, laid_out))
            times = [microseconds(multiply, stack) for multiply, stack in variants]
            pairs = zip(weights, laid_out, strict=True)
            apart = max(float((by_torch(one) - by_onednn(other)).abs().max()) for one, other in pairs)
            rate = 2 * tokens * shape[0] * shape[1] / times[2] / 1000
            name = str(dtype).removeprefix("torch.")
            cells = (name, f"{shape[0]} × {shape[1]}", tokens, *(f"{time:.0f}" for time in times), f"{rate:.0f}")
            print("| " + " | ".join(map(str, (*cells, f"{apart:.0e}"))) + " |", flush=True)


def microseconds(multiply: Callable[[torch.Tensor], torch.Tensor], weights: list[torch.Tensor]) -> float:
    """The median time of one product, over a stack of weights that is larger than the processor's cache."""
    times = []
    for _ in range(ROUNDS + 2):
        begun = perf_counter()
        for weight in weights:
            multiply(weight)
        times.append(perf_counter() - begun)
    return 1e6 * median(times[2:]) / len(weights)


if __name__ == "__main__":
    main()
