"""Sampling from a base model: prompts, answers with random numbers of their own, and what judges them."""

from rgtg_logits.sampling.base_model import load_base_model, resolve_device
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
from rgtg_logits.sampling.sampler import Answer, Draw, Sampler, float64_device, possible, uniforms

__all__ = [
    "Answer",
    "Draw",
    "Judge",
    "Messages",
    "Prompt",
    "Sampler",
    "digest",
    "encode_prompts",
    "float64_device",
    "listed",
    "load_base_model",
    "load_reward",
    "possible",
    "read_prompts",
    "resolve_device",
    "reward_function",
    "uniforms",
    "usable_prompts",
]
