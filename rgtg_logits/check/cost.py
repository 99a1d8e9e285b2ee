"""The cost of a guided token on the two models, as a ratio to a plain token."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import median

import torch
from transformers import LogitsProcessor

from rgtg_logits.check.findings import Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.errors import RGTGError
from rgtg_logits.instruments import FloorProcessor, StepClock
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.scorers import CausalScorer, LogRatioScorer, RetokenizingScorer, Scorer, VocabularyScorer

PROMPT_LENGTH = 64
"""Most tokens of the prompt: a glance, not a benchmark."""
NEW_TOKENS = 6
"""Tokens that each run generates."""
ROUNDS = 3
"""How often each method takes its turn."""
CANDIDATES = {
    "tree_attention": ("ok", "one forward per token, the prefix stored once"),
    "masked_tree_attention": ("ok", "one forward per token for rows of similar length, the prefix stored once"),
    "expand": ("note", "a copy of the prefix per candidate, so that memory grows with top_k"),
    "recompute": ("note", "no cache, top_k whole texts are read again for every token"),
}
"""Cost of a strategy that reads candidates, by the beginning of its name."""
NEXT_TOKENS = {
    "tree_attention": ("ok", "one forward per token over a single token, whatever top_k is"),
    "masked_tree_attention": ("ok", "one forward per token over a single token, whatever top_k is"),
    "expand": ("ok", "one forward per token over a single token, on a copy of the cache, whatever top_k is"),
    "recompute": ("note", "no cache, the whole text is read again for every token"),
}
"""The same of a model that scores its own next tokens."""


def describe_strategy(scorer: Scorer) -> Finding:
    """The strategy that the probe chose, and its cost."""
    if not isinstance(scorer, CausalScorer | RetokenizingScorer | VocabularyScorer | LogRatioScorer):
        return Finding("cost", "strategy", "note", f"{type(scorer).__name__}, whose cost is not known here")
    reads_candidates = isinstance(scorer, CausalScorer | RetokenizingScorer)
    costs = CANDIDATES if reads_candidates else NEXT_TOKENS
    status, meaning = next(cost for name, cost in costs.items() if scorer.strategy.startswith(name))
    if isinstance(scorer, RetokenizingScorer):
        meaning += "; top_k tokenisations"
    if isinstance(scorer, LogRatioScorer) and scorer.reference is not None:
        meaning += "; of both models"
    advice = "Exact, but slow; a plain attention model without ALiBi or recurrent layers shares the prefix."
    value = f"{type(scorer).__name__}, {scorer.strategy}: {meaning}"
    return Finding("cost", "strategy", status, value, advice if status == "note" else "")


def measure_cost(pair: ModelPair, scorer: Scorer, texts: Sequence[str], *, top_k: int, seed: int) -> list[Finding]:
    """Times plain and guided generation behind a prompt, in turns, and compares medians.

    Args:
        pair: The models.
        scorer: The scorer that guides.
        texts: The prompt, repeated up to 64 tokens.
        top_k: Number of candidates.
        seed: Seed of the draws.
    """
    prompt = _prompt(pair, texts)
    if not prompt or not isinstance(scorer, CausalScorer | RetokenizingScorer | VocabularyScorer | LogRatioScorer):
        reason = f"{type(scorer).__name__} is none of this library's scorers" if prompt else "the context is too short"
        return [Finding("cost", "time", "note", f"not measured: {reason}")]
    guided = PartialRewardLogitsProcessor(scorer, top_k=top_k, pad_token_id=pair.pad_token_id)
    runs: dict[str, list[list[float]]] = {"plain": [], "guided": []}
    if scorer.strategy in ("tree_attention", "masked_tree_attention"):
        runs["floor"] = []
    try:
        for _ in range(ROUNDS):
            for method, timed in runs.items():
                scorer.reset()
                processors = {"plain": [], "guided": [guided], "floor": [FloorProcessor(pair.reward_model)]}
                timed.append(_milliseconds(pair, prompt, processors[method], seed))
    except RGTGError as error:
        # A fault of the pair, such as tokens that stand for no text, has a finding of its own elsewhere.
        return [Finding("cost", "time", "note", f"not measured: {error}")]
    first = {method: median(run[0] for run in timed) for method, timed in runs.items()}
    further = {method: median(step for run in timed for step in run[1:]) for method, timed in runs.items()}
    return [_ratio(f"first (prompt {len(prompt)})", first), _ratio("further token", further)]


def _prompt(pair: ModelPair, texts: Sequence[str]) -> list[int]:
    """As many tokens of the texts as leave room for the new tokens; perhaps none."""
    text = " ".join(texts)
    if pair.prompt_format is not None:
        return _chat_prompt(pair, text)
    repeats = ceil(PROMPT_LENGTH / len(pair.encode(text)))
    ids = pair.encode(" ".join([text] * repeats))[:PROMPT_LENGTH]
    while ids and not _fits(pair, ids):
        ids = ids[:-1]
    return ids


def _chat_prompt(pair: ModelPair, text: str) -> list[int]:
    """The longest chat whose message is a beginning of the text; a rendered chat cannot be cut just anywhere."""
    message = pair.tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_LENGTH]
    for length in range(len(message), 0, -1):
        chat = pair.encode(pair.tokenizer.decode(message[:length]))
        if _fits(pair, chat):
            return chat
    return []


def _fits(pair: ModelPair, prompt: Sequence[int]) -> bool:
    room = pair.room([prompt])
    return room is None or room >= NEW_TOKENS


@torch.no_grad()
def _milliseconds(
    pair: ModelPair, prompt: Sequence[int], processors: Sequence[LogitsProcessor], seed: int
) -> list[float]:
    """The time of each new token."""
    device = pair.base.device
    rows = torch.tensor([prompt], device=device)
    clock = StepClock(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        clock.stamp()
        pair.base.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=pair.pad_token_id or 0,
            stopping_criteria=[clock], logits_processor=[*processors],
        )  # fmt: skip
    return [1000 * seconds for seconds in clock.seconds()]


def _ratio(name: str, milliseconds: dict[str, float]) -> Finding:
    plain = milliseconds["plain"]
    guided = milliseconds["guided"]
    value = f"{guided / plain:.2f} × plain ({guided:.1f} ms against {plain:.1f})"
    if "floor" in milliseconds:
        value += f"; one RM step {milliseconds['floor'] / plain:.2f} ×"
    figures = {f"{method}_ms": figure for method, figure in milliseconds.items()}
    return Finding("cost", name, "ok", value, figures=figures)
