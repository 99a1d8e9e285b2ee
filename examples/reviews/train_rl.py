"""The fine-tuned rival: online RL of the base model with TRL, rewarded by the reward model that learnt from the pairs.

    python examples/reviews/train_rl.py --model PATH_OR_ID --output_dir runs/reviews

GRPO on prompts of train; the reward of an answer is what the reward model says of it as finished. Every `save_steps`
steps there is a policy, `policies/rl-10`, ...; together they are RL's curve of reward against KL. `--kl 0` leaves
the distance from the base to the number of steps. Stopped, it goes on after the last policy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from files import write
from splits import train_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from rgtg_logits import RewardModel


@dataclass
class Arguments:
    """What to train, with which reward, for how long."""

    model: str
    data: str = "stanfordnlp/imdb"
    output_dir: str = "runs/reviews"
    reward_model: str = "full_bt"
    name: str = "rl"
    prompts: int = 4000
    seed: int = 0
    kl: float = 0.0
    learning_rate: float = 3e-5
    steps: int = 60
    save_steps: int = 10
    answers_per_step: int = 128
    answers_per_prompt: int = 8
    batch_size: int = 64
    new_tokens: int = 64
    bf16: bool = False
    attn_implementation: str | None = None


class TokenGRPOTrainer(GRPOTrainer):
    """Takes prompts as token ids, which are the column `prompt_ids`; tokenised anew, a cut text may be other tokens."""

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        known = dict(zip(self.train_dataset["prompt"], self.train_dataset["prompt_ids"], strict=True))
        self._tokenize_prompts = lambda prompts: ([known[prompt] for prompt in prompts], None, {})
        return self._tokenize_prompts(prompts)

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        # With the numbers that the policy is trained in, so that it samples from what is trained.
        with self.accelerator.autocast():
            return super()._generate_single_turn(*args, **options)


def finished_reward(reward_model: RewardModel, pad: int) -> Any:
    """The reward model as TRL wants a reward: a function of the answers, here of their tokens."""

    def reward(completion_ids: list[list[int]], prompt_ids: list[list[int]], **_: Any) -> list[float]:
        rows = [torch.tensor([*p, *c]) for p, c in zip(prompt_ids, completion_ids, strict=True)]
        lengths = torch.tensor([len(row) for row in rows])
        input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        mask = (torch.arange(input_ids.shape[1])[None] < lengths[:, None]).long()
        return reward_model.score_tokens(input_ids, mask).gather(1, lengths[:, None] - 1)[:, 0].tolist()

    return reward


def main(args: Arguments) -> None:
    """Trains as far as there is no policy yet, and stores those on the way."""
    out = Path(args.output_dir)
    last = out / "policies" / f"{args.name}-{args.steps}"
    if last.exists():
        return
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation=args.attn_implementation
    )
    prompts = train_prompts(args.data, tokenizer, args.prompts, 0)
    rows = Dataset.from_dict({"prompt": tokenizer.batch_decode(prompts), "prompt_ids": prompts})
    reward_model = RewardModel.from_pretrained(out / "reward_models" / args.reward_model, dtype=torch.bfloat16)
    draft = out / "policies" / f".{args.name}.draft"
    config = GRPOConfig(
        output_dir=str(draft), beta=args.kl, learning_rate=args.learning_rate, lr_scheduler_type="constant_with_warmup",
        warmup_steps=5, max_steps=args.steps, save_steps=args.save_steps, save_total_limit=1,
        seed=args.seed, logging_steps=1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.answers_per_step // args.batch_size,
        num_generations=args.answers_per_prompt, max_completion_length=args.new_tokens,
        # What is learnt is the policy itself: nothing is cut off and nothing sharpened.
        temperature=1.0, top_k=0, top_p=1.0, min_p=None, repetition_penalty=1.0,
        bf16=args.bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    reward = finished_reward(reward_model, tokenizer.pad_token_id)
    trainer = TokenGRPOTrainer(
        model=model, args=config, train_dataset=rows, reward_funcs=reward, processing_class=tokenizer,
        callbacks=[StorePolicies(out / "policies" / args.name)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(draft)) if draft.exists() else None)
    keys = ("step", "reward", "entropy", "kl", "completions/mean_length", "step_time")
    lines = ["\t".join(str(e.get(key)) for key in keys) for e in trainer.state.log_history if "reward" in e]
    write(out / "policies" / f"{args.name}.tsv", "\t".join(keys) + "\n" + "\n".join(lines) + "\n")
    shutil.rmtree(draft)


class StorePolicies(TrainerCallback):
    """Stores the policy alone, whole or not at all, beside every checkpoint that training goes on from.

    Args:
        name: Its folder, without the step.
    """

    def __init__(self, name: Path) -> None:
        self._name = name

    def on_save(
        self, args: Any, state: TrainerState, control: Any, *, model: Any, processing_class: Any, **_: Any
    ) -> None:
        """Stores the policy of this step."""
        folder = self._name.with_name(f"{self._name.name}-{state.global_step}")
        if not folder.exists():
            draft = folder.with_name(f".{folder.name}.draft")
            model.save_pretrained(draft)
            processing_class.save_pretrained(draft)
            draft.rename(folder)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
