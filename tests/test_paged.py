"""Paged generation of the installed transformers never calls a processor: README and docstrings say so.

If a test here fails, transformers has learnt to call them, and they have to be supported, or refused aloud.
"""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GenerationConfig

from rgtg_logits import PartialRewardLogitsProcessor, Scorer
from rgtg_logits.testing import PAD, tiny_base_model

PROMPT = [5, 6, 7]
OLD = Version(transformers.__version__) < Version("5.0")


class Uncalled(Scorer):
    pad_token_id = PAD

    def score(self, rows, attention_mask, candidates):
        raise AssertionError("the reward model was asked")


class Spy(PartialRewardLogitsProcessor):
    """Counts its calls, and hides that it is not supported."""

    supports_continuous_batching = True
    calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        return super().__call__(input_ids, scores)


def paged(base, **arguments):
    ids = torch.tensor([PROMPT])
    rows = base.generate(
        ids, attention_mask=torch.ones_like(ids), cache_implementation="paged", max_new_tokens=3, do_sample=False,
        **arguments,
    )  # fmt: skip
    return rows.flatten().tolist()[len(PROMPT) :]


def batched(base, **arguments):
    config = GenerationConfig(max_new_tokens=3, eos_token_id=-1, pad_token_id=PAD, do_sample=False)
    outputs = base.generate_batch([PROMPT], generation_config=config, progress_bar=False, **arguments)
    return next(iter(outputs.values())).generated_tokens


@pytest.mark.skipif(OLD, reason="paged generation does not run on a CPU")
@pytest.mark.parametrize("generate", [paged, batched])
def test_a_processor_is_never_called(generate):
    base, spy = tiny_base_model(pad_token_id=PAD, eos_token_id=None), Spy(Uncalled())
    unguided = generate(base)
    assert len(unguided) == 3
    assert generate(base, logits_processor=[spy]) == unguided
    assert spy.calls == 0


@pytest.mark.parametrize("place", [PartialRewardLogitsProcessor.__doc__, "README.md"])
def test_it_is_said(place, request):
    text = (request.config.rootpath / place).read_text() if place == "README.md" else place
    assert "never calls a processor" in " ".join(text.split())
