"""Times the matrix products of the benchmark's reward model, by the libraries that torch can call.

    python examples/cost/products.py

torch multiplies float32 by MKL on x86. oneDNN is asked for the same numbers, with weights as torch lays them out and
with a copy that is laid out for it. Prints microseconds of one product, each weight cold, as Markdown.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

SHAPES = ((768, 768), (3072, 768), (768, 3072))
TOKENS = (1, 5, 12, 20, 50, 160, 400)
LAYERS, ROUNDS = 12, 15


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    oned = torch.ops.mkldnn
    print("| outputs × inputs | tokens | MKL | oneDNN | oneDNN, own layout | MKL's GFLOP/s | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=generator) / shape[1] ** 0.5 for _ in range(LAYERS)]
        packed = [oned._reorder_linear_weight(weight, None) for weight in weights]
        for tokens in TOKENS:
            states = torch.randn(tokens, shape[1], generator=generator)

            def mkl(weight: torch.Tensor, states: torch.Tensor = states) -> torch.Tensor:
                return torch.nn.functional.linear(states, weight)

            def onednn(weight: torch.Tensor, states: torch.Tensor = states) -> torch.Tensor:
                return oned._linear_pointwise(states, weight, None, "none", [], "")

            ways = ((mkl, weights), (onednn, weights), (onednn, packed))
            times = [microseconds(*way) for way in ways]
            apart = max(float((mkl(one) - onednn(one)).abs().max()) for one in weights)
            rate = 2 * tokens * shape[0] * shape[1] / times[0] / 1000
            cells = (f"{shape[0]} × {shape[1]}", tokens, *(f"{time:.0f}" for time in times), f"{rate:.0f}")
            print("| " + " | ".join(map(str, (*cells, f"{apart:.0e}"))) + " |", flush=True)


def microseconds(product: Callable[[torch.Tensor], torch.Tensor], weights: list[torch.Tensor]) -> float:
    """The median time of one product, over a stack of weights that is more than the processor's cache holds."""
    times = []
    for _ in range(ROUNDS + 2):
        begun = perf_counter()
        for weight in weights:
            product(weight)
        times.append(perf_counter() - begun)
    return 1e6 * median(times[2:]) / len(weights)


if __name__ == "__main__":
    main()
