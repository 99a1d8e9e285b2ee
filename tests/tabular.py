"""Random worlds, and their tables by prefix as models of transformers and as a scorer, which look values up."""

from dataclasses import fields
from itertools import product

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, SequenceClassifierOutput

from rgtg_logits import Scorer
from rgtg_logits.exact import World

SIZES = {
    "no end": {"vocab": 3, "horizon": 4},
    "ends": {"vocab": 3, "horizon": 4, "eos": 0},
    "wide, ends": {"vocab": 5, "horizon": 3, "eos": 4},
}
CUTS = [f"{size}, {cut}" for size in SIZES for cut in ("whole", "top-2")]
BETAS = (0.3, 1.0, 3.0)
ROUNDING = 1e-13


def drawn(name):
    """The random world of a name in `CUTS`, whose base policy may be truncated to the two most probable tokens."""
    size, cut = name.rsplit(", ", 1)
    world = World.random(**SIZES[size], seed=len(name))
    return world if cut == "whole" else world.truncated(2)


def supported(log_probs):
    return log_probs > float("-inf")


def worst(values, expected, log_probs):
    """The largest difference of two tables over the prefixes that occur."""
    return max(float((a - b)[supported(p)].abs().max()) for a, b, p in zip(values, expected, log_probs, strict=True))


def random_rewards(world, seed=0):
    """A random reward of every prefix, independent of the world's rewards."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(world.vocab,) * i for i in range(world.horizon + 1)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


class TabularConfig(PretrainedConfig):
    """The world's tokens, followed by one that starts every text, and by padding."""

    model_type = "tabular"

    @classmethod
    def of(cls, world, **more):
        start = world.vocab
        return cls(vocab_size=start + 2, bos_token_id=start, pad_token_id=start + 1, eos_token_id=world.eos, **more)


class Lookup(nn.Module):
    """Looks up, for rows of token ids, a table with a row for every text and a column for every next token.

    Ids that are no tokens of the world are skipped, so that a row may begin with padding and the start token.
    """

    def __init__(self, steps) -> None:
        super().__init__()
        self.vocab = steps[0].shape[-1]
        # Texts are numbered as in a heap: text n followed by token v has the number n · vocab + 1 + v.
        self.register_buffer("table", torch.cat([step.reshape(-1, self.vocab) for step in steps]).float())

    def forward(self, rows):
        text = torch.zeros_like(rows[:, 0])
        for tokens in rows.T:
            text = torch.where(tokens < self.vocab, text * self.vocab + 1 + tokens, text)
        return self.table[text]


class TabularLM(PreTrainedModel, GenerationMixin):
    """The base policy of a world."""

    config_class = TabularConfig

    def __init__(self, world) -> None:
        super().__init__(TabularConfig.of(world))
        self.lookup = Lookup(world.policy)
        self.anchor = nn.Parameter(torch.zeros(1))  # generate takes device and dtype from the parameters.

    def forward(self, input_ids, **_):
        logits = nn.functional.pad(self.lookup(input_ids), (0, 2), value=float("-inf"))
        return CausalLMOutputWithPast(logits=logits[:, None])

    def prompts(self, texts):
        """Texts as rows that begin with the start token, padded on the left; and their attention mask."""
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


class TabularBackbone(PreTrainedModel):
    """A decoder with a cache whose state of a token is the one-hot number of the text that ends with it.

    The value of token v at position p of a text is (v + 1) · (vocab + 1) ** p, that of the start token 0, and the
    number of a text is the sum over the tokens that its last token attends to. So a wrong mask, position or cache gives
    the number of another text. Beyond the horizon, where no table is looked up, positions start over.
    """

    config_class = TabularConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.base, self.horizon = config.bos_token_id + 1, config.horizon
        self.embed_tokens = nn.Embedding(config.vocab_size, 1, dtype=torch.float64)
        with torch.no_grad():
            self.embed_tokens.weight[:, 0] = torch.arange(1.0, config.vocab_size + 1)
            self.embed_tokens.weight[config.bos_token_id] = 0.0

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=False, past_key_values=None, **_
    ):  # fmt: skip
        cache = past_key_values if cache is None else cache
        cache = DynamicCache() if use_cache and cache is None else cache
        if position_ids is None:
            start = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(start, start + input_ids.shape[1])[None]
        values = self.embed_tokens(input_ids) * self.base ** ((position_ids - 1) % self.horizon)[..., None]
        if cache is not None:
            values = cache.update(values[:, None], values[:, None], 0)[1][:, 0]
        visible = _visible(attention_mask, input_ids.shape[1], values.shape[1])
        number = torch.where(visible, values[:, None, :, 0], 0.0).sum(-1).long() % self.base**self.horizon
        states = nn.functional.one_hot(number, self.base**self.horizon).to(values.dtype)
        return with_cache(BaseModelOutputWithPast, cache, last_hidden_state=states)


def with_cache(output_class, cache, **parts):
    """An output with its cache under both names: `cache` since transformers 5.24, `past_key_values` before."""
    name = "cache" if "cache" in {field.name for field in fields(output_class)} else "past_key_values"
    output = output_class(**parts, **{name: cache})
    output.cache = cache
    return output


def _visible(mask, new, slots):
    """The slots that each new token sees, by a mask for attention layers or by one of rows."""
    if mask is not None and mask.dim() == 4:
        return mask[:, 0] == 0
    causal = torch.ones(slots, slots, dtype=torch.bool).tril()[-new:][None]
    return causal if mask is None else causal & mask[:, None].bool()


class TabularModel(PreTrainedModel):
    """The base of models whose last layer is a table with a column for every text.

    Args:
        world: The world.
        columns: Outputs behind every text: by its length, a row for each text of that length.
    """

    config_class = TabularConfig
    base_model_prefix = "model"

    def __init__(self, world, columns) -> None:
        super().__init__(TabularConfig.of(world, horizon=world.horizon, num_labels=1, tie_word_embeddings=False))
        self.model = TabularBackbone(self.config)
        # Random where the world has no text, because the probe could see nothing in a model that is 0 everywhere.
        shape = (columns[0].shape[1], (world.vocab + 1) ** world.horizon)
        table = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for length, rows in enumerate(columns):
            digits = 1 + torch.tensor(list(product(range(world.vocab), repeat=length))).view(len(rows), length).long()
            table[:, (digits * (world.vocab + 1) ** torch.arange(length)).sum(-1)] = rows.T
        self.layer = nn.Linear(*reversed(table.shape), bias=False, dtype=table.dtype)
        self.layer.weight.data.copy_(table)


class TabularClassifier(TabularModel):
    """The reward of every prefix, by a scalar head."""

    def __init__(self, world, rewards) -> None:
        super().__init__(world, [entry.view(-1, 1) for entry in rewards])

    def forward(self, input_ids, attention_mask=None):
        slots = torch.arange(input_ids.shape[1])
        last = (slots * (input_ids != self.config.pad_token_id)).argmax(-1)
        states = self.model(input_ids, attention_mask).last_hidden_state[torch.arange(len(input_ids)), last]
        return SequenceClassifierOutput(logits=self.layer(states))


class TabularRewardLM(TabularModel, GenerationMixin):
    """A language model whose logits behind a prefix are a table's entries.

    Args:
        world: The world.
        steps: Logits by the length of the prefix, as a policy has them.
        absent: Logit of the tokens that the world does not have, and in place of -inf, which no layer can return.
    """

    def __init__(self, world, steps, absent) -> None:
        finite = [
            step.view(-1, world.vocab).masked_fill(step.view(-1, world.vocab) == -torch.inf, absent) for step in steps
        ]
        super().__init__(world, [nn.functional.pad(rows, (0, 2), value=absent) for rows in finite])

    def get_output_embeddings(self):
        return self.layer

    def forward(
        self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=False, past_key_values=None, **_
    ):  # fmt: skip
        cache = past_key_values if cache is None else cache
        output = self.model(input_ids, attention_mask, position_ids, cache, use_cache)
        return with_cache(CausalLMOutputWithPast, output.cache, logits=self.layer(output.last_hidden_state))
