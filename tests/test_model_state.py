"""Rewards belong to the model as it is at each call: its weights, adapters and layers, in evaluation mode."""

import copy
import pickle
import threading
from functools import wraps

import pytest
import torch
from torch import nn

from rgtg_logits import CausalScorer, PartialRewardLogitsProcessor, ReferenceScorer, RewardModel, WeightedScorer
from rgtg_logits.errors import RewardModelError
from rgtg_logits.reward_model import RewardModelConfig
from rgtg_logits.scorers import make_scorer
from rgtg_logits.testing import tiny_base_model, tiny_reward_model, tiny_vocabulary_model

ROWS = torch.tensor([[7, 3, 9, 11, 4], [5, 8, 20, 13, 2]])
CANDIDATES = torch.tensor([[10, 20, 30], [21, 31, 41]])
LONGER = torch.cat([ROWS, CANDIDATES[:, :1]], dim=1)
DROPOUT = {"resid_pdrop": 0.3, "attn_pdrop": 0.3, "embd_pdrop": 0.3}


def rewards(scorer, rows=ROWS):
    """Rewards of the candidates of each row, up to the row's constant."""
    scores = scorer.score(rows, torch.ones_like(rows), CANDIDATES)
    return scores - scores[:, :1]


def by_hand(model, rows=ROWS):
    """The output of the model itself for each text, in evaluation mode, on a copy."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        texts = [
            [[*row, token] for token in tokens] for row, tokens in zip(rows.tolist(), CANDIDATES.tolist(), strict=True)
        ]
        scores = torch.tensor([[float(twin(torch.tensor([text])).logits[0, 0]) for text in row] for row in texts])
    return scores - scores[:, :1]


def optimizer_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    optimizer.zero_grad()


def load_state_dict(model):
    model.load_state_dict(type(model)(model.config).state_dict())


def assigned_state_dict(model):
    model.load_state_dict({name: weight * 1.5 for name, weight in model.state_dict().items()}, assign=True)


def other_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def other_layer(model):
    attention = (model.model if hasattr(model, "model") else model).layers[0].self_attn
    attention.q_proj = copy.deepcopy(attention.q_proj)
    nn.init.normal_(attention.q_proj.weight, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("prepack", [False, True])
@pytest.mark.parametrize("kind", ["causal", "vocabulary", "log_ratio"])
@pytest.mark.parametrize("change", [optimizer_step, load_state_dict, assigned_state_dict, other_data, other_layer])
def test_nothing_is_remembered_from_former_weights(change, kind, prepack):
    model = tiny_reward_model() if kind == "causal" else tiny_vocabulary_model()
    reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
    scorer = make_scorer(reward_model, on_overflow="error", max_tokens_per_forward=None, compile=False, prepack=prepack)
    before = rewards(scorer)
    change(model)
    right = ReferenceScorer(reward_model)
    assert (rewards(right) - before).abs().max() > 0.01
    # First a token more, which the cache of the former weights would have continued.
    torch.testing.assert_close(rewards(scorer, LONGER), rewards(right, LONGER), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(rewards(scorer), rewards(right), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prepack", [False, True])
def test_the_active_adapter_decides_also_in_the_middle_of_a_text(prepack):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS", "init_lora_weights": False}
    model = peft.get_peft_model(tiny_reward_model(), peft.LoraConfig(**settings), adapter_name="helpful")
    model.add_adapter("safe", peft.LoraConfig(**settings))
    scorer = CausalScorer(RewardModel(model), prepack=prepack)
    results = []
    for name in ("helpful", "safe", "helpful"):
        model.set_adapter(name)
        torch.testing.assert_close(rewards(scorer), by_hand(model), atol=1e-4, rtol=1e-4)
        results.append(rewards(scorer, LONGER))
        with model.disable_adapter():
            torch.testing.assert_close(rewards(scorer, LONGER), by_hand(model, LONGER), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(rewards(scorer, LONGER), by_hand(model, LONGER), atol=1e-4, rtol=1e-4)
    assert (results[0] - results[1]).abs().max() > 0.01 and torch.allclose(results[0], results[2], atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(rewards(scorer), by_hand(model), atol=1e-4, rtol=1e-4)


def test_an_unchanged_model_is_not_read_again():
    model = tiny_reward_model()
    scorer = CausalScorer(RewardModel(model))
    tokens_read = []
    model.model.register_forward_pre_hook(lambda _, ids, more: tokens_read.append(ids[0].numel()), with_kwargs=True)
    rewards(scorer)
    rewards(scorer, LONGER)
    assert tokens_read == [ROWS.numel() + CANDIDATES.numel(), CANDIDATES.numel()]


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "jamba"])
@pytest.mark.parametrize("prepack", [False, True])
def test_rewards_are_those_of_evaluation_mode_and_the_model_keeps_its_mode(model_type, prepack):
    changes = DROPOUT if model_type == "gpt2" else {"attention_dropout": 0.3}
    model = tiny_reward_model(model_type, **changes)
    if model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    # One layer is frozen, as in many trainings, and stays in its own mode as well.
    next(model.base_model.children()).eval()
    modes = [layer.training for layer in model.modules()]
    scorer = CausalScorer(RewardModel(model), prepack=prepack)
    torch.testing.assert_close(rewards(scorer), by_hand(model), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rewards(scorer, LONGER), by_hand(model, LONGER), atol=1e-4, rtol=1e-4)
    assert [layer.training for layer in model.modules()] == modes


def test_a_model_that_goes_back_to_training_changes_nothing():
    model = tiny_reward_model("gpt2", **DROPOUT)
    scorer = CausalScorer(RewardModel(model))
    before = rewards(scorer)
    model.train()
    torch.testing.assert_close(rewards(scorer), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rewards(scorer, LONGER), by_hand(model, LONGER), atol=1e-4, rtol=1e-4)
    assert model.training and torch.equal(
        RewardModel(model).score_tokens(ROWS), RewardModel(copy.deepcopy(model).eval()).score_tokens(ROWS)
    )


def test_a_forward_that_cannot_leave_training_mode_is_an_error():
    model = tiny_reward_model("gpt2", **DROPOUT)
    forward = model.transformer.forward

    @wraps(forward)
    def replaced(*arguments, **options):
        return forward(*arguments, **options)

    model.transformer.forward = replaced
    scorer = CausalScorer(RewardModel(model))
    model.train()
    with pytest.raises(
        RewardModelError, match=r"was replaced .* but it is in training mode. Call model.eval\(\) first"
    ):
        rewards(scorer)
    model.eval()
    torch.testing.assert_close(rewards(scorer), rewards(CausalScorer(RewardModel(model))))


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    ],
    ids=["DataParallel", "compile", "both"],
)
def test_wrappers_of_torch_are_taken_off(wrap):
    model = tiny_reward_model()
    processor = PartialRewardLogitsProcessor(wrap(model))
    assert processor.scorer.reward_model.model is model
    torch.testing.assert_close(rewards(processor.scorer), by_hand(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gpt_neo", "llama"])
def test_making_processors_changes_nothing_for_other_threads(model_type):
    base = tiny_base_model(model_type)
    model = tiny_reward_model(model_type)
    # One backbone for both, as in a program that guides a model by a head of its own.
    setattr(model, model.base_model_prefix, base.base_model)
    model.config = base.config
    model.config.num_labels = 1
    settings = model.config.to_dict()
    prompt = torch.arange(3, 33)[None]
    errors, strategies, texts = [], set(), []

    def generate():
        return base.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)[0].tolist()

    def make():
        try:
            for _ in range(4):
                strategies.add(CausalScorer(RewardModel(model)).strategy)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    quiet = generate()
    makers = [threading.Thread(target=make) for _ in range(4)]
    generators = [threading.Thread(target=lambda: texts.extend(generate() for _ in range(3))) for _ in range(4)]
    for thread in (*makers, *generators):
        thread.start()
    for thread in (*makers, *generators):
        thread.join()
    assert not errors and len(strategies) == 1 and texts == [quiet] * 12
    assert model.config.to_dict() == settings
    assert strategies == {CausalScorer(RewardModel(tiny_reward_model(model_type))).strategy}


def test_a_second_scorer_costs_no_forward():
    model = tiny_reward_model("mistral")
    CausalScorer(RewardModel(model))
    forwards = []
    model.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    CausalScorer(RewardModel(model))
    PartialRewardLogitsProcessor(model)
    assert not forwards


def test_hooks_of_accelerate_are_tied_to_the_twin():
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    model = tiny_reward_model("gpt2", **DROPOUT)
    right = by_hand(model)
    for layer in model.modules():
        accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())
    model.train()
    torch.testing.assert_close(rewards(CausalScorer(RewardModel(model))), right, atol=1e-4, rtol=1e-4)
    assert all(layer.training for layer in model.modules())


@pytest.mark.parametrize("kind", ["causal", "vocabulary", "log_ratio"])
@pytest.mark.parametrize("prepack", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scorer: pickle.loads(pickle.dumps(scorer))])
def test_copies_of_scorers_work_and_leave_the_cache_behind(copied, prepack, kind):
    model = tiny_reward_model() if kind == "causal" else tiny_vocabulary_model()
    reward_model = RewardModel(model, config=RewardModelConfig(kind=kind))
    scorer = make_scorer(reward_model, on_overflow="error", max_tokens_per_forward=None, compile=False, prepack=prepack)
    scorer = WeightedScorer([scorer], [1.0])
    right = rewards(scorer)
    twin = copied(scorer)
    (inner,) = twin._scorers
    assert inner.cache_bytes() == 0 and scorer._scorers[0].cache_bytes() > 0
    torch.testing.assert_close(rewards(twin), right, atol=2e-4, rtol=1e-4)
    optimizer_step(inner.reward_model.model)
    torch.testing.assert_close(rewards(twin), rewards(ReferenceScorer(inner.reward_model)), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(rewards(scorer), right, atol=2e-4, rtol=1e-4)
