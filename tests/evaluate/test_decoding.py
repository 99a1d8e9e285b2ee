"""Decoding under every kind of policy equals a twin that is slow and obviously right."""

import copy
import math
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtg_logits import ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, ContextLengthError, InvalidArgumentError, VocabularyError
from rgtg_logits.evaluate.decoding import Decoders
from rgtg_logits.evaluate.methods import Method, Policy
from rgtg_logits.pairs.prompts import encode_prompts
from rgtg_logits.pairs.sampling import Sampler, uniforms
from rgtg_logits.testing import EOS, tiny_base_model, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

SIZE, TOP_K, STEPS, SEED = 300, 6, 10, 3
ENDS = [EOS, *range(40, 70)]
TEXTS = ["the film was", "a good plot, a bad cast and", "the", "the music of the end", "we'll see"]


def letters(prompts, responses):
    """A reward."""
    return [sum(map(str.isalpha, response)) / 3 for response in responses]


def picky(prompts, responses):
    """A reward that few answers have."""
    return [float("nan") if "e" in response else 1.0 for response in responses]


def never(prompts, responses):
    return [float("nan")] * len(responses)


def level(prompts, responses):
    return [1.0] * len(responses)


def base_model(model_type="llama"):
    model = tiny_base_model(model_type, vocab_size=SIZE)
    model.generation_config.eos_token_id = ENDS
    # None of an evaluation's business.
    model.generation_config.repetition_penalty = 9.0
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return encode_prompts(TEXTS, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Checkpoints: rm, rm2 (scalar), vocabulary, tuned (a language model), and such that do not fit."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in ((1, "rm"), (2, "rm2")):
        RewardModel(tiny_reward_model(vocab_size=SIZE, seed=seed), tokenizer).save_pretrained(folder / name)
    config = RewardModelConfig(kind="vocabulary")
    RewardModel(tiny_vocabulary_model(vocab_size=SIZE), tokenizer, config=config).save_pretrained(folder / "vocabulary")
    RewardModel(tiny_reward_model(vocab_size=80)).save_pretrained(folder / "few")
    short = tiny_reward_model(vocab_size=SIZE, max_position_embeddings=16)
    RewardModel(short, tokenizer).save_pretrained(folder / "short")
    for name, seed, size in (("tuned", 5, SIZE), ("wide", 5, SIZE + 4)):
        tiny_base_model(seed=seed, vocab_size=size).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def make(folder, tokenizer):
    """The decoders of a base model."""

    def build(model=None, **changes):
        values = {"max_new_tokens": STEPS, "top_k": TOP_K, "seed": SEED, "dtype": "float32", "device": "cpu"}
        return Decoders(model or base_model(), tokenizer, **{**values, **changes})

    return build


def policy(folder, beta=0.0, **values):
    """A policy whose checkpoints lie in the folder."""
    paths = {name: str(folder / values[name]) for name in ("model", "ranked_by") if name in values}
    guide = tuple(each if ":" in each else str(folder / each) for each in values.get("guide", ()))
    betas = (beta,) if guide else ()
    return Policy(Method(**{"name": "m", **values, **paths, "guide": guide, "beta": betas}), beta)


# The twin: no cache, no batch, no padding, no processor, no `generate`.


class Twin:
    """Draws and measures one answer at a time from what the formulas say.

    Args:
        base: The base model.
        drawing: What draws.
        reward: From a prefix and tokens to rewards; None without a guide.
    """

    def __init__(self, base, method, beta=0.0, drawing=None, reward=None):
        self.base, self.drawing, self.method, self.beta, self.reward = base, drawing or base, method, beta, reward

    def following(self, model, prefix):
        return model(torch.tensor([prefix])).logits[0, -1].double().log_softmax(-1)

    def policy(self, prefix):
        """The probability of each next token."""
        method, scores = self.method, self.following(self.drawing, prefix)
        top_k = TOP_K if method.top_k is None else method.top_k or SIZE
        order = scores.argsort(descending=True)[:top_k].tolist()
        share, kept = scores[order].softmax(-1), []
        for place, token in enumerate(order):
            in_nucleus = method.top_p is None or share[:place].sum() < method.top_p
            if in_nucleus and (method.min_p is None or share[place] >= method.min_p * share[0]):
                kept.append(token)
        guided = scores[kept]
        if self.reward is not None:
            guided = guided + self.beta * self.reward(prefix, kept).double()
        probability = torch.zeros(SIZE, dtype=torch.float64)
        if method.greedy:
            probability[kept[int(guided.argmax())]] = 1.0
        else:
            probability[kept] = (guided / method.temperature).softmax(-1)
        return probability

    @torch.no_grad()
    def answer(self, prompt, key):
        """New tokens, and the three sums."""
        new, kl, log_ratio, nll = [], 0.0, 0.0, 0.0
        for number in uniforms(key, STEPS):
            prefix = [*prompt.ids, *new]
            probability, base = self.policy(prefix), self.following(self.base, prefix)
            some = probability > 0
            kl += float((probability[some] * (probability[some].log() - base[some])).sum())
            token = int(torch.searchsorted(probability.cumsum(0), number, right=True))
            log_ratio += float(probability[token].log() - base[token])
            nll -= float(base[token])
            new.append(token)
            if token in ENDS:
                break
        return new, kl, log_ratio, nll


def rewards_of(folder, *names, weights=None, **options):
    """Rewards by the reference scorer, summed."""
    scorers = [ReferenceScorer(RewardModel.from_pretrained(folder / name, **options)) for name in names]

    def reward(prefix, tokens):
        rows, asked = torch.tensor([prefix]), torch.tensor([tokens])
        given = [scorer.score(rows, torch.ones_like(rows), asked)[0] for scorer in scorers]
        return sum(weight * each for weight, each in zip(weights or [1.0] * len(given), given, strict=True))

    return reward


def lettered(folder, tokenizer, prompts):
    """0.5 · rm − 2 · the function on text."""
    models = rewards_of(folder, "rm", weights=[0.5])

    def reward(prefix, tokens):
        prompt = max((each for each in prompts if prefix[: len(each.ids)] == each.ids), key=lambda each: len(each.ids))
        said = [prefix[len(prompt.ids) :] + ([] if token == EOS else [token]) for token in tokens]
        texts = [tokenizer.decode(each, skip_special_tokens=True).rstrip("\ufffd") for each in said]
        return models(prefix, tokens) - 2 * torch.tensor(letters([""] * len(texts), texts))

    return reward


CASES = {
    "base": {},
    "base, all tokens": {"top_k": 0},
    "base, greedy": {"greedy": True},
    "base, warm, nucleus": {"temperature": 1.4, "top_p": 0.8, "top_k": 40},
    "base, all tokens, nucleus": {"top_k": 0, "top_p": 0.6},
    "guided": {"guide": ["rm"], "beta": 1.5},
    "guided, greedy": {"guide": ["rm"], "beta": 1.5, "greedy": True},
    "guided, cold": {"guide": ["rm"], "beta": 1.5, "temperature": 0.6},
    "guided, nucleus": {"guide": ["rm"], "beta": 1.0, "top_p": 0.7},
    "guided, min_p": {"guide": ["rm"], "beta": 1.0, "min_p": 0.4},
    "no strength": {"guide": ["rm"], "beta": 0.0},
    "two guides": {"guide": ["rm", "rm2"], "beta": 1.0, "weights": (1.0, -0.5)},
    "one guide of a weight": {"guide": ["rm"], "beta": 1.0, "weights": (-2.0,)},
    "vocabulary": {"guide": ["vocabulary"], "beta": 1.0},
    "vocabulary, many tokens": {"guide": ["vocabulary"], "beta": 1.0, "top_k": 50},
    "log-ratio": {"guide": ["tuned"], "beta": 1.0, "kind": "log_ratio"},
    "another model": {"model": "tuned", "top_k": 0},
    "another model, greedy": {"model": "tuned", "greedy": True},
    "another model, guided": {"model": "tuned", "guide": ["rm"], "beta": 1.0},
}


def twin_of(folder, base, case):
    asked = policy(folder, **case)
    weights, options = case.get("weights"), {"kind": case["kind"]} if "kind" in case else {}
    reward = rewards_of(folder, *case["guide"], weights=weights, **options) if asked.beta else None
    drawing = AutoModelForCausalLM.from_pretrained(folder / case["model"]).eval() if "model" in case else None
    return Twin(base, asked.method, asked.beta, drawing, reward)


def check(records, twin, prompts, tokenizer, number):
    for prompt, record in zip(prompts, records, strict=True):
        new, kl, log_ratio, nll = twin.answer(prompt, f"{SEED}:{prompt.index}:{number}")
        ended = new[-1] in ENDS
        said = new[:-1] if ended else new
        text = tokenizer.decode([*prompt.ids, *said], skip_special_tokens=True).rstrip("\ufffd")
        assert (record["prompt_text"] + record["answer"]) == text
        assert (record["prompt"], record["seed"], record["prompt_text"]) == (prompt.index, number, prompt.text)
        assert (record["tokens"], record["ended"]) == (len(new), ended)
        assert [record["kl"], record["log_ratio"], record["nll"]] == pytest.approx([kl, log_ratio, nll], abs=2e-4)
        assert record["distinct_1"] == (len(set(said)) / len(said) if said else 1.0)


@pytest.mark.parametrize("case", CASES)
def test_every_policy_equals_the_twin(make, folder, prompts, tokenizer, case):
    base = base_model()
    records = make(base).open(policy(folder, **CASES[case])).answer(prompts, 2)
    check(records, twin_of(folder, base, CASES[case]), prompts, tokenizer, 2)
    assert any(record["kl"] > 0.3 for record in records) or case == "base, all tokens"


@pytest.mark.parametrize("model_type", ["gpt2", "gemma2"])
@pytest.mark.parametrize("case", ["guided", "another model"])
def test_padding_and_positions_of_other_architectures(make, folder, prompts, tokenizer, model_type, case):
    base = base_model(model_type)
    records = make(base).open(policy(folder, **CASES[case])).answer(prompts, 0)
    check(records, twin_of(folder, base, CASES[case]), prompts, tokenizer, 0)


def test_functions_of_the_text_guide(make, folder, prompts, tokenizer):
    base = base_model()
    values = {"guide": ["rm", "test_decoding:letters"], "beta": 1.0, "weights": (0.5, -2.0)}
    asked = policy(folder, **values)
    records = make(base).open(asked).answer(prompts, 0)
    check(records, Twin(base, asked.method, 1.0, None, lettered(folder, tokenizer, prompts)), prompts, tokenizer, 0)
