"""Language models whose next-token logits are rewards: the laws, one token per step, and what the rewards mean."""

import pytest
import torch

from rgtg_logits import (
    LogRatioScorer,
    PartialRewardLogitsProcessor,
    ReferenceScorer,
    RewardModel,
    RewardModelConfig,
    Scorer,
    VocabularyScorer,
)
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.testing import PAD, TINY, VOCAB_SIZE, check_scorer, tiny_base_model

SCORERS = {"vocabulary": VocabularyScorer, "log_ratio": LogRatioScorer}


def read_as(kind, model_type="llama", *, seed=4, **changes):
    return RewardModel(tiny_base_model(model_type, seed=seed, **changes), config=RewardModelConfig(kind=kind))


class Difference(Scorer):
    """A DPO pair, one whole text at a time."""

    vocab_size = VOCAB_SIZE

    def __init__(self, policy, reference):
        self.parts = ReferenceScorer(policy), ReferenceScorer(reference)

    def score(self, rows, attention_mask, candidates):
        policy, reference = (part.score(rows, attention_mask, candidates) for part in self.parts)
        return policy - reference


@pytest.mark.parametrize("model_type", TINY)
@pytest.mark.parametrize("kind", SCORERS)
def test_the_laws(kind, model_type):
    reward_model = read_as(kind, model_type)
    check_scorer(SCORERS[kind](reward_model), ReferenceScorer(reward_model), rounds=2)


@pytest.mark.parametrize("options", [{"speculate": True}, {"max_tokens_per_forward": 3}, {"strategy": "recompute"}])
@pytest.mark.parametrize("kind", SCORERS)
def test_the_laws_with_every_option(kind, options):
    reward_model = read_as(kind)
    check_scorer(SCORERS[kind](reward_model, **options), ReferenceScorer(reward_model), rounds=2)


@pytest.mark.parametrize("options", [{}, {"speculate": True}])
def test_the_laws_of_a_pair(options):
    policy, reference = read_as("log_ratio"), read_as("log_ratio", seed=5)
    check_scorer(LogRatioScorer(policy, reference, **options), Difference(policy, reference), rounds=2)


def test_the_reward_is_the_logit():
    model = tiny_base_model(seed=4)
    reward_model = RewardModel(model, config=RewardModelConfig(kind="vocabulary"))
    rows = torch.randint(2, VOCAB_SIZE, (2, 7))
    everything = torch.arange(VOCAB_SIZE).expand(2, -1)
    rewards = VocabularyScorer(reward_model).score(rows, torch.ones_like(rows), everything)
    with torch.no_grad():
        assert torch.allclose(rewards, model(rows).logits[:, -1], atol=1e-5)
        logs = LogRatioScorer(read_as("log_ratio")).score(rows, torch.ones_like(rows), everything)
        assert torch.allclose(logs, model(rows).logits[:, -1].log_softmax(-1), atol=1e-5)


def output_layer_shapes(reward_model, act):
    """Shapes of the logits that the output layer computes while `act` runs."""
    shapes = []
    hook = reward_model.model.get_output_embeddings().register_forward_hook(lambda *args: shapes.append(args[2].shape))
    act()
    hook.remove()
    return shapes


@pytest.mark.parametrize("tied", [False, True])
def test_the_output_layer_is_computed_for_candidates_only(tied):
    reward_model = read_as("vocabulary", tie_word_embeddings=tied)
    scorer, reference = VocabularyScorer(reward_model), ReferenceScorer(reward_model)
    rows = torch.randint(2, VOCAB_SIZE, (2, 7))
    for k, expected in ((5, []), (VOCAB_SIZE, [(2, VOCAB_SIZE)])):
        arguments = rows, torch.ones_like(rows), torch.arange(k).expand(2, -1)
        assert output_layer_shapes(reward_model, lambda a=arguments: scorer.score(*a)) == expected
        assert torch.allclose(scorer.score(*arguments), reference.score(*arguments), atol=1e-5)


@pytest.mark.parametrize("cap", [2.0, 30.0, 300.0])
def test_capped_logits_are_taken_as_the_model_gives_them(cap):
    reward_model = read_as("vocabulary", "gemma2", final_logit_softcapping=cap)
    assert reward_model.split_output_layer() is None
    check_scorer(VocabularyScorer(reward_model), ReferenceScorer(reward_model), rounds=1)


def test_total_rewards_up_to_a_constant_per_row():
    """A log-ratio scorer's rewards differ from the totals over the whole text by the same number for each token."""
    reward_model = read_as("log_ratio")
    row, candidates = torch.randint(2, VOCAB_SIZE, (1, 9)), torch.tensor([[3, 4, 5, 6]])
    returned = LogRatioScorer(reward_model).score(row, torch.ones_like(row), candidates)
    totals = ReferenceScorer(reward_model).score(row, torch.ones_like(row), candidates)
    assert torch.allclose(totals - returned, (totals - returned)[:, :1], atol=1e-5)
    assert (totals - returned).abs().min() > 1


@pytest.mark.parametrize("kind", SCORERS)
def test_a_step_reads_one_token_whatever_k(kind):
    reward_model, read = read_as(kind), []
    scorer = SCORERS[kind](reward_model)
    hook = reward_model.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((*args, kwargs.get("input_ids"))[0].numel()), with_kwargs=True
    )
    rows = torch.tensor([[3, 4, 5, 6], [PAD, 7, 8, 9]])
    for k in (1, 20, VOCAB_SIZE):
        everything = torch.arange(k).expand(2, -1)
        scorer.score(rows, infer_attention_mask(rows, PAD), everything)
        rows = torch.cat([rows, torch.tensor([[5], [6]])], dim=1)
    hook.remove()
    assert read == [4 + 3, 2, 2]


def test_guidance_by_a_dpo_pair_moves_the_base_as_the_pair_says():
    """With the base model for a reference and beta 1, guidance over the whole vocabulary is the policy itself."""
    base, policy = tiny_base_model(), tiny_base_model(seed=4)
    config = RewardModelConfig(kind="log_ratio")
    scorer = LogRatioScorer(RewardModel(policy, config=config), RewardModel(base, config=config))
    processor = PartialRewardLogitsProcessor(scorer, beta=1.0, top_k=VOCAB_SIZE)
    rows = torch.randint(2, VOCAB_SIZE, (2, 7))
    with torch.no_grad():
        guided = processor(rows, base(rows).logits[:, -1])
        assert torch.allclose(guided, policy(rows).logits[:, -1].log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("kind", SCORERS)
def test_the_processor_takes_them_as_they_are(kind, tmp_path):
    read_as(kind).model.save_pretrained(tmp_path)
    reward_model = read_as(kind)
    processor = PartialRewardLogitsProcessor(reward_model, top_k=5)
    assert isinstance(processor.scorer, SCORERS[kind])
    rows = torch.randint(2, VOCAB_SIZE, (2, 7))
    scores = torch.randn(2, VOCAB_SIZE)
    best, ids = scores.topk(5)
    rewards = ReferenceScorer(reward_model).score(rows, torch.ones_like(rows), ids)
    expected = (best.log_softmax(-1) + rewards).log_softmax(-1)
    assert torch.allclose(processor(rows, scores).gather(1, ids), expected, atol=1e-4)


@pytest.mark.parametrize("kind", SCORERS)
def test_an_output_layer_of_zeros_gives_no_preference(kind):
    reward_model = read_as(kind)
    torch.nn.init.zeros_(reward_model.model.get_output_embeddings().weight)
    rewards = SCORERS[kind](reward_model).score(
        torch.tensor([[5, 6, 7]]), torch.ones(1, 3).long(), torch.arange(4)[None]
    )
    assert (rewards == rewards[0, 0]).all()
