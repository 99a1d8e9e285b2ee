"""Random calls of `generate`, in all modes."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from oracle import padded

from rgtg_logits.testing import EOS, PAD, VOCAB_SIZE, tiny_base_model

LONGEST = 14
"""Tokens of the longest prompt, more than the windows of the models that have one."""
SAMPLED_BEAMS = "beam sampling"

SAMPLING = {"do_sample": True, "top_k": 0}
BATCHED = {
    "greedy": {},
    "sampling": SAMPLING,
    "return sequences": {**SAMPLING, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    SAMPLED_BEAMS: {**SAMPLING, "num_beams": 2},
}
"""Arguments of `generate` by mode."""
ASSISTED = {
    "assisted": {"assistant": 3},
    "assisted sampling": {"assistant": 3, **SAMPLING},
    "self-assisted": {"assistant": 0},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "prompt lookup sampling": {"prompt_lookup_num_tokens": 2, **SAMPLING},
}
"""The same for modes of one row; the draft model by its seed, of which 0 is the base model itself."""
MODES = BATCHED | ASSISTED


@lru_cache
def base_model(seed=0):
    return tiny_base_model(num_hidden_layers=1, seed=seed)


@dataclass(frozen=True)
class Generation:
    """One call of `generate`.

    Attributes:
        ends: Bias added to the score of the end-of-text token.
        allowed: Seed of a grammar that allows a few tokens, others in each row and step; None for all tokens.
        betas: The strength of each prompt.
    """

    mode: str
    prompts: list[list[int]]
    betas: list[float]
    length: int
    ends: float | None
    allowed: int | None

    @property
    def beta(self):
        """The strength as users would write it: one number where all prompts have the same."""
        return self.betas[0] if len({*self.betas}) == 1 else torch.tensor(self.betas)


def a_generation(integer, texts):
    """Prompts are the beginnings of a few texts, so that one call continues the text of another."""
    mode = pick(integer, [*BATCHED, *BATCHED, *ASSISTED])
    batch = 1 if mode in ASSISTED else integer(1, 4)
    return Generation(
        mode=mode,
        prompts=[pick(integer, texts)[: integer(1, LONGEST)] for _ in range(batch)],
        betas=betas(integer, batch),
        length=integer(1, 12),
        ends=pick(integer, [None, None, 2.0, 4.0]),
        # Sampled beams need more tokens than a grammar leaves.
        allowed=None if mode == SAMPLED_BEAMS else pick(integer, [None, None, integer(0, 50)]),
    )


def betas(integer, batch):
    """One strength for all prompts, or one for each."""
    strengths = [pick(integer, [0.0, 0.3, 1.0, 1.0, 4.0]) for _ in range(batch)]
    return pick(integer, [strengths, strengths[:1] * batch])


def pick(integer, options):
    return options[integer(0, len(options) - 1)]


def generate(call, processor, pad=PAD):
    """Makes the call."""
    arguments = dict(MODES[call.mode])
    if "assistant" in arguments:
        arguments["assistant_model"] = base_model(arguments.pop("assistant"))
    if call.ends is not None:
        arguments["sequence_bias"] = {(EOS,): call.ends}
    if call.allowed is not None:
        arguments["prefix_allowed_tokens_fn"] = lambda batch, row: few(call.allowed + 3 * batch + len(row))
    with torch.no_grad():
        base_model().generate(
            **padded(call.prompts, pad),
            max_new_tokens=call.length,
            pad_token_id=pad,
            suppress_tokens=None if pad == EOS else [pad],
            logits_processor=[processor],
            **arguments,
        )


def few(seed):
    return sorted({2 + (seed * seed + 7 * index) % (VOCAB_SIZE - 2) for index in range(1 + seed % 5)} | {EOS})
