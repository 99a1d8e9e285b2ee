r"""Lists the methods that are compared, for `rgtg evaluate --methods`.

    python examples/reviews/methods.py --output_dir runs/reviews --which main > runs/reviews/methods/tune-main.yaml
    python examples/reviews/methods.py --output_dir runs/reviews --which main \
        --tuned runs/reviews/evaluation/tune-main > runs/reviews/methods/val-main.yaml

The first command lists every guided method at the strengths of a coarse grid, to be evaluated on tuning prompts. The
second lists each at the strengths that reach given divergences from the base model there, interpolated on the grid.
So every curve of the report spans the same divergences, which were chosen without the prompts that are reported.

Models that have not been trained are left out. The lists:

- `main` holds everything. Nothing is cut off, because fine-tuned models have the whole vocabulary too: scalar heads
  score 10 candidates, as many as in the paper's own code, vocabulary heads 100, and the other tokens are kept with the
  mean reward of these (`rest: keep`);
- `cut` is guidance as in the paper: the 10 candidates alone;
- `greedy` holds the variants that always take the best token;
- `large` guides far too strongly, to show where guidance fails;
- `k`, `layers` and `pairs` vary the number of candidates, the size of the reward model, and its training pairs;
- `best` is the best of 4 and of 16 answers of the base model;
- `plain` is the second task: the same answers, rewarded for plain style.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import HfArgumentParser

GUIDED = {
    "ARGS": ("full_bt", [2, 4, 8, 14]),
    "PARGS": ("partial_bt", [2, 4, 8, 14]),
    "CD": ("value", [2, 4, 7, 11]),
    "RAD": ("cumulative", [2, 4, 7, 11]),
    "CD, TD": ("value_td", [2, 4, 7, 11]),
    "soft value": ("soft_value", [2, 4, 7, 11]),
    "soft value, TD": ("soft_value_td", [2, 4, 7, 11]),
    "soft value, TD, of pairs": ("soft_value_td_from_pairs", [3, 6, 10, 16]),
}
VOCABULARY = {
    "ARGS, vocabulary": ("full_bt_vocabulary", [2, 4, 8, 14]),
    "PARGS, vocabulary": ("partial_bt_vocabulary", [2, 4, 8, 14]),
    "CD, vocabulary": ("value_vocabulary", [1, 2, 4, 7]),
    "soft value, TD, vocabulary": ("soft_value_td_vocabulary", [1, 2, 4, 7]),
    "soft value, TD, vocabulary, of pairs": ("soft_value_td_from_pairs_vocabulary", [3, 6, 10, 16]),
    "CD, TD, vocabulary, of guided answers, twice": ("value_td_guided_twice_vocabulary", [3, 6, 10, 16]),
    "CD, TD, vocabulary, of guided answers, thrice": ("value_td_guided_thrice_vocabulary", [2, 4, 7, 10]),
    "FaRMA": ("farma", [1, 2, 4, 8]),
    "GenARM": ("arm", [0.5, 1, 2, 4]),
}
PLAIN = {
    "ARGS": ("plain_full_bt", [2, 4, 8, 14]),
    "PARGS": ("plain_partial_bt", [2, 4, 8, 14]),
    "CD, TD": ("plain_value_td", [2, 4, 8, 14]),
    "soft value, TD": ("plain_soft_value_td", [2, 4, 8, 14]),
    "soft value, TD, vocabulary, of pairs": ("plain_soft_value_td_from_pairs_vocabulary", [2, 4, 8, 14]),
}
PAPER = ("ARGS", "PARGS")
SCALAR, LOGITS = 10, 100
"""Number of candidates that a scalar head and a vocabulary head score."""
LARGE = [1, 2, 4, 8, 16, 32, 64]
VARIED = {
    "layers": {f"{n} layers": f"partial_bt_layers_{n}" for n in (2, 4)} | {"6 layers": "partial_bt"},
    "pairs": {f"{n} pairs": f"partial_bt_pairs_{n}" for n in (500, 2000)}
    | {"8000 pairs": "partial_bt", "32000 pairs": "partial_bt_pairs_32000"},
}
CURVES = {
    "soft value, TD, vocabulary, of pairs": "soft value of pairs, vocab.",
    "CD, TD, vocabulary, of guided answers, twice": "guided answers twice, vocab.",
    "CD, TD, vocabulary, of guided answers, thrice": "guided answers thrice, vocab.",
}
"""Shorter names of some curves, for which a figure has room."""
PAIR, PAIR_GRID = "dpo-0.3", [0.5, 1, 2, 4]
"""A model tuned by DPO. Its log-ratio to the base model guides the base model: at strength 1 this is its own policy."""
CANDIDATES = (5, 10, 20, 50)
VARIED_GRID = [4, 8]
"""Strengths at which the number of candidates, the size of the reward model and its pairs are varied."""
GREEDY = {"ARGS greedy": ("full_bt", [1]), "PARGS-G": ("partial_bt", [1])}


@dataclass
class Arguments:
    """Folders of the models, and the list to print.

    `kl` holds target divergences, in nats beyond those of the base model with the same truncation; `far` holds more of
    them for vocabulary heads, which reach the divergences of RL.
    """

    output_dir: str = "runs/reviews"
    model: str = "model_cards/tiny-imdb-base"
    which: str = "main"
    tuned: str | None = None
    kl: list[float] = field(default_factory=lambda: [2.5, 8.0, 20.0])
    far: list[float] = field(default_factory=lambda: [35.0])


def methods(args: Arguments) -> Iterator[dict[str, Any]]:
    """The methods of a list."""
    models = Path(args.output_dir) / "reward_models"
    if args.which == "k":
        guide = str(models / GUIDED["PARGS"][0])
        for k in CANDIDATES:
            yield {"name": f"k = {k}", "guide": guide, "beta": list(VARIED_GRID), "top_k": k, "rest": "keep"}
        return
    yield {"name": "base"}
    if args.which == "best":
        yield from (best_of(n, Path(args.output_dir)) for n in (4, 16))
        return
    cut = args.which in ("cut", "greedy")
    for name, (folder, grid) in guided(args).items():
        if (models / folder).is_dir():
            targets = [*args.kl, *args.far] if name in VOCABULARY else args.kl
            betas = list(grid) if args.tuned is None else strengths(args.tuned, name, targets)
            method = {"name": name, "guide": str(models / folder), "beta": betas, "greedy": args.which == "greedy"}
            if not cut:
                method |= {"top_k": LOGITS if name in VOCABULARY else SCALAR, "rest": "keep"}
            yield {**method, "family": CURVES.get(name, name)}
    if args.which not in ("main", "plain"):
        return
    pair = Path(args.output_dir) / "policies" / PAIR
    if pair.is_dir() and args.which == "main":
        betas = PAIR_GRID if args.tuned is None else strengths(args.tuned, "DPO pair", [*args.kl, *args.far])
        guides = {"guide": [str(pair), args.model], "weights": [1, -1], "kind": "log_ratio"}
        yield {"name": "DPO pair", **guides, "beta": list(betas)}
    if args.tuned is not None:
        yield from unguided(Path(args.output_dir), "plain_" if args.which == "plain" else "")


def guided(args: Arguments) -> dict[str, tuple[str, list[float]]]:
    """The folder of each guide, and its strengths."""
    if args.which in VARIED:
        return {name: (folder, VARIED_GRID) for name, folder in VARIED[args.which].items()}
    if args.which == "large":
        return {"PARGS": (GUIDED["PARGS"][0], LARGE)}
    lists = {
        "main": {**GUIDED, **VOCABULARY},
        "plain": PLAIN,
        "cut": {name: GUIDED[name] for name in PAPER},
        "greedy": GREEDY,
    }
    return lists[args.which]


def unguided(output: Path, task: str) -> Iterator[dict[str, Any]]:
    """Methods without a strength, which need no tuning; the folders of a task begin with its name."""
    yield best_of(4, output, task)
    for kind, unit in (("dpo", "beta"), ("rl", "step")):
        for folder in sorted((output / "policies").glob(f"{task}{kind}-*")):
            name = f"{kind.upper()}, {unit} {folder.name.rpartition('-')[2]}"
            yield {"name": name, "family": kind.upper(), "model": str(folder)}


def best_of(n: int, output: Path, task: str = "") -> dict[str, Any]:
    """The best of several answers of the base model, as the full reward model ranks them."""
    ranker = str(output / "reward_models" / f"{task}full_bt")
    return {"name": f"best of {n}", "family": "best of n", "best_of": n, "ranked_by": ranker}


def strengths(folder: str, name: str, targets: list[float]) -> list[float]:
    """The strengths at which a method reaches target divergences, interpolated between those that were tried."""
    policies = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))["policies"]
    tried = sorted((policy["beta"], policy["kl"][0]) for policy in policies if policy["name"] in (name, "base"))
    if len(tried) < 3:
        raise ValueError(f"Expected {name!r} at several strengths in {folder}, but it has not been tuned there yet.")
    beta, kl = np.array(tried).T
    # Divergence grows with the square of the strength while that is small, so its root is interpolated.
    root = np.sqrt(np.maximum.accumulate(kl) - kl[0])
    beyond = kl - kl[0]
    reached = [target for target in targets if target <= beyond.max()]
    if not reached:
        raise ValueError(f"Expected {name!r} to reach one of {targets} nats, but its are {beyond.round(1).tolist()}.")
    return [float(f"{strength:.2g}") for strength in np.interp(np.sqrt(reached), root, beta)]


if __name__ == "__main__":
    parsed = HfArgumentParser(Arguments).parse_args_into_dataclasses()[0]
    print(yaml.safe_dump(list(methods(parsed)), sort_keys=False, allow_unicode=True), end="")
