"""The memory of sequences: each row costs the tokens of its own that are new, whatever the others do."""

import numpy as np
import pytest
import torch
from changing_model import skip_without_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from rgtg_logits import CausalScorer, ReferenceScorer, RewardModel
from rgtg_logits.errors import ContextLengthError, InvalidArgumentError, NonFiniteRewardError, VocabularyError
from rgtg_logits.instruments import count_forwards
from rgtg_logits.scorers.engine.prefix_index import STRIDE, PrefixIndex, common_prefix
from rgtg_logits.scorers.engine.slots import BLOCK, Arena
from rgtg_logits.testing import PAD, VOCAB_SIZE, check_scorer, tiny_reward_model

K = 20
LENGTHS = (50, 200, 400, 800)
KINDS = [
    ("llama", "tree_attention"), ("gpt2", "tree_attention"), ("gemma2", "tree_attention"),
    ("llama", "masked_tree_attention"), ("llama", "expand"), ("jamba", "expand_model_cache"),
]  # fmt: skip


class Requests:
    """A scorer, the tokens that its model reads, and rewards without a cache to compare with."""

    def __init__(self, model_type="llama", strategy="tree_attention", **options):
        if model_type == "jamba":
            skip_without_memory(model_type)
        limit = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
        self.reward_model = RewardModel(tiny_reward_model(model_type, **{limit: 4096}))
        self.scorer = CausalScorer(self.reward_model, strategy=strategy, **options)
        self.reference = ReferenceScorer(self.reward_model)
        self.generator = torch.Generator().manual_seed(0)

    def text(self, length):
        return torch.randint(2, VOCAB_SIZE, (length,), generator=self.generator)

    def step(self, texts, *, compare=False):
        """Scores the texts; returns the tokens read, and each text with one of its candidates."""
        width = max(map(len, texts))
        rows = torch.stack([torch.nn.functional.pad(text, (width - len(text), 0), value=PAD) for text in texts])
        candidates = torch.stack([torch.randperm(VOCAB_SIZE - 2, generator=self.generator)[:K] + 2 for _ in texts])
        with count_forwards([self.reward_model.backbone]) as count:
            rewards = self.scorer.score(rows, (rows != PAD).long(), candidates)
        if compare:
            expected = self.reference.score(rows, (rows != PAD).long(), candidates)
            assert torch.allclose(rewards, expected, atol=1e-4)
        return count.tokens, [torch.cat([text, row[3:4]]) for text, row in zip(texts, candidates, strict=True)]

    def begun(self):
        """Four texts after two steps."""
        read, texts = self.step([self.text(length) for length in LENGTHS])
        assert read == sum(LENGTHS) + 4 * K
        read, texts = self.step(texts)
        assert read == 4 * K
        return texts


@pytest.mark.parametrize(("model_type", "strategy"), KINDS)
def test_a_row_reads_what_is_new_in_it(model_type, strategy):
    """Rows join, leave, change places, come back and are replaced."""
    requests = Requests(model_type, strategy)
    for length in (30, 1200):
        texts = requests.begun()
        assert requests.step([*texts, requests.text(length)])[0] == length + 5 * K
        requests.scorer.reset()
    texts = requests.begun()
    assert requests.step(texts[1:])[0] == 3 * K
    requests.scorer.reset()
    texts = requests.begun()
    assert requests.step(texts[::-1])[0] == 4 * K
    requests.scorer.reset()
    texts = requests.begun()
    read, rest = requests.step(texts[:3])
    assert read == 3 * K
    assert requests.step([*rest, texts[3]])[0] == 4 * K
    requests.scorer.reset()
    texts = requests.begun()
    assert requests.step([requests.text(60), *texts[1:]])[0] == 60 + 4 * K


@pytest.mark.parametrize(("model_type", "strategy"), KINDS)
def test_requests_that_take_turns_read_nothing_again(model_type, strategy):
    requests = Requests(model_type, strategy)
    first, second = requests.begun(), requests.begun()
    for _ in range(3):
        read, first = requests.step(first)
        assert read == 4 * K
        read, second = requests.step(second)
        assert read == 4 * K
    requests.step(first[:2], compare=True)


@pytest.mark.parametrize(("model_type", "strategy"), [kind for kind in KINDS if kind[0] != "jamba"])
def test_what_texts_share_is_read_once(model_type, strategy):
    """A system prompt, beams that part, the next turn of a chat, and a draft that was rejected."""
    requests = Requests(model_type, strategy)
    system = requests.text(100)
    read, (text,) = requests.step([torch.cat([system, requests.text(20)])])
    assert read == 120 + K
    read, texts = requests.step([text, torch.cat([system, requests.text(7)])], compare=True)
    assert read == 7 + 2 * K
    read, beams = requests.step([texts[0], texts[0], texts[1]], compare=True)
    assert read == 3 * K
    beams = [beams[0], torch.cat([beams[0][:-1], beams[0][:1]]), beams[2]]
    # The second one goes on with a token that may not have been a candidate.
    assert requests.step(beams, compare=True)[0] in (3 * K, 3 * K + 1)
    turn = torch.cat([beams[0], requests.text(9)])
    assert requests.step([turn], compare=True)[0] == 9 + K
    draft = torch.cat([turn, requests.text(5)])
    assert requests.step([draft], compare=True)[0] == 5 + K
    assert requests.step([turn[:-2]], compare=True)[0] == K
    assert requests.step([draft], compare=True)[0] == K


def test_prompts_of_different_lengths_hold_little_more_than_their_tokens():
    requests = Requests()
    texts = [requests.text(length) for length in (*[50] * 7, 2000)]
    assert requests.step(texts, compare=True)[0] == 2350 + 8 * K
    one = Requests()
    one.step([one.text(50)])
    token_bytes = one.scorer.cache_bytes() / BLOCK
    assert requests.scorer.cache_bytes() / token_bytes <= 1.3 * 2350 + 8 * BLOCK


def test_a_bound_forgets_what_was_used_longest_ago():
    requests = Requests(cache_tokens=3 * BLOCK)
    texts = [requests.step([requests.text(60)])[1][0] for _ in range(4)]
    token_bytes = requests.scorer.cache_bytes() / (3 * BLOCK)
    # The first one had to go; the others are known, and a look at them keeps them.
    for place in (1, 2, 3):
        read, (texts[place],) = requests.step([texts[place]])
        assert read == K
    read, (texts[0],) = requests.step([texts[0]], compare=True)
    assert read == 61 + K
    assert requests.step([texts[3]])[0] == K
    assert requests.step([texts[1]])[0] > 61
    # The rows of one call are kept whatever the bound is.
    assert requests.step(texts, compare=True)[0] > 0
    assert requests.step(texts, compare=True)[0] == 4 * K
    assert requests.scorer.cache_bytes() / token_bytes <= 4 * BLOCK


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_bound_that_is_none(value):
    with pytest.raises(InvalidArgumentError, match=f"Expected cache_tokens to be 1 or more, or None, but got {value}"):
        CausalScorer(RewardModel(tiny_reward_model()), cache_tokens=value)


@pytest.mark.parametrize(("model_type", "strategy"), KINDS)
def test_an_error_is_that_of_one_row(model_type, strategy):
    requests = Requests(model_type, strategy)
    texts = [requests.text(40), requests.text(25)]
    _, texts = requests.step(texts)
    table = requests.reward_model.backbone.get_input_embeddings().weight
    poison = VOCAB_SIZE - 1
    for text in (torch.full((4096,), 3), torch.full((5,), VOCAB_SIZE)):
        with pytest.raises((ContextLengthError, VocabularyError)):
            requests.step([*texts, text])
        read, texts = requests.step(texts, compare=True)
        assert read == 2 * K
    with torch.no_grad():
        table[poison] = float("nan")
    clean = [text.where(text != poison, 3) for text in texts]
    candidates = torch.arange(2, 2 + K).expand(3, -1)

    def score(texts):
        rows = torch.stack([torch.nn.functional.pad(text, (41 - len(text), 0), value=PAD) for text in texts])
        with count_forwards([requests.reward_model.backbone]) as count:
            rewards = requests.scorer.score(rows, (rows != PAD).long(), candidates[: len(texts)])
        expected = requests.reference.score(rows, (rows != PAD).long(), candidates[: len(texts)])
        assert torch.allclose(rewards, expected, atol=1e-4)
        return count.tokens

    clean = [clean[0][:38], clean[1][:23]]
    score(clean)
    with pytest.raises(NonFiniteRewardError, match="the reward of row 2 "):
        score([*clean, torch.tensor([4, poison, 5])])
    assert score(clean) == 2 * K


@pytest.mark.parametrize(("model_type", "strategy"), KINDS)
def test_an_interrupt_costs_the_other_rows_nothing(model_type, strategy):
    requests = Requests(model_type, strategy)
    texts = [requests.text(40), requests.text(25)]
    _, texts = requests.step(texts)

    def interrupt(*_):
        raise KeyboardInterrupt

    layers = [layer for name, layer in requests.reward_model.backbone.named_modules() if name.endswith("layers.1")]
    last = layers[0] if layers else requests.reward_model.backbone.h[1]
    with last.register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        requests.step([*texts, requests.text(30)])
    read, texts = requests.step(texts, compare=True)
    # What the interrupted step had accepted of each row's candidates may be lost.
    assert read <= 2 * K + 2


@pytest.mark.parametrize("strategy", ["tree_attention", "masked_tree_attention", "expand", "expand_model_cache"])
@pytest.mark.parametrize("speculate", [False, True])
def test_the_laws_with_little_memory(strategy, speculate):
    reward_model = RewardModel(tiny_reward_model())
    scorer = CausalScorer(reward_model, strategy=strategy, speculate=speculate, cache_tokens=1)
    check_scorer(scorer, ReferenceScorer(reward_model), lengths=(2, 40))


def test_rows_with_fewer_candidates_cost_less():
    requests = Requests()
    texts = [requests.text(30) for _ in range(4)]
    rows = torch.stack(texts)
    candidates = torch.tensor([[5, *range(6, 25)], [7] * 20, [9, 8, *[9] * 18], [4] * 20])
    with count_forwards([requests.reward_model.backbone]) as count:
        rewards = requests.scorer.score(rows, torch.ones_like(rows), candidates)
    assert count.tokens == 4 * 30 + 20 + 1 + 2 + 1
    assert torch.allclose(rewards, requests.reference.score(rows, torch.ones_like(rows), candidates), atol=1e-4)


TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=3 * STRIDE)


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=10), st.lists(TEXTS, min_size=1, max_size=5), st.data())
def test_the_index_finds_the_longest_beginning(texts, rows, data):
    """Against a comparison with every sequence: it falls short by less than a stride, and not in the usual cases."""
    index = PrefixIndex()
    arena = Arena(len(texts), BLOCK)
    slots = arena.slots
    for slot, text in zip(slots, texts, strict=True):
        half = data.draw(st.integers(0, len(text)))
        for end in (half, len(text)):
            known = slot.length
            if end > known:
                slot.set_tokens(np.array(text[:end]))
                index.add(slot, known)
    gone = data.draw(st.sets(st.sampled_from(range(len(texts)))))
    for place in gone:
        index.remove(slots[place])
    left = [slot for place, slot in enumerate(slots) if place not in gone]
    rows = [*rows, *texts, *([*text, 0] for text in texts)]
    for row in map(np.array, rows):
        best = max((common_prefix(slot.text(), row) for slot in left), default=0)
        slot, shared = index.longest(row)
        assert shared == (0 if slot is None else common_prefix(slot.text(), row))
        if best >= STRIDE:
            assert shared > best - STRIDE
        if any(common_prefix(slot.text(), row) == slot.length == best >= len(row) - 1 for slot in left):
            assert shared == best
