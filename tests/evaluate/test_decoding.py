"""Decoding under every kind of policy equals a twin that is slow and obviously right."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

from rgtg_logits import ReferenceScorer, RewardModel, RewardModelConfig
from rgtg_logits.errors import CheckpointError, ContextLengthError, InvalidArgumentError, VocabularyError
from rgtg_logits.evaluate.decoding import Decoders
from rgtg_logits.evaluate.methods import Method, Policy
from rgtg_logits.sampling.prompts import encode_prompts
from rgtg_logits.sampling.sampler import Sampler, hashed_uniforms
from rgtg_logits.testing import EOS, tiny_base_model, tiny_reward_model, tiny_tokenizer, tiny_vocabulary_model

SIZE, TOP_K, STEPS, SEED = 300, 6, 10, 3
ENDS = [EOS, *range(8, SIZE, 5)]
TEXTS = ["the film was", "a good plot, a bad cast and", "the", "the music of the end", "we'll see"]


def letters(prompts, responses):
    """A reward."""
    return [sum(map(str.isalpha, response)) / 3 for response in responses]


def picky(prompts, responses):
    """A reward that half of the answers have."""
    return [1.0 if len(response) % 2 else float("nan") for response in responses]


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
    other = tiny_tokenizer(vocab_size=280, kind="llama3")
    RewardModel(tiny_reward_model(vocab_size=SIZE, seed=4), other).save_pretrained(folder / "foreign")
    RewardModel(tiny_vocabulary_model(vocab_size=SIZE), other, config=config).save_pretrained(folder / "stranger")
    short = tiny_reward_model(vocab_size=SIZE, max_position_embeddings=16)
    RewardModel(short, tokenizer).save_pretrained(folder / "short")
    for name, seed, size in (("tuned", 5, SIZE), ("wide", 5, SIZE + 4), ("base", 0, SIZE)):
        tiny_base_model(seed=seed, vocab_size=size).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    config = RewardModelConfig(kind="log_ratio", reference=str(folder / "base"))
    RewardModel(tiny_base_model(seed=5, vocab_size=SIZE), tokenizer, config=config).save_pretrained(folder / "dpo")
    return folder


@pytest.fixture
def make(folder, tokenizer):
    """The decoders of a base model."""

    def build(model=None, **changes):
        values = {
            "max_new_tokens": STEPS,
            "top_k": TOP_K,
            "seed": SEED,
            "dtype": "float32",
            "guide_dtype": "float32",
            "device": "cpu",
        }
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
        if method.rest == "keep":
            given = torch.zeros(SIZE, dtype=torch.float64)
            if self.reward is not None:
                rewards = self.reward(prefix, kept).double()
                given.fill_(float(scores[kept].softmax(-1) @ rewards))
                given[kept] = rewards
            kept, guided = list(range(SIZE)), scores + self.beta * given
        probability = torch.zeros(SIZE, dtype=torch.float64)
        if method.greedy:
            probability[kept[int(guided.argmax())]] = 1.0
        else:
            probability[kept] = (guided / method.temperature).softmax(-1)
        return probability

    @torch.no_grad()
    def answer(self, prompt, key):
        """New tokens, and the four sums."""
        new, kl, log_ratio, nll, cut = [], 0.0, 0.0, 0.0, 0.0
        for number in hashed_uniforms(key, STEPS):
            prefix = [*prompt.ids, *new]
            probability, base = self.policy(prefix), self.following(self.base, prefix)
            some = probability > 0
            cut -= float(base[some].exp().sum().log())
            kl += float((probability[some] * (probability[some].log() - base[some])).sum())
            token = int(torch.searchsorted(probability.cumsum(0), number, right=True))
            log_ratio += float(probability[token].log() - base[token])
            nll -= float(base[token])
            new.append(token)
            if token in ENDS:
                break
        return new, kl, log_ratio, nll, cut


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
    "guided, the rest kept": {"guide": ["rm"], "beta": 1.5, "rest": "keep"},
    "guided, the rest kept, greedy": {"guide": ["rm"], "beta": 1.5, "rest": "keep", "greedy": True},
    "no strength, the rest kept": {"guide": ["rm"], "beta": 0.0, "rest": "keep"},
    "vocabulary, the rest kept": {"guide": ["vocabulary"], "beta": 1.0, "top_k": 30, "rest": "keep"},
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
        new, *sums = twin.answer(prompt, f"{SEED}:{prompt.index}:{number}")
        ended = new[-1] in ENDS
        said = new[:-1] if ended else new
        text = tokenizer.decode([*prompt.ids, *said], skip_special_tokens=True).rstrip("\ufffd")
        assert (record["prompt_text"] + record["answer"]) == text
        assert (record["prompt"], record["seed"], record["prompt_text"]) == (prompt.index, number, prompt.text)
        assert (record["tokens"], record["ended"]) == (len(new), ended)
        assert [record[name] for name in ("kl", "log_ratio", "nll", "cut")] == pytest.approx(sums, abs=2e-4)
        assert record["distinct_1"] == (len(set(said)) / len(said) if said else 1.0)


UNCHANGED = ("base, all tokens", "no strength, the rest kept")
"""The base model itself."""


@pytest.mark.parametrize("case", CASES)
def test_every_policy_equals_the_twin(make, folder, prompts, tokenizer, case):
    base = base_model()
    records = make(base).open(policy(folder, **CASES[case])).answer(prompts, 2)
    check(records, twin_of(folder, base, CASES[case]), prompts, tokenizer, 2)
    assert any(record["kl"] > 0.3 for record in records) or case in UNCHANGED


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


def test_a_guide_with_a_tokenizer_of_its_own_reads_text(make, folder, prompts, tokenizer):
    base, asked = base_model(), policy(folder, guide=["foreign"], beta=1.0)
    scorer = ReferenceScorer(RewardModel.from_pretrained(folder / "foreign"), tokenizer)

    def reward(prefix, tokens):
        rows = torch.tensor([prefix])
        return scorer.score(rows, torch.ones_like(rows), torch.tensor([tokens]))[0]

    records = make(base).open(asked).answer(prompts, 0)
    check(records, Twin(base, asked.method, 1.0, None, reward), prompts, tokenizer, 0)
    assert records[0]["batch_guide_forwards"] >= records[0]["batch_steps"]


def test_prompts_led_by_the_token_that_pads_and_ends(make, folder):
    tokenizer, base = tiny_tokenizer(), base_model()
    tokenizer.pad_token = tokenizer.eos_token
    prompts = encode_prompts(TEXTS, tokenizer, prompt_prefix="<|endoftext|>")
    assert all(prompt.ids[0] == EOS for prompt in prompts)
    values = {
        "max_new_tokens": STEPS,
        "top_k": TOP_K,
        "seed": SEED,
        "dtype": "float32",
        "guide_dtype": "float32",
        "device": "cpu",
    }
    decoders = Decoders(base, tokenizer, **values)
    for case in ("guided", "another model"):
        records = decoders.open(policy(folder, **CASES[case])).answer(prompts, 0)
        check(records, twin_of(folder, base, CASES[case]), prompts, tokenizer, 0)


# Draws


def measured(records):
    """What must not depend on the batch."""
    names = ("prompt", "answer", "tokens", "ended", "kl", "log_ratio", "nll")
    return [tuple(pytest.approx(record[name], abs=1e-4) for name in names) for record in records]


def said(records):
    names = ("prompt", "answer", "tokens", "ended", "kl", "log_ratio", "nll")
    return [tuple(record[name] for name in names) for record in records]


@pytest.mark.parametrize("case", ["base", "guided", "another model, guided", "log-ratio"])
def test_nothing_depends_on_the_batch_or_on_what_came_before(make, folder, prompts, case):
    decoders, asked = make(), policy(folder, **CASES[case])
    together = decoders.open(asked).answer(prompts, 1)
    assert len({record["tokens"] for record in together}) > 1, "rows have to end at different steps"
    backwards = decoders.open(asked).answer(prompts[::-1], 1)[::-1]
    decoders.open(policy(folder, **CASES["guided, cold"])).answer(prompts, 0)
    decoder = decoders.open(asked)
    other = decoder.answer(prompts, 0)
    alone = [record for prompt in prompts for record in decoder.answer([prompt], 1)]
    assert said(together) == measured(alone) and said(together) == measured(backwards)
    assert [record["answer"] for record in other] != [record["answer"] for record in together]


def test_the_base_model_draws_what_pairs_are_made_of(make, folder, prompts, tokenizer):
    records = make().open(policy(folder, top_k=0)).answer(prompts, 4)
    answers = Sampler(base_model(), tokenizer, max_new_tokens=STEPS, seed=SEED).draw(prompts, [4] * len(prompts))
    assert [(record["answer"], not record["ended"]) for record in records] == [tuple(answer) for answer in answers]
    assert all(abs(record["kl"]) < 1e-6 for record in records)


@pytest.mark.parametrize("case", ["guided", "another model", "guided, cold"])
def test_the_log_ratio_has_the_divergence_as_its_mean(make, folder, prompts, case):
    many = [replace(prompts[0], index=index) for index in range(400)]
    records = make().open(policy(folder, **CASES[case])).answer(many, 0)
    kl, ratio = (torch.tensor([record[name] for record in records]) for name in ("kl", "log_ratio"))
    error = float((ratio - kl).std()) / math.sqrt(len(many))
    assert abs(float((ratio - kl).mean())) < 4 * error < float(kl.mean()) / 2


def test_who_is_who(make, folder, prompts):
    asked = policy(folder, guide=["rm"], beta=1.5, name="PARGS", family="ours", greedy=True)
    record = make().open(asked).answer(prompts[1:3], 7)[1]
    who = {"method": "PARGS", "curve": "ours", "beta": 1.5, "greedy": True, "prompt": 2, "seed": 7}
    assert {name: record[name] for name in who} == who
    assert record["batch_rows"] == 2 and record["batch_seconds"] > 0


# The best of several


def test_the_best_is_kept(make, folder, prompts):
    decoders, n = make(), 4
    best = decoders.open(Policy(of(n, "test_decoding:letters"), 0.0)).answer(prompts, 1)
    keys = ["", ":1", ":2", ":3"]
    twin = Twin(base_model(), Method(name="base"))
    text = decoders.open(policy(folder)).sampler.answer
    for prompt, record in zip(prompts, best, strict=True):
        drawn = [twin.answer(prompt, f"{SEED}:{prompt.index}:1{key}") for key in keys]
        texts = [text(prompt, new).text for new, *_ in drawn]
        first = max(range(n), key=lambda index: letters([""], [texts[index]])[0])
        assert record["answer"] == texts[first]
        _, _, log_ratio, nll, _ = drawn[first]
        wanted = [log_ratio, nll, log_ratio + math.log(n) - (n - 1) / n]
        assert [record["log_ratio"], record["nll"], record["kl"]] == pytest.approx(wanted, abs=2e-4)
        assert record["batch_rows"] == len(prompts) and STEPS >= record["batch_steps"] >= record["tokens"]


def of(n, ranked_by, **more):
    return Method(name=f"best of {n}", best_of=n, ranked_by=ranked_by, **more)


def test_of_equal_answers_the_first_is_kept(make, folder, prompts):
    decoders = make()
    once = decoders.open(policy(folder)).answer(prompts, 1)
    best = decoders.open(Policy(of(3, "test_decoding:level"), 0.0)).answer(prompts, 1)
    assert [record["answer"] for record in once] == [record["answer"] for record in best]


def test_what_cannot_be_ranked_loses(make, prompts):
    records = make().open(Policy(of(16, "test_decoding:picky"), 0.0)).answer(prompts, 0)
    assert all(len(record["answer"]) % 2 for record in records)
    first = make().open(Policy(of(16, "test_decoding:level"), 0.0)).answer(prompts, 0)
    assert not all(len(record["answer"]) % 2 for record in first)
    with pytest.raises(InvalidArgumentError, match=r"'test_decoding:never' to give one of the 2 answers .* of row 0"):
        make().open(Policy(of(2, "test_decoding:never"), 0.0)).answer(prompts, 0)


def scattered(prompts, responses):
    """A reward that has nothing to do with how probable an answer is."""
    return [float(hashed_uniforms(response, 1)) for response in responses]


@torch.no_grad()
def test_the_divergence_of_the_best_is_a_bound(tokenizer):
    """In a world of 12 tokens and 2 steps, in which everything can be counted."""
    size, n, count = 12, 4, 3000
    base = tiny_base_model(vocab_size=size)
    decoders = Decoders(
        base, tokenizer, max_new_tokens=2, top_k=5, seed=0, dtype="float32", guide_dtype="float32", device="cpu"
    )
    prompt = replace(encode_prompts(["x"], tokenizer)[0], ids=[3, 7], text="")
    records = decoders.open(Policy(of(n, "test_decoding:scattered"), 0.0)).answer(
        [replace(prompt, index=index) for index in range(count)], 0
    )
    twin = Twin(base, Method(name="base", top_k=5))
    twin.policy = lambda prefix: small_policy(twin.following(base, prefix))
    world = enumerate_answers(base, twin, prompt.ids, size)
    texts = [decoders.open(Policy(Method(name="base"), 0.0)).sampler.answer(prompt, new).text for new in world]
    reward = torch.tensor(scattered([], texts), dtype=torch.float64)
    policy, ratio = (torch.tensor(each, dtype=torch.float64) for each in zip(*world.values(), strict=True))
    # The best of n is y or as good, less the chance that all are worse; of equal ones, in proportion to the policy.
    upto = torch.stack([policy[reward <= each].sum() for each in reward])
    equal = torch.stack([policy[reward == each].sum() for each in reward])
    best = (upto**n - (upto - equal) ** n) * policy / equal
    assert float(best.sum()) == pytest.approx(1.0)
    exact = float((best * ((best / policy).log() + ratio)).sum())
    kl, got = (torch.tensor([record[name] for record in records]) for name in ("kl", "log_ratio"))
    error = float(got.std()) / math.sqrt(count)
    assert abs(float(got.mean()) - float((best * ratio).sum())) < 4 * error < 0.05
    assert exact - 4 * error < float(kl.mean()) < exact + 0.3
    assert abs(float((policy * ratio).sum() - (best * ratio).sum())) > 8 * error, "drawn once is told apart"


def small_policy(scores):
    order = scores.argsort(descending=True)[:5]
    return torch.zeros_like(scores).scatter(0, order, scores[order].softmax(-1))


def enumerate_answers(base, twin, prompt, size):
    """Of each answer of two tokens, or of one that ends it: its probability and its log-ratio to the base model."""
    world = {}
    first, first_base = twin.policy(prompt), twin.following(base, prompt)
    for token in first.nonzero()[:, 0].tolist():
        if token == EOS:
            world[token,] = (float(first[token]), float(first[token].log() - first_base[token]))
            continue
        second, second_base = twin.policy([*prompt, token]), twin.following(base, [*prompt, token])
        for last in second.nonzero()[:, 0].tolist():
            probability = first[token] * second[last]
            ratio = probability.log() - first_base[token] - second_base[last]
            world[token, last] = (float(probability), float(ratio))
    return world


# Costs


@pytest.fixture
def one(make, prompts):
    """One prompt, and the decoders of a base model that never ends an answer of it."""
    model = tiny_base_model(vocab_size=SIZE)
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] = 0
    return make(model), prompts[1], len(prompts[1].ids)


def reads(record):
    return record["batch_guide_forwards"], record["batch_guide_tokens"]


def test_what_guides_read(one, folder):
    decoders, prompt, length = one

    def of_case(**case):
        (record,) = decoders.open(policy(folder, **case)).answer([prompt], 0)
        assert record["batch_steps"] == record["tokens"] == STEPS and not record["ended"]
        return reads(record)

    scalar, single = (STEPS, length + STEPS * TOP_K), (STEPS, length + STEPS - 1)
    assert of_case(guide=["rm"], beta=1.0) == scalar
    assert of_case(guide=["rm"], beta=2.0) == scalar, "the second time as the first"
    assert of_case(guide=["vocabulary"], beta=1.0) == single
    assert of_case(guide=["dpo"], beta=1.0) == (2 * single[0], 2 * single[1])
    assert of_case(guide=["tuned"], beta=1.0, kind="log_ratio") == single
    assert of_case(guide=["rm", "vocabulary"], beta=1.0) == (scalar[0] + single[0], scalar[1] + single[1])
    assert of_case(guide=["rm", "rm", "test_decoding:letters"], beta=1.0) == scalar
    for free in ({}, {"guide": ["rm"], "beta": 0.0}, {"model": "tuned"}, {"guide": ["rm"], "beta": 1.0, "top_k": 1}):
        assert of_case(**free) == (0, 0)


def test_what_ranks_reads(one, folder):
    decoders, prompt, _ = one
    (record,) = decoders.open(Policy(of(3, str(folder / "rm")), 0.0)).answer([prompt], 0)
    assert record["batch_guide_forwards"] == 3 and record["batch_guide_tokens"] > 3 * len(prompt.ids)
    (both,) = decoders.open(Policy(of(3, str(folder / "rm"), guide=(str(folder / "rm2"),), beta=(1.0,)), 1.0)).answer(
        [prompt], 0
    )
    assert both["batch_guide_forwards"] == 3 + 3 * STEPS
    (free,) = decoders.open(Policy(of(3, "test_decoding:letters"), 0.0)).answer([prompt], 0)
    assert reads(free) == (0, 0)


def test_finished_rows_cost_nothing(make, folder, prompts):
    """A row is known to have finished when padding follows its end, one step later."""
    records = make().open(policy(folder, **CASES["guided"])).answer(prompts, 1)
    steps = max(record["tokens"] for record in records)
    assert all(record["batch_steps"] == steps and record["batch_rows"] == len(prompts) for record in records)
    width = max(len(prompt.ids) for prompt in prompts)
    everything = len(prompts) * (width + steps * TOP_K)
    assert reads(records[0]) == reads(records[-1]) and records[0]["batch_guide_forwards"] <= steps + 1
    assert records[0]["batch_guide_tokens"] < everything


def test_nothing_keeps_counting(make, folder, prompts):
    decoder = make().open(policy(folder, **CASES["guided"]))
    decoder.answer(prompts, 0)
    assert not any(reader._forward_pre_hooks for reader in decoder.models.readers)


# Loading


def test_a_sweep_loads_once(make, folder):
    decoders = make()
    sweep = [
        decoders.open(policy(folder, guide=["rm"], beta=beta, greedy=greedy))
        for beta, greedy in product((1.0, 2.0), (True, False))
    ]
    assert len({id(decoder.models) for decoder in sweep}) == 1
    assert decoders.open(policy(folder, guide=["rm2"], beta=1.0)).models is not sweep[0].models


def test_without_strength_no_guide_is_loaded(make):
    make().open(Policy(Method(name="m", guide=("no/where",), beta=(0.0,)), 0.0))


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ({"guide": ["stranger"], "beta": 1.0}, VocabularyError, r"of kind 'vocabulary' to share a vocabulary"),
        ({"model": "wide"}, VocabularyError, r"the model '.*wide' .* have the base model's 300 tokens.* has 304"),
        ({"model": "nowhere"}, CheckpointError, r"nowhere' to be a Hub id or a folder"),
        ({"guide": ["test_decoding:absent"], "beta": 1.0}, InvalidArgumentError, r"that Python can import"),
        ({"guide": ["short"], "beta": 1.0}, ContextLengthError, r"at most 6 tokens, so that 10 new .* one has"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_so_before_it_costs(make, folder, prompts, case, error, message):
    with pytest.raises(error, match=message):
        make().open(policy(folder, **case)).answer(prompts, 0)


def test_functions_are_looked_for_first(folder):
    Decoders.check([policy(folder), policy(folder, guide=["test_decoding:letters"], beta=1.0)])
    for wrong in (policy(folder, guide=["test_decoding:absent"], beta=1.0), Policy(of(2, "absent_module:f"), 0.0)):
        with pytest.raises(InvalidArgumentError, match=r"that Python can import"):
            Decoders.check([policy(folder), wrong])


def test_how_long_prompts_may_be(make, folder, prompts):
    decoders = make()
    assert decoders.open(policy(folder)).longest_prompt == 128 - STEPS
    assert decoders.open(policy(folder, guide=["short"], beta=1.0)).longest_prompt == 16 - STEPS
    long = replace(prompts[0], ids=[5] * (129 - STEPS))
    with pytest.raises(ContextLengthError, match=r"at most 118 tokens, .* of 'm', but one has 119"):
        decoders.open(policy(folder)).answer([prompts[1], long], 0)
    decoders.open(policy(folder)).answer([prompts[1], replace(long, ids=long.ids[1:])], 0)


def test_guides_may_be_of_another_type(make, folder, prompts):
    decoders = make(guide_dtype="bfloat16")
    models = decoders.open(policy(folder, guide=["short"], beta=1.0)).models
    assert models.generator.dtype == torch.float32
    assert [model.dtype for model in models.readers] == [torch.bfloat16]
