"""Sampling from a base model: prompts, answers with random numbers of their own, and what judges them."""

from rgtg_logits.sampling.base_model import load_base_model, place
from rgtg_logits.sampling.data_sets import open_stream
from rgtg_logits.sampling.judges import Judge, load_reward, reward_function
from rgtg_logits.sampling.prompts import (
    Messages,
    Prompt,
    digest,
    encode_prompts,
    listed,
    read_prompts,
    usable_prompts,
)
from rgtg_logits.sampling.sampler import Answer, Draw, Sampler, possible, uniforms, where_wide

__all__ = [
    "Answer",
    "Draw",
    "Judge",
    "Messages",
    "Prompt",
    "Sampler",
    "digest",
    "encode_prompts",
    "listed",
    "load_base_model",
    "load_reward",
    "open_stream",
    "place",
    "possible",
    "read_prompts",
    "reward_function",
    "uniforms",
    "usable_prompts",
    "where_wide",
]
