"""`rgtg demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rgtg_logits.cli.options import Beta, MaxNewTokens, Prompt, Seed, TopK


def demo(
    prompt: Prompt = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model: Hub id or folder. The shipped one by default.")
    ] = None,
    reward_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Reward model: Hub id or folder. The shipped one by default.")
    ] = None,
    beta: Beta = 4.0,
    top_k: TopK = 20,
    max_new_tokens: MaxNewTokens = 48,
    seed: Seed = 0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML page that shows every step.")
    ] = None,
) -> None:
    """Shows texts with and without guidance side by side, with reward and time per token."""
    from rgtg_logits.demo import run_demo

    run_demo(
        prompts=prompt, base=base, reward_model=reward_model, beta=beta, top_k=top_k, max_new_tokens=max_new_tokens,
        seed=seed, trace=trace,
    )  # fmt: skip
