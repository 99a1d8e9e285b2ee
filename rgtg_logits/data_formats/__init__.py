"""Formats of well-known data sets: recognised by their columns, and read as preference pairs or rewarded answers."""

from rgtg_logits.data_formats.formats import FORMATS, NAMES, DatasetFormat
from rgtg_logits.data_formats.messages import Messages, assistant, bring_together, has_text, plain_value, user
from rgtg_logits.data_formats.reading import DATA, FORMAT_ADVICE, REASONS, Reading, plan_reading
from rgtg_logits.data_formats.recognition import COLUMNS, find_format, mapped_columns

__all__ = [
    "COLUMNS",
    "DATA",
    "FORMATS",
    "FORMAT_ADVICE",
    "NAMES",
    "REASONS",
    "DatasetFormat",
    "Messages",
    "Reading",
    "assistant",
    "bring_together",
    "find_format",
    "has_text",
    "mapped_columns",
    "plain_value",
    "plan_reading",
    "user",
]
