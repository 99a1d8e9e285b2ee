"""The exceptions of this library.

    RGTGError
    ├── InvalidArgumentError   (also a ValueError)   an argument out of its range
    ├── CheckpointError        (also an OSError)     a repository or folder that cannot be loaded as a reward model
    ├── HubError               (also an OSError)     an upload that the Hub refused, or that was cut off
    ├── RewardModelError       (also a ValueError)   a model that cannot give rewards of prefixes
    ├── VocabularyError        (also a ValueError)   the reward model does not know the base model's tokens
    ├── PaddingError           (also a ValueError)   padding that cannot be distinguished from text
    ├── ContextLengthError     (also a ValueError)   a prefix longer than the reward model can read
    └── NonFiniteRewardError   (also a ValueError)   a reward that is NaN or infinite

Every message says what was expected, what was passed or found, and what to do.
"""

from __future__ import annotations


class RGTGError(Exception):
    """Base class of all exceptions that this library raises on purpose."""


class InvalidArgumentError(RGTGError, ValueError):
    """An argument is out of its range."""


class CheckpointError(RGTGError, OSError):
    """A repository or folder cannot be loaded as a reward model."""


class HubError(RGTGError, OSError):
    """The Hub refused an upload, or it was cut off; the repository is unchanged, unless the message says otherwise."""


class RewardModelError(RGTGError, ValueError):
    """A model cannot give rewards of prefixes."""


class VocabularyError(RGTGError, ValueError):
    """The reward model does not know the base model's tokens."""


class PaddingError(RGTGError, ValueError):
    """Padding cannot be distinguished from text."""


class ContextLengthError(RGTGError, ValueError):
    """A prefix is longer than the reward model can read."""


class NonFiniteRewardError(RGTGError, ValueError):
    """A reward is NaN or infinite."""
