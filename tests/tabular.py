"""Random worlds, and a world as a language model of transformers and as a scorer, which look up the whole prefix."""

import torch
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from rgtg_logits import Scorer

SIZES = {
    "no end": {"vocab": 3, "horizon": 4},
    "ends": {"vocab": 3, "horizon": 4, "eos": 0},
    "wide, ends": {"vocab": 5, "horizon": 3, "eos": 4},
}


def random_rewards(world, seed=0):
    """A reward of every prefix, drawn without regard to what becomes of it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(world.vocab,) * i for i in range(world.horizon + 1)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


class TabularConfig(PretrainedConfig):
    model_type = "tabular"


class Lookup(nn.Module):
    """Reads a table with a row for every text and a column for every next token, given rows of token ids.

    Ids that are no tokens of the world are skipped, so that a row may start with padding and a mark.
    """

    def __init__(self, steps) -> None:
        super().__init__()
        self.vocab = steps[0].shape[-1]
        # Texts are numbered as a heap is: a step down from text n with token v leads to n · vocab + 1 + v.
        self.register_buffer("table", torch.cat([step.reshape(-1, self.vocab) for step in steps]).float())

    def forward(self, rows):
        text = torch.zeros_like(rows[:, 0])
        for tokens in rows.T:
            text = torch.where(tokens < self.vocab, text * self.vocab + 1 + tokens, text)
        return self.table[text]


class TabularLM(PreTrainedModel, GenerationMixin):
    """The base policy of a world. Behind the world's tokens come one that starts every text, and padding."""

    config_class = TabularConfig

    def __init__(self, world) -> None:
        start = world.vocab
        super().__init__(TabularConfig(
            vocab_size=start + 2, bos_token_id=start, pad_token_id=start + 1, eos_token_id=world.eos
        ))  # fmt: skip
        self.lookup = Lookup(world.policy)
        self.anchor = nn.Parameter(torch.zeros(1))  # generate asks the parameters for device and dtype.

    def forward(self, input_ids, **_):
        logits = nn.functional.pad(self.lookup(input_ids), (0, 2), value=float("-inf"))
        return CausalLMOutput(logits=logits[:, None])

    def prompts(self, texts):
        """Texts as rows, with the starting token in front, padded on the left; and their mask."""
        start, pad = self.config.bos_token_id, self.config.pad_token_id
        width = max(map(len, texts))
        rows = torch.tensor([[pad] * (width - len(text)) + [start, *text] for text in texts])
        return {"input_ids": rows, "attention_mask": (rows != pad).long()}


class TabularScorer(Scorer):
    """Rewards of prefixes from a table by length."""

    def __init__(self, world, rewards) -> None:
        self.lookup = Lookup(rewards[1:])
        self.pad_token_id = world.vocab + 1

    def score(self, rows, attention_mask, candidates):
        rewards = self.lookup(rows).gather(1, candidates)
        return rewards.masked_fill(attention_mask[:, -1:] == 0, 0.0)
