"""Functions on text get the prompt and the answer of each request, also where requests begin with one another."""

import pytest
import torch

from rgtg_logits import PartialRewardLogitsProcessor, WeightedScorer
from rgtg_logits.testing import PAD, tiny_base_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "assisted": {"assistant_model": tiny_base_model(vocab_size=300, seed=3)},
}


class Judge:
    """Judges answers by their length, and checks that it is shown the current prompt."""

    def __init__(self):
        self.prompt = ""
        self.pairs = 0

    def __call__(self, prompts, responses):
        assert set(prompts) == {self.prompt}
        self.pairs += len(responses)
        return [0.1 * len(response) for response in responses]


def text(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).rstrip("\ufffd")


@pytest.fixture(scope="module")
def base():
    return tiny_base_model(vocab_size=300)


def answer(base, judge, processor, prompt, **options):
    judge.prompt = text(prompt)
    ids = torch.tensor([prompt])
    arguments = {"max_new_tokens": 6, "pad_token_id": PAD, "eos_token_id": None, **options}
    with torch.no_grad():
        rows = base.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], **arguments)
    return rows[0].tolist()


def unoffered(processor, base, row):
    """A token that is text, and no candidate behind a row."""
    with torch.no_grad():
        scores = base(torch.tensor([row])).logits[:, -1]
    offered = processor.rule.select(scores).ids[0].tolist()
    return next(token for token in range(50, 300) if token not in offered and text([token]).isascii())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("new_tokens", [1, 6])
def test_requests_that_grow_token_by_token(base, way, new_tokens):
    judge = Judge()
    scorer = WeightedScorer([judge], [1.0], tokenizer=TOKENIZER)
    processor = PartialRewardLogitsProcessor(scorer, top_k=8, tokenizer=TOKENIZER)
    torch.manual_seed(0)
    prompt = TOKENIZER("the film")["input_ids"]
    prompts = [prompt]
    for _ in range(4):
        answer(base, judge, processor, prompt, max_new_tokens=new_tokens, **WAYS[way])
        prompt = [*prompt, unoffered(processor, base, prompt)]
        prompts.append(prompt)
    # The same once more, in another order.
    for again in (prompts[3], prompts[0], prompts[4], prompts[1]):
        answer(base, judge, processor, again, max_new_tokens=new_tokens, **WAYS[way])
    assert judge.pairs > 30


@pytest.mark.parametrize("way", ["greedy", "sampling"])
def test_answers_that_go_on_with_tokens_that_are_no_candidates(base, way):
    judge = Judge()
    scorer = WeightedScorer([judge], [1.0], tokenizer=TOKENIZER)
    processor = PartialRewardLogitsProcessor(scorer, top_k=2, rest="keep", beta=0.1, tokenizer=TOKENIZER)
    torch.manual_seed(0)
    for words in ("the film", "a good plot"):
        prompt = TOKENIZER(words)["input_ids"]
        answer(base, judge, processor, prompt, max_new_tokens=20, **WAYS[way])
    assert judge.pairs > 30
