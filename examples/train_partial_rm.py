# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "rgtg_logits[train]",
#     "transformers>=5.18",
# ]
# ///
"""Trains a reward model on the prefixes of preference pairs, from a base model, and pushes it to the Hub.

On one GPU (`uv run` installs the dependencies named above):

    uv run examples/train_partial_rm.py --model_name_or_path Qwen/Qwen3-0.6B \
        --dataset_name trl-lib/ultrafeedback_binarized --output_dir Qwen3-0.6B-partial-rm \
        --learning_rate 1e-5 --per_device_train_batch_size 8 --num_train_epochs 1 \
        --eval_strategy steps --eval_steps 200 --save_steps 200 --resume_from_checkpoint --push_to_hub

With a LoRA adapter, on one smaller GPU (the reward head is trained and saved with it, whatever the task type):

    … --use_peft --lora_r 16 --lora_target_modules all-linear --load_in_4bit --learning_rate 1e-4

On several GPUs:

    accelerate launch --config_file examples/accelerate/fsdp2.yaml examples/train_partial_rm.py …

After an interruption, run the same command again: it resumes from the last checkpoint. `rgtg train` takes the same
arguments, and also local files as data. The result is used by
`PartialRewardLogitsProcessor("name/Qwen3-0.6B-partial-rm")`.
"""

from datasets import load_dataset
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from rgtg_logits.train import PartialRewardConfig, PartialRewardTrainer


def main() -> None:
    """Trains, evaluates and saves the model, and pushes it with --push_to_hub."""
    parser = TrlParser((ScriptArguments, PartialRewardConfig, ModelConfig))
    script, args, model = parser.parse_args_and_config()
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    pairs = load_dataset(script.dataset_name, name=script.dataset_config, streaming=script.dataset_streaming)
    trainer = PartialRewardTrainer(
        model.model_name_or_path,
        args,
        train_dataset=pairs[script.dataset_train_split],
        eval_dataset=pairs[script.dataset_test_split] if args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    # Saved before anything that may fail.
    trainer.save_model(args.output_dir)
    if args.eval_strategy != "no":
        trainer.evaluate()
        trainer.save_config()
    trainer.create_model_card(dataset_name=script.dataset_name)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.end()


if __name__ == "__main__":
    main()
