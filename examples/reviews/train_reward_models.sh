#!/usr/bin/env bash
# Trains the reward models of this example with `rgtg train`, one after another; existing folders are kept.
#
#     bash examples/reviews/train_reward_models.sh MODEL OUTPUT_DIR [NAME...]
#
# MODEL is the base model's folder, OUTPUT_DIR that of make_data.py. Each NAME below becomes the folder
# OUTPUT_DIR/reward_models/NAME; without names, all of them are trained. Pairs come 32 to a batch and answers 64, so that
# every objective sees the same answers in the same number of steps. More arguments of `rgtg train` go into RGTG_MORE.
set -euo pipefail
base=$1 out=$2
shift 2
selected=("$@")

train() {  # NAME DATA BATCH ARGUMENT...
    local name=$1 data=$2 batch=$3 folder=$out/reward_models/$1 draft=$out/reward_models/.draft/$1
    shift 3
    if [[ -d $folder || (${#selected[@]} -gt 0 && ! " ${selected[*]} " == *" $name "*) ]]; then return; fi
    if [[ ! -f $out/data/$data/test.jsonl ]]; then echo "$name needs data/$data: run make_data.py"; return; fi
    rm -rf "$draft"
    # Later arguments win, so that one NAME may have another model or learning rate than the others.
    # shellcheck disable=SC2086
    rgtg train --model_name_or_path "$base" --dataset_name "$out/data/$data" --output_dir "$draft" \
        --learning_rate 3e-4 --lr_scheduler_type cosine --warmup_steps 10 --num_train_epochs 1 \
        --per_device_train_batch_size "$batch" --per_device_eval_batch_size 128 --max_length 256 --seed 0 \
        --gradient_checkpointing false --logging_steps 10 --save_strategy no --report_to none "$@" ${RGTG_MORE:-}
    rm -f "$draft/training_args.bin"
    mv "$draft" "$folder"  # It is there whole or not at all.
}

mkdir -p "$out/reward_models"
pairs=gold-pairs-8000 labels=gold-labels-8000
train full_bt $pairs 32 --objective full_bt
train partial_bt $pairs 32 --objective partial_bt
# An end-of-text token after every answer, cut or not.
for objective in full_bt partial_bt; do
    train closed_$objective closed-pairs-8000 32 --objective $objective
done
train value $labels 64 --objective value
train soft_value $labels 64 --objective soft_value --soft_value_beta 1
# TD(λ): fitted to the model's own scores about 20 tokens later, which are less noisy than the reward of the end.
train soft_value_td $labels 64 --objective soft_value --soft_value_beta 1 --td_lambda 0.95
train soft_value_td_vocabulary $labels 64 --objective soft_value --soft_value_beta 1 --td_lambda 0.95 --kind vocabulary
for kind in causal vocabulary; do  # From the pairs alone; see relabel.py.
    name=soft_value_td_from_pairs; [[ $kind == causal ]] || name+=_vocabulary
    train $name full_bt-labels-8000 64 --objective soft_value --soft_value_beta 1 --td_lambda 0.95 --kind $kind
done
# From guided answers too; see sample_guided.py. The second round continues the first model, the third one starts again
# from the base model, with the answers of all rounds.
train value_td_guided_vocabulary guided-labels 64 --objective value --td_lambda 0.95 --kind vocabulary
train value_td_guided_twice_vocabulary guided_twice-labels 64 --objective value --td_lambda 0.95 --kind vocabulary \
    --model_name_or_path "$out/reward_models/value_td_guided_vocabulary" --learning_rate 2e-4
train value_td_guided_thrice_vocabulary guided_thrice-labels 64 --objective value --td_lambda 0.95 --kind vocabulary
train value_td $labels 64 --objective value --td_lambda 0.95
train partial_bt_vocabulary $pairs 32 --objective partial_bt --kind vocabulary
train value_vocabulary $labels 64 --objective value --kind vocabulary
train cumulative $labels 64 --objective cumulative
train farma $pairs 32 --objective farma
# Bradley-Terry on finished answers for a vocabulary head: FaRMA without its constraint on unfinished ones.
train full_bt_vocabulary $pairs 32 --objective farma --farma_weight 0
train arm $pairs 32 --objective arm
for layers in 2 4; do  # See cut_layers.py.
    train partial_bt_layers_$layers $pairs 32 --objective partial_bt --model_name_or_path "$out/bases/layers-$layers"
done
for size in 500 2000 32000; do
    train partial_bt_pairs_$size gold-pairs-$size 32 --objective partial_bt
done
for objective in full_bt partial_bt; do
    train plain_$objective plain-pairs-8000 32 --objective $objective
done
train plain_soft_value_td plain-labels-8000 64 --objective soft_value --soft_value_beta 1 --td_lambda 0.95
train plain_soft_value_td_from_pairs_vocabulary plain_full_bt-labels-8000 64 --objective soft_value \
    --soft_value_beta 1 --td_lambda 0.95 --kind vocabulary
train plain_value_td plain-labels-8000 64 --objective value --td_lambda 0.95
