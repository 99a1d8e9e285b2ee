"""Sampling from a base model: prompts, answers with reproducible random numbers, and judges of answers."""

from rgtg_logits.sampling.base_model import load_base_model, resolve_device
from rgtg_logits.sampling.judges import Judge, load_reward, reward_function
from rgtg_logits.sampling.prompts import (
    Messages,
    Prompt,
    describe_counts,
    digest_prompts,
    encode_prompts,
    read_prompts,
    usable_prompts,
)
from rgtg_logits.sampling.sampler import (
    Answer,
    InverseTransformProcessor,
    Sampler,
    float64_device,
    hashed_uniforms,
    support,
)

__all__ = [
    "Answer",
    "InverseTransformProcessor",
    "Judge",
    "Messages",
    "Prompt",
    "Sampler",
    "describe_counts",
    "digest_prompts",
    "encode_prompts",
    "float64_device",
    "hashed_uniforms",
    "load_base_model",
    "load_reward",
    "read_prompts",
    "resolve_device",
    "reward_function",
    "support",
    "usable_prompts",
]
