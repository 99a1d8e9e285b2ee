"""What a guided token costs on the two models, as a ratio to a plain one."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from rgtg_logits.check.findings import Finding
from rgtg_logits.check.models import ModelPair
from rgtg_logits.errors import RGTGError
from rgtg_logits.instruments import Clock
from rgtg_logits.processor import PartialRewardLogitsProcessor
from rgtg_logits.reward_model import RewardModel
from rgtg_logits.scorers import CausalScorer, LogRatioScorer, RetokenizingScorer, Scorer, VocabularyScorer

PROMPT_LENGTH, NEW_TOKENS, ROUNDS = 64, 6, 3
"""Size of a run in tokens, and how many runs: a glance, not a benchmark."""
CANDIDATES = {
    "tree_attention": ("ok", "one forward per token, the prefix stored once"),
    "expand": ("note", "a copy of the prefix per candidate, so that memory grows with top_k"),
    "recompute": ("note", "no cache, top_k whole texts are read again for every token"),
}
"""Cost of a strategy that reads candidates, by the beginning of its name."""
NEXT_TOKENS = {
    "tree_attention": ("ok", "one forward per token over a single token, whatever top_k is"),
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
    """Times plain and guided generation behind a text in turns; medians.

    Args:
        pair: The models.
        scorer: The scorer that guides.
        texts: What is read first, again and again up to 64 tokens.
        top_k: Number of candidates.
        seed: Seed of the draws.
    """
    prompt = _prompt(pair, texts)
    if not prompt or not isinstance(scorer, CausalScorer | RetokenizingScorer | VocabularyScorer | LogRatioScorer):
        reason = f"{type(scorer).__name__} is none of this library's scorers" if prompt else "the context is too short"
        return [Finding("cost", "time", "note", f"not measured: {reason}")]
    guided = PartialRewardLogitsProcessor(scorer, top_k=top_k, pad_token_id=pair.pad_token_id)
    arms = ["plain", "ours", *(["floor"] if scorer.strategy.startswith("tree_attention") else [])]
    steps: dict[str, list[list[float]]] = {arm: [] for arm in arms}
    try:
        for _ in range(ROUNDS):
            for arm, runs in steps.items():
                scorer.reset()
                processors = {"plain": [], "ours": [guided], "floor": [_Step(pair.reward_model)]}[arm]
                runs.append(_milliseconds(pair, prompt, processors, seed))
    except RGTGError as error:
        # No fault of the pair that is not found elsewhere, such as tokens that stand for no text.
        return [Finding("cost", "time", "note", f"not measured: {error}")]
    first = {arm: median(run[0] for run in runs) for arm, runs in steps.items()}
    further = {arm: median(step for run in runs for step in run[1:]) for arm, runs in steps.items()}
    return [_ratio(f"first (prompt {len(prompt)})", first), _ratio("further token", further)]


def _prompt(pair: ModelPair, texts: Sequence[str]) -> list[int]:
    """As many tokens of the texts as leave room for the new ones; perhaps none."""
    text = " ".join(texts)
    if pair.prompt_format is not None:
        # A chat cannot be cut anywhere, so that what is said in it is.
        words = pair.tokenizer(text, add_special_tokens=False)["input_ids"][:PROMPT_LENGTH]
        chats = (pair.encode(pair.tokenizer.decode(words[:length])) for length in range(len(words), 0, -1))
        return next((chat for chat in chats if _fits(pair, chat)), [])
    ids = pair.encode(" ".join([text] * ceil(PROMPT_LENGTH / len(pair.encode(text)))))[:PROMPT_LENGTH]
    return ids[: next((length for length in range(len(ids), 0, -1) if _fits(pair, ids[:length])), 0)]


def _fits(pair: ModelPair, prompt: Sequence[int]) -> bool:
    room = pair.room([prompt])
    return room is None or room >= NEW_TOKENS


@torch.no_grad()
def _milliseconds(
    pair: ModelPair, prompt: Sequence[int], processors: Sequence[LogitsProcessor], seed: int
) -> list[float]:
    """How long each token took."""
    device = pair.base.device
    rows, clock = torch.tensor([prompt], device=device), Clock(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        clock.start()
        pair.base.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
            min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=pair.pad_token_id or 0,
            stopping_criteria=[clock], logits_processor=[*processors],
        )  # fmt: skip
    return clock.steps()


class _Step(LogitsProcessor):
    """One cached single-token step of the reward model, the least that guidance can cost; its result is thrown away."""

    def __init__(self, reward_model: RewardModel) -> None:
        self.reward_model, self.cache, self.length = reward_model, DynamicCache(), 0

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        # Which tokens are read does not matter, and the reward model may have fewer.
        new = input_ids[:, self.length :].clamp(max=self.reward_model.vocab_size - 1).to(self.reward_model.device)
        mask = torch.ones_like(input_ids, device=new.device)
        self.reward_model.hidden_states(new, mask, None, self.cache, use_cache=True, last=1)
        self.length = input_ids.shape[1]
        return scores


def _ratio(name: str, milliseconds: dict[str, float]) -> Finding:
    plain, ours = milliseconds["plain"], milliseconds["ours"]
    value = f"{ours / plain:.2f} × plain ({ours:.1f} ms against {plain:.1f})"
    if "floor" in milliseconds:
        value += f"; one RM step {milliseconds['floor'] / plain:.2f} ×"
    return Finding("cost", name, "ok", value, figures={f"{arm}_ms": figure for arm, figure in milliseconds.items()})
