"""Records of every step of a guided generation, and a self-contained HTML page that shows them."""

from rgtg_logits.trace.recorder import Trace
from rgtg_logits.trace.steps import StepRecord

__all__ = ["StepRecord", "Trace"]
