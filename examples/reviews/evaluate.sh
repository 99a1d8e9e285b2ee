#!/usr/bin/env bash
# Evaluates everything that has been trained: chooses strengths on train prompts, then reports on val prompts.
#
#     bash examples/reviews/evaluate.sh MODEL DATA OUTPUT_DIR [LIST...]
#
# A LIST is one of methods.py; without any, all of them. An interrupted run resumes. RGTG_MORE holds more arguments of
# `rgtg evaluate`, such as `--num_processes 2`.
set -euo pipefail
base=$1 data=$2 out=$3
shift 3
lists=("$@")
((${#lists[@]})) || lists=(main cut greedy large k layers pairs best plain)
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} RGTG_REVIEWS=$out

judges=(--judge gold=judges:gold --judge judge=judges:judge)

evaluate() {  # PROMPTS LIST ARGUMENT...
    local prompts=$1 list=$2 top_k=0 judging=("${judges[@]}")
    shift 2
    # Strong guidance exploits its reward most, so a judge of a different kind is added; it costs as much as a reward model.
    if [[ $list == large ]]; then judging+=(--judge neural="$out/neural_judge" --label_name neural=positive); fi
    if [[ $list == plain ]]; then judging=(--judge plain=judges:plain --judge ease=judges:reading_ease); fi
    [[ $list == cut || $list == greedy ]] && top_k=10
    # shellcheck disable=SC2086
    rgtg evaluate "$base" --prompts "$out/prompts/$prompts.jsonl" --methods "$out/methods/$prompts-$list.yaml" \
        "${judging[@]}" --max_new_tokens 64 --top_k $top_k --batch_size 250 --dtype bfloat16 --guide_dtype bfloat16 \
        --output "$out/evaluation/$prompts-$list" "$@" ${RGTG_MORE:-}
}

methods() {  # PROMPTS LIST ARGUMENT...
    mkdir -p "$out/methods"
    python "$here/methods.py" --output_dir "$out" --model "$base" --which "$2" "${@:3}" >"$out/methods/$1-$2.yaml"
}

[[ -f $out/prompts/val.jsonl ]] || python "$here/write_prompts.py" --model "$base" --data "$data" --output_dir "$out"
for list in "${lists[@]}"; do
    case $list in
    main | cut | plain)
        methods tune "$list"
        evaluate tune "$list"
        methods val "$list" --tuned "$out/evaluation/tune-$list"
        compare=()
        while read -r pair; do compare+=(--compare "$pair"); done < <(python "$here/claims.py" --pairs_of "$out/methods/val-$list.yaml")
        evaluate val "$list" --seeds 3 "${compare[@]}"
        ;;
    best)
        methods val best
        evaluate val best --seeds 3
        ;;
    *)
        methods val "$list"
        evaluate val "$list"
        ;;
    esac
done
