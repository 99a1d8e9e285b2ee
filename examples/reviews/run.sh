#!/usr/bin/env bash
# Everything, from reviews to claims: hours on two cores. An interrupted run resumes.
#
#     bash examples/reviews/run.sh MODEL DATA OUTPUT_DIR
#
# MODEL is the base model (model_cards/tiny-imdb-base), DATA is stanfordnlp/imdb or a folder with the same reviews.
set -euo pipefail
base=$1 data=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
common=(--model "$base" --output_dir "$out")

python "$here/sample_answers.py" "${common[@]}" --data "$data"
python "$here/make_data.py" "${common[@]}" --data "$data"
python "$here/train_judge.py" "${common[@]}" --data "$data"
python "$here/cut_layers.py" "${common[@]}" --layers 2 4
bash "$here/train_reward_models.sh" "$base" "$out" full_bt
python "$here/relabel.py" --output_dir "$out"
bash "$here/train_reward_models.sh" "$base" "$out" soft_value_td_from_pairs_vocabulary
python "$here/sample_guided.py" "${common[@]}" --data "$data" --guide soft_value_td_from_pairs_vocabulary \
    --name guided --add full_bt-labels-8000
bash "$here/train_reward_models.sh" "$base" "$out" value_td_guided_vocabulary
python "$here/sample_guided.py" "${common[@]}" --data "$data" --guide value_td_guided_vocabulary \
    --name guided_twice --first 6000 --add guided-answers
bash "$here/train_reward_models.sh" "$base" "$out" value_td_guided_twice_vocabulary
python "$here/sample_guided.py" "${common[@]}" --data "$data" --guide value_td_guided_twice_vocabulary \
    --name guided_thrice --first 8000 --betas 8 16 --candidates 500 \
    --add full_bt-labels-8000 guided-answers guided_twice-answers
bash "$here/train_reward_models.sh" "$base" "$out" plain_full_bt
python "$here/relabel.py" --output_dir "$out" --reward_model plain_full_bt --labels plain-labels-8000
bash "$here/train_reward_models.sh" "$base" "$out"
python "$here/train_dpo.py" "${common[@]}" --betas 0.1 0.3 1
python "$here/train_rl.py" "${common[@]}" --data "$data"
python "$here/train_rl.py" "${common[@]}" --data "$data" --reward_model plain_full_bt --name plain_rl
python "$here/train_dpo.py" "${common[@]}" --betas 0.3 --pairs plain-pairs-8000 --name plain_dpo
python "$here/prefix_accuracy.py" --output_dir "$out" --reward_models partial_bt full_bt value_td soft_value_td
python "$here/prefix_accuracy.py" --output_dir "$out" --reward_models closed_partial_bt closed_full_bt \
    --pairs closed-pairs-8000 --name prefix_accuracy_closed
python "$here/candidate_values.py" "${common[@]}" --data "$data"
bash "$here/evaluate.sh" "$base" "$data" "$out"
python "$here/figures.py" --output_dir "$out"
python "$here/claims.py" --output_dir "$out" >"$out/claims.md"
bash "$here/collect.sh" "$out" "$here/../results/reviews"
