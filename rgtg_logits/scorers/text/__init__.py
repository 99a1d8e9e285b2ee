"""From the base model's tokens to text, and from text to the reward model's tokens."""

from rgtg_logits.scorers.text.prompt_memory import PromptMemory
from rgtg_logits.scorers.text.retokenizer import BaseText, EncodedRow, PromptFormat, Retokenizer

__all__ = ["BaseText", "EncodedRow", "PromptFormat", "PromptMemory", "Retokenizer"]
