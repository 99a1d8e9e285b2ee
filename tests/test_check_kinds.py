"""`rgtg check` on reward models that read text or score their own next tokens."""

import pytest
import torch
from test_check import PROMPTS, QUICK, SIZE, by_command_line, named, reward_model, statuses

from rgtg_logits import LogRatioScorer, ReferenceScorer, RetokenizingScorer, RewardModel, RewardModelConfig
from rgtg_logits.check import ModelPair, check_models
from rgtg_logits.check.cost import describe_strategy
from rgtg_logits.check.run import build_scorers
from rgtg_logits.check.tokens import check_ends, check_padding, check_vocabulary
from rgtg_logits.check.uncached import RelativeScorer, ReshapedScorer
from rgtg_logits.padding import infer_attention_mask
from rgtg_logits.scorers.text.retokenizer import EncodedRow
from rgtg_logits.testing import PAD, tiny_base_model, tiny_tokenizer, tiny_vocabulary_model

ZEBRA = ["zebra zebra yak yak quiz quiz"] * 5


def other_tokenizer(**options):
    return tiny_tokenizer(ZEBRA, **options)


def language_model(kind, tokenizer=None, model_type="llama", seed=1, reference=None):
    model = tiny_vocabulary_model(model_type, vocab_size=SIZE, seed=seed)
    config = RewardModelConfig(kind=kind, reference=reference)
    return RewardModel(model, tokenizer or tiny_tokenizer(), config=config)


def pair(reader, tokenizer=None):
    return ModelPair(tiny_base_model(vocab_size=SIZE), tokenizer or tiny_tokenizer(), reader)


# Reward models that read text


@pytest.mark.parametrize("kind", ["gpt2", "llama2"])
def test_another_tokenizer(kind):
    findings = check_models(
        pair(reward_model(tokenizer=other_tokenizer(kind=kind), max_position_embeddings=512)), QUICK
    )
    assert statuses(findings, "fail") == set() and statuses(findings, "note") == {"vocabulary"}
    vocabulary = named(findings, "vocabulary")
    assert 0 < vocabulary.figures["differing_tokens"] < vocabulary.figures["base_tokens"]
    assert "It reads text (RetokenizingScorer)" in vocabulary.value and "Pass tokenizer=" in vocabulary.advice
    rewards = named(findings, "cached = uncached").figures
    assert 0 < rewards["worst"] < rewards["tolerance"] < 1e-3 * rewards["spread"]
    assert "RetokenizingScorer, tree_attention: " in named(findings, "strategy").value
    assert (
        "top_k tokenisations" in named(findings, "strategy").value
        and "× plain" in named(findings, "further token").value
    )


def test_half_precision_of_another_tokenizer():
    reader = reward_model(tokenizer=other_tokenizer())
    reader.model.to(torch.bfloat16)
    assert statuses(check_models(pair(reader), QUICK), "fail") == set()


def test_the_ends_of_the_generation_config_are_passed_on():
    models = pair(reward_model(tokenizer=other_tokenizer()))
    (word,) = models.tokenizer("the", add_special_tokens=False)["input_ids"][:1]
    assert check_ends(models) == []
    models.base.generation_config.eos_token_id = [models.tokenizer.eos_token_id, word]
    (finding,) = check_ends(models)
    assert finding.status == "note" and "Pass eos_token_id=model.generation_config" in finding.advice
    scorers = build_scorers(models)
    rows, mask, candidates = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long), torch.tensor([[word, 9]])
    rewards = [each.score(rows, mask, candidates) for each in (scorers.cached, scorers.reference, scorers.reshaped)]
    told = ReferenceScorer(models.reward_model, models.tokenizer, eos_token_id=word).score(rows, mask, candidates)
    untold = ReferenceScorer(models.reward_model, models.tokenizer).score(rows, mask, candidates)
    assert (told - untold).abs().max() > 1e-3
    for each in rewards:
        torch.testing.assert_close(each, told, atol=1e-4, rtol=1e-4)


def test_an_added_pad_token_is_no_candidate_and_ids_are_shared():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[EXTRA]"})
    base = tiny_base_model(vocab_size=SIZE + 1)
    models = ModelPair(base, tokenizer, reward_model())
    finding = check_vocabulary(models)
    assert not models.reads_text and finding.status == "note"
    assert "1 of the base model's own ([EXTRA])" in finding.value and "no candidates" in finding.advice
    assert statuses(check_models(models, QUICK), "fail") == set()


class _ByParts:
    """Tokenises the row, and each candidate's text by itself."""

    def __init__(self, whole, own):
        self.base, self.own = whole.detokenizer, own

    def can_be_prompt(self, prompt):
        return True

    def encode(self, prompts, answers, candidates):
        encoded = []
        for prompt, answer, tokens in zip(prompts, answers, candidates, strict=True):
            text, longer = self.base.decode_candidates([*prompt, *answer], tokens)
            row = self.own(text)["input_ids"]
            parts = [self.own(more[len(text) :])["input_ids"] for more in longer]
            ends = [[self.own.eos_token_id] * self.base.is_end(token) for token in tokens]
            encoded.append(EncodedRow(row, [[*row, *part, *end] for part, end in zip(parts, ends, strict=True)]))
        return encoded


class ByParts(RetokenizingScorer):
    def __init__(self, reward_model, tokenizer):
        super().__init__(reward_model, tokenizer)
        self._retokenizer = _ByParts(self._retokenizer, reward_model.tokenizer)


def test_tokens_that_do_not_merge_across_a_candidate_are_found():
    models = pair(reward_model(tokenizer=tiny_tokenizer(kind="llama3"), max_position_embeddings=512))
    # The base model spells, so that most candidates go on with the word before them.
    letters = set(models.tokenizer.convert_tokens_to_ids(list("abcdefghilmnorstw")))
    models.base.generation_config.suppress_tokens = sorted(set(range(SIZE)) - letters)
    assert statuses(check_models(models, QUICK), "fail") == set()
    findings = check_models(models, QUICK, scorer=ByParts(models.reward_model, models.tokenizer))
    wrong = named(findings, "cached = uncached")
    assert wrong.status == "fail" and wrong.figures["worst"] > 0.1 * wrong.figures["spread"]
    assert "Do not use this pair" in wrong.advice


def test_another_batch_shape_of_texts_changes_nothing_but_rounding():
    reader, tokenizer = reward_model("gpt2", tokenizer=other_tokenizer(adds_bos=True)), tiny_tokenizer()
    rows = torch.tensor([[7, 8, 9, 270], [PAD, 280, 281, 282], [7, 8, PAD, PAD]])
    mask = infer_attention_mask(rows, PAD)
    mask[2, 2:] = 0
    candidates = torch.tensor([[270, 290, 1], [100, 295, 299], [3, 4, 5]])
    plain, reshaped = (scorer(reader, tokenizer) for scorer in (ReferenceScorer, ReshapedScorer))
    assert len({len(plain.read([7, 8, 9, 270], candidate)) for candidate in (270, 290)}) == 2
    got, wanted = (scorer.score(rows, mask, candidates) for scorer in (reshaped, plain))
    assert torch.allclose(got, wanted, atol=1e-5) and (got[2] == 0).all() and (got[:2] != 0).all()


def test_the_context_is_counted_in_the_reward_models_tokens():
    models = pair(reward_model(tokenizer=other_tokenizer(), max_position_embeddings=64))
    prompt = models.encode(PROMPTS[1])
    read = len(other_tokenizer()(PROMPTS[1])["input_ids"])
    assert read > len(prompt)
    finding = models.check_context([prompt], 10)
    assert finding.status == "note" and "RM 64 in the reward model's own tokens, base 128" in finding.value
    assert finding.figures["reward_model_prompt"] == read and f"where the RM reads {read} + about" in finding.value
    room = models.room([prompt])
    assert room == int((64 - read) / (read / len(prompt))) < 64 - len(prompt)
    assert models.check_context([prompt], room).status == "note"
    assert models.check_context([prompt], room + 1).status == "fail"


def test_embeddings_that_do_not_hold_the_reward_models_own_tokens():
    tokenizer = tiny_tokenizer(kind="llama2", vocab_size=340)
    finding = check_vocabulary(pair(reward_model(tokenizer=tokenizer)))
    assert len(tokenizer) > SIZE and finding.status == "fail" and f"reads ids below {SIZE} only" in finding.value


def test_a_pad_token_of_other_tokens_does_not_count():
    bare = tiny_tokenizer()
    bare.pad_token = None
    models = pair(reward_model(tokenizer=other_tokenizer()), bare)
    assert models.reward_model.pad_token_id is not None and models.pad_token_id is None
    assert "the base model's tokenizer names no pad token" in check_padding(models)[0].value


def test_more_tokens_of_the_reward_model_change_nothing():
    models = pair(reward_model(tokenizer=tiny_tokenizer()))
    models.reward_model.tokenizer.add_tokens(["<|extra|>"])
    assert not models.reads_text and check_vocabulary(models).status == "ok"


# Reward models that score their own next tokens


@pytest.mark.parametrize(
    ("kind", "model_type"), [("vocabulary", "llama"), ("log_ratio", "llama"), ("vocabulary", "bloom")]
)
def test_language_models(kind, model_type):
    findings = check_models(pair(language_model(kind, model_type=model_type)), QUICK)
    assert statuses(findings, "ok") == {finding.name for finding in findings}
    assert named(findings, "kind, objective").value.startswith(f"{kind}: its log")
    assert "whatever top_k is" in named(findings, "strategy").value
    rewards = named(findings, "cached = uncached").figures
    assert rewards["tolerance"] < 1e-3 * rewards["spread"]


def test_a_policy_and_its_reference(tmp_path):
    language_model("log_ratio", seed=2).save_pretrained(tmp_path)
    models = pair(language_model("log_ratio", reference=str(tmp_path)))
    findings = check_models(models, QUICK, [{"chosen": "good", "rejected": "bad"}])
    assert statuses(findings, "fail") == set() and statuses(findings, "note") == {"prefix accuracy"}
    assert "not measured" in named(findings, "prefix accuracy").value
    assert str(tmp_path) in named(findings, "kind, objective").value
    assert "of both models" in named(findings, "strategy").value
    # The policy alone is another reward.
    rows, candidates = torch.randint(2, SIZE, (2, 6)), torch.randint(2, SIZE, (2, 4))
    request = rows, torch.ones_like(rows), candidates
    policy = RelativeScorer([ReferenceScorer(models.reward_model)]).score(*request)
    assert (build_scorers(models).reference.score(*request) - policy).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["vocabulary", "log_ratio"])
def test_language_models_with_another_tokenizer(kind):
    findings = check_models(pair(language_model(kind, other_tokenizer())), QUICK)
    assert statuses(findings, "fail") == {"vocabulary"} and named(findings, "scorer").status == "note"
    assert f"a model of kind {kind} scores its own next tokens" in named(findings, "vocabulary").value


def test_a_policy_that_is_judged_in_the_coarser_type_of_two():
    policy, reference = language_model("log_ratio"), language_model("log_ratio", seed=2)
    reference.model.to(torch.bfloat16)
    scorers = build_scorers(pair(policy), LogRatioScorer(policy, reference))
    assert scorers.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["vocabulary", "log_ratio"])
@pytest.mark.parametrize("strategy", ["tree_attention", "expand", "recompute"])
def test_every_strategy_of_a_language_model_is_explained(kind, strategy):
    models = pair(language_model(kind))
    scorer = type(build_scorers(models).cached)(models.reward_model, strategy=strategy)
    finding = describe_strategy(scorer)
    assert (finding.status == "note") == bool(finding.advice) == (strategy == "recompute")


def test_the_kind_from_the_command_line(tmp_path):
    found = by_command_line(tmp_path, pair(language_model("vocabulary")), "--kind", "log_ratio")
    assert found["settings"]["kind"] == "log_ratio"
    assert "log_ratio: its log-probabilities are the rewards" in " ".join(f["value"] for f in found["findings"])
