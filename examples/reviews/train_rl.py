"""Fine-tuning to compare with: online RL of the base model, rewarded by the reward model trained on the pairs.

    python examples/reviews/train_rl.py --model PATH_OR_ID --output_dir runs/reviews

TRL's GRPO on prompts of train; the reward of an answer is that of the finished text. A policy is stored every
`save_steps` steps (`policies/rl-10`, ...); together they are the curve of reward against KL of RL. With `--kl 0` the
number of steps alone limits the distance from the base model. An interrupted run resumes after the last policy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from files import draft_of, write
from relabel import finished_rewards
from splits import train_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer

from rgtg_logits import RewardModel


@dataclass
class Arguments:
    """The model to train, the reward, and the training arguments."""

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
    """Takes prompts as token ids, from the column `prompt_ids`; tokenised again, a cut text may have other tokens."""

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        ids_of = dict(zip(self.train_dataset["prompt"], self.train_dataset["prompt_ids"], strict=True))
        self._tokenize_prompts = lambda prompts: ([ids_of[prompt] for prompt in prompts], None, {})
        return self._tokenize_prompts(prompts)

    def _generate_single_turn(self, *args: Any, **options: Any) -> Any:
        # In the precision of training, so that answers are samples of the very policy that is trained.
        with self.accelerator.autocast():
            return super()._generate_single_turn(*args, **options)


def reward_function(reward_model: RewardModel) -> Any:
    """The reward model as a reward function of TRL, on token ids."""

    def reward(completion_ids: list[list[int]], prompt_ids: list[list[int]], **_: Any) -> list[float]:
        return finished_rewards(reward_model, [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)])

    return reward


def main(args: Arguments) -> None:
    """Trains, unless the last policy exists already, and stores policies on the way."""
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
    draft = draft_of(out / "policies" / args.name)
    config = GRPOConfig(
        output_dir=str(draft), beta=args.kl, learning_rate=args.learning_rate, lr_scheduler_type="constant_with_warmup",
        warmup_steps=5, max_steps=args.steps, save_steps=args.save_steps, save_total_limit=1,
        seed=args.seed, logging_steps=1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.answers_per_step // args.batch_size,
        num_generations=args.answers_per_prompt, max_completion_length=args.new_tokens,
        # Samples of the policy itself: no truncation, no temperature.
        temperature=1.0, top_k=0, top_p=1.0, min_p=None, repetition_penalty=1.0,
        bf16=args.bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, report_to="none",
    )  # fmt: skip
    reward = reward_function(reward_model)
    trainer = TokenGRPOTrainer(
        model=model, args=config, train_dataset=rows, reward_funcs=reward, processing_class=tokenizer,
        callbacks=[StorePolicies(out / "policies" / args.name)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(draft)) if draft.exists() else None)
    columns = ("step", "reward", "entropy", "kl", "completions/mean_length", "step_time")
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    lines = [columns, *([str(entry.get(column)) for column in columns] for entry in logged)]
    write(out / "policies" / f"{args.name}.tsv", "".join("\t".join(line) + "\n" for line in lines))
    shutil.rmtree(draft)


class StorePolicies(TrainerCallback):
    """Stores the policy alone, whole or not at all, whenever a checkpoint of the training is saved.

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
            draft = draft_of(folder)
            model.save_pretrained(draft)
            processing_class.save_pretrained(draft)
            draft.rename(folder)


if __name__ == "__main__":
    main(HfArgumentParser(Arguments).parse_args_into_dataclasses()[0])
