"""Requests that come and go at random, of a model that changes meanwhile: every reward is that of its text alone."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from random import Random

import pytest
import torch
from changing_model import changing, last_logits, last_rewards
from oracle import Rewards

from rgtg_logits import (
    CausalScorer,
    LogRatioScorer,
    ReferenceScorer,
    RetokenizingScorer,
    RewardModel,
    RewardModelConfig,
    VocabularyScorer,
    WeightedScorer,
)
from rgtg_logits.errors import ContextLengthError, VocabularyError
from rgtg_logits.testing import VOCAB_SIZE, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

STEPS = 25
LONGEST = 60
"""Tokens of the longest new text."""
TOLERANCE = 1e-4


def causal(model_type="llama", **options):
    model = changing(tiny_reward_model, model_type, last_rewards)
    return CausalScorer(RewardModel(model.model), **options), model


def roomy(model_type, *, seed):
    return tiny_reward_model(model_type, seed=seed, max_position_embeddings=1024)


def long_texts(**options):
    """Slots of several capacities."""
    model = changing(roomy, "llama", last_rewards)
    return CausalScorer(RewardModel(model.model), **options), model


def next_tokens(kind, scorer, model_type="llama", **options):
    model = changing(tiny_vocabulary_model, model_type, last_logits)
    return scorer(RewardModel(model.model, config=RewardModelConfig(kind=kind)), **options), model


def halves(model_type="llama"):
    model = changing(tiny_reward_model, model_type, last_rewards)
    return WeightedScorer([CausalScorer(RewardModel(model.model)) for _ in range(2)], [0.25, 0.75]), model


class AdaptedModel:
    """A model with two adapters, its states; see `ChangingModel`."""

    NAMES = ("first", "second")

    def __init__(self):
        self.model, *twins = (self.make() for _ in range(3))
        for twin, name in zip(twins, self.NAMES, strict=True):
            twin.set_adapter(name)
        self.rewards = [Rewards(last_rewards(twin.base_model.model)) for twin in twins]

    def make(self):
        peft = pytest.importorskip("peft", exc_type=ImportError)
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS", "init_lora_weights": False}
        model = peft.get_peft_model(tiny_reward_model(), peft.LoraConfig(**settings), adapter_name="first")
        model.add_adapter("second", peft.LoraConfig(**settings))
        return model

    def become(self, state):
        self.model.set_adapter(self.NAMES[state])


def adapters():
    model = AdaptedModel()
    return CausalScorer(RewardModel(model.model)), model


@lru_cache
def tokenizers():
    return tiny_tokenizer(vocab_size=420), tiny_tokenizer(vocab_size=340)


def wide(model_type, *, seed):
    return tiny_reward_model(model_type, seed=seed, vocab_size=350, max_position_embeddings=512)


def whole_texts(model):
    base, own = tokenizers()
    reference = ReferenceScorer(RewardModel(model, own), base)

    def read(tokens):
        texts = [reference.read(text[:-1], text[-1]) for text in tokens.tolist()]
        return torch.stack([reference.reward_model.score_tokens(torch.tensor([text]))[0, -1] for text in texts])

    return read


def other_tokens():
    base, own = tokenizers()
    model = changing(wide, "llama", whole_texts)
    return RetokenizingScorer(RewardModel(model.model, own), base), model


SCORERS = {
    "llama": causal,
    "gpt2": lambda: causal("gpt2"),
    "qwen3": lambda: causal("qwen3"),
    "mistral": lambda: causal("mistral"),
    "gemma2": lambda: causal("gemma2"),
    "gpt_neo": lambda: causal("gpt_neo"),
    "bloom": lambda: causal("bloom"),
    "jamba": lambda: causal("jamba"),
    "masked": lambda: causal(strategy="masked_tree_attention"),
    "masked windows": lambda: causal("gemma2", strategy="masked_tree_attention"),
    "expand": lambda: causal(strategy="expand"),
    "expand_model_cache": lambda: causal(strategy="expand_model_cache"),
    "recompute": lambda: causal(strategy="recompute"),
    "little memory": lambda: causal(cache_tokens=300),
    "little memory of windows": lambda: causal("mistral", strategy="expand", cache_tokens=300),
    "little memory of long texts": lambda: long_texts(cache_tokens=1500),
    "in pieces": lambda: causal(max_tokens_per_forward=16),
    "prepacked": lambda: causal(prepack=True),
    "speculating": lambda: causal(speculate=True),
    "adapters": adapters,
    "sum": halves,
    "vocabulary": lambda: next_tokens("vocabulary", VocabularyScorer),
    "vocabulary, speculating": lambda: next_tokens("vocabulary", VocabularyScorer, "gpt2", speculate=True),
    "log-ratio": lambda: next_tokens("log_ratio", LogRatioScorer),
    "other tokens": other_tokens,
}
"""Makers, by name, of a scorer and its model."""


class History:
    """Random requests to one scorer, and the comparison of every reward.

    Attributes:
        texts: Texts that are asked about now.
        gone: Texts that may come back.
        counts: What happened, and how many rewards were compared.
        worst: Largest error of a reward.
    """

    def __init__(self, scorer, model, seed, longest=LONGEST):
        self.scorer, self.model, self.random = scorer, model, Random(seed)
        self.vocab_size = scorer.vocab_size
        self.longest = longest
        self.state = 0
        self.texts, self.gone = [], []
        self.counts, self.worst = Counter(), 0.0

    def run(self):
        self.model.become(0)
        for _ in range(STEPS):
            event = self.random.choice(EVENTS)
            self.counts[event.__name__] += 1
            event(self)
            self.step()

    def new_text(self, length):
        return [self.random.randrange(2, self.vocab_size) for _ in range(length)]

    def shuffled(self, texts):
        return self.random.sample(texts, len(texts))

    def join(self):
        self.texts += [self.new_text(self.random.randint(1, self.longest)) for _ in range(self.random.randint(1, 3))]

    def join_behind_a_known_beginning(self):
        known = [*self.texts, *self.gone]
        if known:
            beginning = self.random.choice(known)
            beginning = beginning[: self.random.randint(1, len(beginning))]
            self.texts.append([*beginning, *self.new_text(self.random.randint(0, 20))])

    def leave(self):
        if self.texts:
            self.gone.append(self.texts.pop(self.random.randrange(len(self.texts))))

    def come_back(self):
        if self.gone:
            self.texts.append(self.gone.pop(self.random.randrange(len(self.gone))))

    def change_places(self):
        self.texts = self.shuffled(self.texts)

    def fork(self):
        if self.texts:
            self.texts += [self.random.choice(self.texts)] * self.random.randint(1, 3)

    def rewind(self):
        for place, text in enumerate(self.texts):
            self.texts[place] = text[: max(1, len(text) - self.random.randint(0, 6))]

    def be_replaced(self):
        if self.texts:
            self.texts[self.random.randrange(len(self.texts))] = self.new_text(self.random.randint(1, self.longest))

    def change_the_model(self):
        self.state = 1 - self.state
        self.model.become(self.state)

    def fail(self):
        """A text that is too long, or holds an unknown token, among others: its error, and nothing lost."""
        if self.vocab_size == VOCAB_SIZE:
            wrong = self.random.choice([[VOCAB_SIZE], [*[3] * 4096, VOCAB_SIZE]])
            with pytest.raises((ContextLengthError, VocabularyError)):
                self.score([*self.texts, wrong], [[2, 3]] * (len(self.texts) + 1), self.random.choice([None, 0]))

    def be_left_alone(self):
        pass

    def step(self):
        """Asks about some texts, in one thread or in two at once; those asked about mostly go on by a candidate."""
        self.texts = [text[: self.longest + 20] for text in self.texts[:8]] or [self.new_text(5)]
        asked = sorted(self.random.sample(range(len(self.texts)), self.random.randint(1, len(self.texts))))
        cut = self.random.randint(0, len(asked)) if self.random.random() < 0.2 else 0
        parts = [part for part in (asked[:cut], asked[cut:]) if part]
        candidates = [self.candidates(len(part)) for part in parts]
        padding = [self.random.choice([None, None, 0, 2]) for _ in parts]
        with ThreadPoolExecutor(2) as threads:
            texts = [[self.texts[place] for place in part] for part in parts]
            results = [*threads.map(self.score, texts, candidates, padding)]
        for part, tokens, rewards in zip(parts, candidates, results, strict=True):
            self.compare(part, tokens, rewards)
            for place, row in zip(part, tokens, strict=True):
                token = self.random.choice(row) if self.random.random() < 0.9 else self.random.randrange(2, 60)
                self.texts[place] = [*self.texts[place], token]

    def candidates(self, rows):
        """Candidates of each row, of which the first one is repeated where a row has fewer."""
        k = self.random.randint(1, 6)
        candidates = []
        for _ in range(rows):
            tokens = self.random.sample(range(2, self.vocab_size), self.random.randint(1, k))
            candidates.append([*tokens, *[tokens[0]] * (k - len(tokens))])
        return candidates

    def score(self, texts, candidates, padding):
        """Rewards of sequences, or of rows with so much padding more than the longest one needs."""
        candidates = torch.tensor(candidates)
        if padding is None:
            return self.scorer.score_sequences(texts, candidates)
        width = max(map(len, texts)) + padding
        padding = [width - len(text) for text in texts]
        rows = torch.tensor([[0] * number + text for number, text in zip(padding, texts, strict=True)])
        mask = torch.tensor([[0] * number + [1] * len(text) for number, text in zip(padding, texts, strict=True)])
        return self.scorer.score(rows, mask, candidates)

    def compare(self, places, candidates, rewards):
        right = self.model.rewards[self.state]
        texts = [tuple(self.texts[place]) for place in places]
        right.learn([(*text, token) for text, row in zip(texts, candidates, strict=True) for token in row])
        for text, row, given in zip(texts, candidates, rewards, strict=True):
            expected = torch.tensor([right[(*text, token)] for token in row])
            # Rewards are fixed up to a constant of the row.
            error = float(((given - given[0]) - (expected - expected[0])).abs().max())
            assert error <= TOLERANCE, f"{[*text]}, {row}: {error}"
            self.worst = max(self.worst, error)
            self.counts["rewards"] += len(row)


EVENTS = [
    History.join,
    History.join_behind_a_known_beginning,
    History.leave,
    History.come_back,
    History.change_places,
    History.fork,
    History.rewind,
    History.be_replaced,
    History.change_the_model,
    History.fail,
    History.be_left_alone,
]


def run(name, seeds, capsys):
    counts, worst = Counter(), 0.0
    for seed in seeds:
        longest = 400 if "long texts" in name else LONGEST
        history = History(*SCORERS[name](), f"{name} {seed}", longest)
        history.run()
        counts.update(history.counts)
        worst = max(worst, history.worst)
    assert counts["rewards"] > 100
    with capsys.disabled():
        happened = ", ".join(f"{counts[event.__name__]} × {event.__name__}" for event in EVENTS)
        print(f"\n{name}: {counts['rewards']} rewards, worst error {worst:.1e}; {happened}")  # noqa: T201


@pytest.mark.parametrize("name", SCORERS)
def test_random_histories(name, capsys):
    run(name, range(3), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCORERS)
def test_many_random_histories(name, capsys):
    run(name, range(3, 33), capsys)
