"""Text between two tokenizers: the base model's tokens as text, and that text as the reward model's tokens."""

from rgtg_logits.scorers.text.ends import checked_eos_token_ids
from rgtg_logits.scorers.text.prompt_memory import PromptMemory
from rgtg_logits.scorers.text.retokenizer import Detokenizer, EncodedRow, PromptFormat, Retokenizer

__all__ = ["Detokenizer", "EncodedRow", "PromptFormat", "PromptMemory", "Retokenizer", "checked_eos_token_ids"]
