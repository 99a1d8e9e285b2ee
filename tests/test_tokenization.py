"""A prompt and a finished text are the same tokens everywhere: in training, scoring, judging, checking and sampling."""

import json

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rgtg_logits import PartialRewardLogitsProcessor, ReferenceScorer, RetokenizingScorer, RewardModel
from rgtg_logits.check import ModelPair
from rgtg_logits.check.pairs import measure_prefix_accuracy
from rgtg_logits.demo import run_demo
from rgtg_logits.sampling import Sampler
from rgtg_logits.sampling.judges import RewardModelJudge
from rgtg_logits.sampling.prompts import encode_prompts
from rgtg_logits.scorers import Detokenizer
from rgtg_logits.testing import EOS, tiny_base_model, tiny_reward_model, tiny_tokenizer
from rgtg_logits.tokenization import (
    TextBoundaries,
    common_prefix_length,
    differing_tokens,
    encode_finished,
    encode_prompt,
    text_boundaries,
)

BEGIN, SEPARATOR = 2, 4
"""Special tokens of tiny tokenizers."""
PROMPT, ANSWER, OTHER = "the film was", " good and the music", " bad"

TOKENIZERS = {
    "plain": ({}, [], [], [EOS]),
    "adds_bos": ({"adds_bos": True}, [BEGIN], [], [EOS]),
    "adds_eos": ({"adds_eos": True}, [], [EOS], [EOS]),
    "adds_both": ({"adds_bos": True, "adds_eos": True}, [BEGIN], [EOS], [EOS]),
    "closed_by_another": ({"closed_by": "<|im_end|>"}, [], [SEPARATOR], [SEPARATOR]),
    "both_others": ({"kind": "llama2", "adds_bos": True, "closed_by": "<|im_end|>"}, [BEGIN], [SEPARATOR], [SEPARATOR]),
}
"""Of each tokenizer: how it is made, what it puts before and after a text, and the end of a finished text."""


@pytest.fixture(params=TOKENIZERS)
def name(request):
    return request.param


@pytest.fixture
def tokenizer(name):
    return tiny_tokenizer(**TOKENIZERS[name][0])


@pytest.fixture
def prompt_ids(name, tokenizer):
    """The tokens of a prompt, put together by hand."""
    return lambda text: [*TOKENIZERS[name][1], *tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.fixture
def finished_ids(name, prompt_ids):
    """The tokens of a finished text, put together by hand."""
    return lambda text: [*prompt_ids(text), *TOKENIZERS[name][3]]


@pytest.fixture
def reward_model(tokenizer):
    return RewardModel(tiny_reward_model(vocab_size=len(tokenizer)), tokenizer)


@pytest.fixture
def read(monkeypatch):
    """Every row of tokens that a reward model reads, padding left out."""
    rows, score_tokens = [], RewardModel.score_tokens

    def recorded(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows.extend(row[keep.bool()].tolist() for row, keep in zip(input_ids, mask, strict=True))
        return score_tokens(self, input_ids, attention_mask)

    monkeypatch.setattr(RewardModel, "score_tokens", recorded)
    return rows


@pytest.fixture
def continued(monkeypatch):
    """Every row of tokens that a base model is asked to continue, padding left out."""
    rows, decode = [], Sampler.decode

    def recorded(self, input_ids, attention_mask, processors):
        rows.extend(row[keep.bool()].tolist() for row, keep in zip(input_ids, attention_mask, strict=True))
        return decode(self, input_ids, attention_mask, processors)

    monkeypatch.setattr(Sampler, "decode", recorded)
    return rows


# The definition


def test_boundaries(name, tokenizer):
    _, before, after, end = TOKENIZERS[name]
    boundaries = text_boundaries(tokenizer)
    assert boundaries == TextBoundaries(tuple(before), tuple(after), EOS)
    assert boundaries.end == tuple(end)
    assert boundaries.ending_tokens == {EOS, *end}


def test_prompts_and_finished_texts(tokenizer, prompt_ids, finished_ids):
    for text in ("", "the", PROMPT + ANSWER, "映画 😀"):
        assert encode_prompt(tokenizer, text) == prompt_ids(text)
        assert encode_finished(tokenizer, text) == finished_ids(text)


@pytest.mark.parametrize("spelled_out", ["<|endoftext|>", "<|endoftext|>" * 2])
def test_an_end_in_the_text_is_not_repeated(tokenizer, finished_ids, spelled_out):
    """TRL's data sets and chat templates often write it themselves."""
    assert encode_finished(tokenizer, PROMPT + spelled_out) == finished_ids(PROMPT)


def test_a_prompt_keeps_the_special_tokens_that_it_spells_out(tokenizer, prompt_ids):
    text = f"<|endoftext|>{PROMPT}<|im_start|>"
    assert encode_prompt(tokenizer, text) == prompt_ids(text)


def test_a_tokenizer_without_an_end():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    assert text_boundaries(tokenizer).end == () and text_boundaries(tokenizer).ending_tokens == set()
    assert encode_finished(tokenizer, PROMPT) == encode_prompt(tokenizer, PROMPT) == tokenizer(PROMPT)["input_ids"]


def test_a_tokenizer_whose_additions_cannot_be_told_apart():
    """Where the tokens of a text alone are not found among those with additions, nothing is taken away."""

    class Odd(PreTrainedTokenizerFast):
        def __call__(self, text, add_special_tokens=True, **options):
            return {"input_ids": [1, 2, 3] if add_special_tokens else [4]}

    odd = Odd(tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    assert text_boundaries(odd) == TextBoundaries((), (), EOS)
    assert encode_prompt(odd, PROMPT) == [1, 2, 3]
    assert encode_finished(odd, PROMPT) == [1, 2, 3, EOS]


# Training


@pytest.mark.parametrize("streamed", [False, True])
def test_training_on_pairs_and_on_labels(tokenizer, prompt_ids, finished_ids, tmp_path, streamed):
    pytest.importorskip("trl")
    from datasets import Dataset

    from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer

    texts = [PROMPT + answer for answer in (ANSWER, OTHER)]
    pairs = [
        {"prompt": PROMPT, "chosen": ANSWER, "rejected": OTHER},
        {"prompt": PROMPT, "chosen": ANSWER + "<|endoftext|>", "rejected": OTHER + "<|endoftext|>"},
        {"prompt": "", "chosen": texts[0], "rejected": texts[1]},
    ]
    labels = [{"prompt": PROMPT, "completion": answer, "reward": 1.0} for answer in (ANSWER, OTHER)]

    def prepared(rows, objective):
        data = Dataset.from_list(rows)
        trainer = PartialRewardTrainer(
            tiny_reward_model(vocab_size=len(tokenizer)),
            PartialRewardConfig(
                str(tmp_path), objective=objective, use_cpu=True, report_to="none", max_steps=1, save_strategy="no"
            ),
            train_dataset=data.to_iterable_dataset() if streamed else data,
            processing_class=tokenizer,
        )
        return list(trainer.train_dataset)

    for row in prepared(pairs, "partial_bt"):
        assert [row["chosen_ids"], row["rejected_ids"]] == [finished_ids(text) for text in texts]
    rows = prepared(labels, "value")
    assert [row["input_ids"] for row in rows] == [finished_ids(text) for text in texts]
    assert [row["start"] for row in rows] == [len(prompt_ids(PROMPT))] * 2


# Scoring, judging, checking


def test_the_reward_of_a_finished_text(reward_model, finished_ids, read):
    answers = [ANSWER, OTHER, OTHER + "<|endoftext|>"]
    scores = reward_model.score([PROMPT] * 3, answers)
    expected = [finished_ids(PROMPT + answer) for answer in (ANSWER, OTHER, OTHER)]
    assert read == expected
    read.clear()
    prompts = encode_prompts([PROMPT] * 3, tiny_tokenizer())
    assert RewardModelJudge(reward_model)(prompts, answers) == scores.tolist()
    assert read == expected


def test_prefix_accuracy_of_a_check(reward_model, finished_ids, read):
    measure_prefix_accuracy(reward_model, [{"prompt": PROMPT, "chosen": ANSWER, "rejected": OTHER}])
    assert read == [finished_ids(PROMPT + answer) for answer in (ANSWER, OTHER)]


def test_a_candidate_that_ends_the_text(reward_model, prompt_ids, finished_ids):
    """What a reward model of another vocabulary reads of it is the finished text that it was trained on."""
    base = tiny_tokenizer(vocab_size=420)
    row = torch.tensor([base(PROMPT)["input_ids"]])
    word = base.convert_tokens_to_ids("Ġgood")
    reference = ReferenceScorer(reward_model, base)
    assert reference.read(row[0].tolist(), EOS) == finished_ids(PROMPT)
    assert reference.read(row[0].tolist(), word) == prompt_ids(PROMPT + " good")
    candidates = torch.tensor([[EOS, word]])
    rewards = RetokenizingScorer(reward_model, base).score(row, torch.ones_like(row), candidates)
    expected = reward_model.score([PROMPT], [""])
    assert torch.allclose(rewards[0, 0], expected[0], atol=1e-5)
    assert torch.allclose(rewards, reference.score(row, torch.ones_like(row), candidates), atol=1e-5)


# Prompts of the base model


def test_prompts_of_the_base_model(tokenizer, prompt_ids, reward_model):
    texts = [PROMPT, "the"]
    assert [prompt.ids for prompt in encode_prompts(texts, tokenizer)] == [prompt_ids(text) for text in texts]
    pair = ModelPair(tiny_base_model(vocab_size=len(tokenizer)), tokenizer, reward_model)
    opening = [] if prompt_ids("")[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    assert pair.encode(PROMPT) == [*opening, *prompt_ids(PROMPT)]
    processor = PartialRewardLogitsProcessor(reward_model, tokenizer=tokenizer).for_prompt(PROMPT)
    assert processor._prompt.ids.tolist() == [prompt_ids(PROMPT)]


def test_answers_end_with_the_token_that_closes_texts(name, tokenizer):
    """A base model has learnt to end texts with it."""
    end = TOKENIZERS[name][3][0]
    model = tiny_base_model(vocab_size=len(tokenizer))
    Sampler(model, tokenizer, max_new_tokens=2)
    assert set(model.generation_config.eos_token_id) == {EOS, end}
    assert Detokenizer(tokenizer).is_end(end) and Detokenizer(tokenizer).is_end(EOS)


@pytest.fixture
def folders(name, tokenizer, reward_model, tmp_path):
    tiny_base_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    reward_model.save_pretrained(tmp_path / "rm")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (PROMPT, "the")))
    return tmp_path


def test_pairs_that_are_drawn(folders, prompt_ids, finished_ids, read, continued):
    pytest.importorskip("datasets")
    from rgtg_logits.pairs import PairSettings, make_pairs

    settings = PairSettings(
        base=str(folders / "base"), prompts=str(folders / "prompts.jsonl"), reward=str(folders / "rm"),
        output=str(folders / "out.jsonl"), samples=3, max_new_tokens=4,
    )  # fmt: skip
    make_pairs(settings)
    assert {tuple(row) for row in continued} == {tuple(prompt_ids(text)) for text in (PROMPT, "the")}
    rows = [json.loads(line) for line in (folders / "out.jsonl").read_text().splitlines()]
    judged = [row["prompt"] + row[column] for row in rows for column in ("chosen", "rejected")]
    assert judged
    for text in judged:
        assert finished_ids(text) in read


def test_answers_that_are_evaluated(folders, prompt_ids, finished_ids, read, continued):
    pytest.importorskip("matplotlib")
    pd = pytest.importorskip("pandas")
    from rgtg_logits.evaluate import EvaluationSettings, Method, run_evaluation

    settings = EvaluationSettings(
        base=str(folders / "base"), prompts=str(folders / "prompts.jsonl"), judges={"rm": str(folders / "rm")},
        methods=(Method(name="base"),), output=str(folders / "report"), max_new_tokens=4, seeds=2,
    )  # fmt: skip
    run_evaluation(settings)
    assert {tuple(row) for row in continued} == {tuple(prompt_ids(text)) for text in (PROMPT, "the")}
    records = pd.read_parquet(folders / "report" / "records.parquet")
    assert len(records) == 4
    for record in records.itertuples():
        assert finished_ids((PROMPT, "the")[record.prompt] + record.answer) in read


def test_continuations_of_the_demo(folders, tokenizer, prompt_ids, monkeypatch):
    continued = set()
    generate = type(tiny_base_model()).generate

    def recorded(self, *args, **options):
        continued.add(tuple(options["input_ids"][0].tolist()))
        return generate(self, *args, **options)

    monkeypatch.setattr(type(tiny_base_model()), "generate", recorded)
    run_demo(base=str(folders / "base"), reward_model=str(folders / "rm"), prompts=[PROMPT], max_new_tokens=2)
    opening = [] if prompt_ids("")[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    assert continued == {(*opening, *prompt_ids(PROMPT))}


# Comparisons


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5, 1], [6, 1], 0), ([7], [7], 1)],
)
def test_common_prefix_length(first, second, length):
    assert common_prefix_length(first, second) == common_prefix_length(second, first) == length


def test_differing_tokens():
    tokenizer, extended = tiny_tokenizer(), tiny_tokenizer()
    extended.add_tokens(["<new>", "<newer>"])
    assert differing_tokens(tokenizer, tokenizer) == differing_tokens(tokenizer, extended) == 0
    assert differing_tokens(extended, tokenizer) == 2
    assert differing_tokens(tiny_tokenizer(kind="llama2"), tokenizer) > 200
