"""A trace knows the drawn tokens and their change by guidance, and writes one page that needs nothing else."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch

from rgtg_logits import PartialRewardLogitsProcessor, Trace
from rgtg_logits.errors import InvalidArgumentError
from rgtg_logits.testing import EOS, PAD, tiny_base_model, tiny_reward_model, tiny_tokenizer

TEXTS = ["the film was good", "a <b>"]
TOKENIZER = tiny_tokenizer()
TOP_K, NEW = 6, 7


class Page(HTMLParser):
    """The texts of tokens and table cells, and the tags that were left open."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.tokens, self.cells, self.text = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "br", "link"}:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if "token" in attributes.get("class", "").split():
            self.tokens.append(data)
        if tag == "td":
            self.cells.append(data)
        self.text.append(data)


def generate(trace, texts=TEXTS, *, beta=0.7, **arguments):
    size = len(TOKENIZER)
    reward_model = tiny_reward_model(vocab_size=size)
    processor = PartialRewardLogitsProcessor(reward_model, beta=beta, top_k=TOP_K, tokenizer=TOKENIZER, trace=trace)
    inputs = TOKENIZER(texts, return_tensors="pt", padding=True)
    torch.manual_seed(3)
    with torch.no_grad():
        return tiny_base_model(vocab_size=size).generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=NEW, top_k=0,
            logits_processor=[processor], **{"suppress_tokens": [PAD, EOS], **arguments},
        )  # fmt: skip


def drawn_tokens(trace):
    """The tokens drawn at each step and in each row, as lists: one token where it is known, none where it is not."""
    return [
        [ids[mask].tolist() for ids, mask in zip(step.candidates, drawn, strict=True)]
        for step, drawn in zip(trace.steps, trace.drawn(), strict=True)
    ]


@pytest.mark.parametrize(
    "mode",
    [{}, {"do_sample": True}, {"do_sample": True, "num_return_sequences": 3}],
    ids=["greedy", "sampling", "several"],
)
def test_drawn_tokens_are_the_generated_ones(mode):
    trace = Trace()
    output = generate(trace, **mode)
    generated = output[:, -NEW:].T.tolist()
    found = drawn_tokens(trace)
    assert found[:-1] == [[[token] for token in step] for step in generated[:-1]]
    assert found[-1] == [[]] * len(output), "no later step tells what the last one drew"
    trace.finish(output)
    assert drawn_tokens(trace) == [[[token] for token in step] for step in generated]


def test_under_beams_each_step_draws_what_the_next_rows_hold():
    trace = Trace()
    output = generate(trace, num_beams=3, num_return_sequences=2)
    moved = 0
    for step, later, drawn in zip(trace.steps, trace.steps[1:], drawn_tokens(trace), strict=False):
        prefixes = step.rows.tolist()
        expected = [set() for _ in prefixes]
        for index, (*prefix, token) in enumerate(later.rows.tolist()):
            stayed = prefixes[index] == prefix
            moved += not stayed
            expected[index if stayed else prefixes.index(prefix)].add(token)
        assert [set(row) for row in drawn] == expected
    assert moved, "no beam moved, so the test shows nothing"
    trace.finish(output)
    assert sum(map(len, drawn_tokens(trace)[-1])) == len(output)


def test_beams_are_shown_with_their_own_history():
    trace = Trace()
    output = generate(trace, num_beams=3, num_return_sequences=2)
    trace.finish(output)
    shown = Page(trace.to_html(TOKENIZER)).tokens
    expected = [TOKENIZER.decode([token]) for row in output[:, -NEW:].tolist() for token in row]
    assert len(shown) == len(expected)
    # Parts of characters and control characters are shown by other signs.
    plain = [(a, b) for a, b in zip(shown, expected, strict=True) if b.isprintable() and "\ufffd" not in b]
    assert len(plain) > NEW
    assert all(a == b for a, b in plain)
    assert "not one of the candidates" not in trace.to_html(TOKENIZER)


def test_divergence_by_hand():
    trace = Trace()
    base, guided = [0.5, 0.25, 0.25, 0.0], [0.25, 0.7, 0.05, 0.0]
    trace.record(
        torch.tensor([[5, 6]]),
        torch.tensor([[7, 8, 9, 7]]),
        torch.tensor([base]).log(),
        None,
        torch.tensor([guided]).log(),
    )
    expected = sum(g * math.log(g / b) for g, b in zip(guided, base, strict=True) if g)
    assert trace.steps[0].divergence().item() == pytest.approx(expected, abs=1e-6)
    assert f"mean KL(guided ‖ base) {expected:.3f} nats per token" in trace.to_html(TOKENIZER)


def test_divergence_of_a_row_is_the_mean_over_its_own_steps():
    trace = Trace()
    output = generate(trace, do_sample=True, suppress_tokens=[PAD], sequence_bias={(EOS,): 4.0}, num_return_sequences=4)
    lengths = [(row == EOS).nonzero()[0].item() + 1 if EOS in row else NEW for row in output[:, -NEW:]]
    assert min(lengths) < NEW, "no row finished early, so the test shows nothing"
    trace.finish(output)
    html = trace.to_html(TOKENIZER)
    for row, length in enumerate(lengths):
        kl = [step.guided[row].exp() @ (step.guided[row] - step.base[row]) for step in trace.steps[:length]]
        assert re.search(rf"{length} steps?[^\d]*{sum(kl) / length:.3f} nats per token", html)
    assert len(Page(html).tokens) == sum(lengths)


def test_finished_rows_have_no_unknown_token():
    trace = Trace()
    generate(trace, do_sample=True, suppress_tokens=[PAD], sequence_bias={(EOS,): 4.0}, num_return_sequences=4)
    ended = [EOS in row for row in trace.steps[-1].rows[:, -len(trace.steps) + 1 :]]
    assert any(ended)
    assert not all(ended)
    assert Page(trace.to_html(TOKENIZER)).tokens.count(" ?") == len(ended) - sum(ended)


def test_without_rewards():
    trace = Trace()
    trace.finish(generate(trace, beta=0))
    page = Page(trace.to_html(TOKENIZER))
    assert page.cells.count("\N{EN DASH}") == len(TEXTS) * NEW * TOP_K
    assert "mean KL(guided ‖ base) 0.000 nats" in "".join(page.text)


def test_two_calls_are_two_generations():
    trace = Trace()
    first = generate(trace)
    trace.finish(first)
    second = generate(trace, do_sample=True)
    trace.finish(second)
    html = trace.to_html(TOKENIZER)
    assert "Generation 1" in html
    assert "Generation 2" in html
    generated = torch.cat([first[:, -NEW:].T, second[:, -NEW:].T]).tolist()
    assert drawn_tokens(trace) == [[[token] for token in step] for step in generated]


def test_page_is_whole_escaped_and_needs_nothing_else():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(['<b onclick="x">', "\u202e\n"])
    trace = Trace()
    ids = torch.arange(len(tokenizer) - 2, len(tokenizer))[None]
    trace.record(
        ids, ids, torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, -2.0]]), torch.tensor([[0.9, 0.1]]).log()
    )
    trace.finish(torch.cat([ids, ids[:, :1]], dim=1))
    html = trace.to_html(tokenizer)
    page = Page(html)
    assert not page.open
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert not {"b", "script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.tokens == ['<b onclick="x">']
    assert '<b␣onclick="x">' in page.cells
    assert "+1.00" in page.cells
    assert "\N{MINUS SIGN}2.00" in page.cells


def test_every_token_can_be_reached_by_keyboard_and_describes_itself():
    trace = Trace()
    trace.finish(generate(trace))
    tags = Page(trace.to_html(TOKENIZER)).tags
    tokens = [attributes for tag, attributes in tags if tag == "span" and "aria-describedby" in attributes]
    panels = {attributes["id"] for tag, attributes in tags if tag == "div" and "id" in attributes}
    assert len(tokens) == len(panels) == len(TEXTS) * NEW
    assert all(token["tabindex"] == "0" and token["aria-describedby"] in panels for token in tokens)


def test_unknown_token_ids_are_shown_as_numbers():
    trace = Trace()
    ids = torch.tensor([[len(TOKENIZER) + 5]])
    trace.record(torch.tensor([[7]]), ids, torch.zeros(1, 1), None, torch.zeros(1, 1))
    assert f"[{len(TOKENIZER) + 5}]" in Page(trace.to_html(TOKENIZER)).cells


def test_save_writes_the_page_and_leaves_nothing_else(tmp_path):
    trace = Trace()
    generate(trace)
    path = tmp_path / "new" / "trace.html"
    trace.save_html(path, TOKENIZER)
    assert path.read_text(encoding="utf-8") == trace.to_html(TOKENIZER)
    assert [file.name for file in path.parent.iterdir()] == ["trace.html"]


def test_a_failed_save_leaves_the_old_page(tmp_path):
    path = tmp_path / "trace.html"
    path.write_text("old")
    with pytest.raises(InvalidArgumentError, match="nothing was recorded"):
        Trace().save_html(path, TOKENIZER)
    folder = tmp_path / "folder"
    folder.mkdir()
    trace = Trace()
    generate(trace)
    with pytest.raises(OSError, match="folder"):
        trace.save_html(folder, TOKENIZER)
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "trace.html"]


def test_finish_needs_rows_that_continue_the_prompts():
    trace = Trace()
    with pytest.raises(InvalidArgumentError, match="0 recorded steps"):
        trace.finish(torch.tensor([[5, 6]]))
    output = generate(trace)
    with pytest.raises(InvalidArgumentError, match="do not start with the recorded prompts"):
        trace.finish(output + 1)
    trace.clear()
    assert trace.steps == trace.drawn() == []
