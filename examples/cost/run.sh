#!/usr/bin/env bash
# Measures what README.md tells, and writes it as JSON: run.sh TEXT FOLDER [part ...]
#
# TEXT is a file of real text, plain or .jsonl with a column "text" (2 MB are plenty), FOLDER is where the figures go.
# Without parts: those for the table of targets, about half an hour on two idle cores.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "Expected a text and a folder, but got $# arguments. Usage: run.sh TEXT FOLDER [part ...]" >&2
  exit 2
fi
text=$1 folder=$2
shift 2
[ $# -gt 0 ] || set -- candidates scorers shipped profile
cards=$(cd "$(dirname "$0")/../.." && pwd)/model_cards
mkdir -p "$folder"

more=()
measure() { # name of the file, options
  echo "== $1 (${SECONDS}s)"
  ${RGTG:-rgtg} benchmark --output "$folder/$1.json" "${@:2}" "${more[@]}"
}
lengths=(--prompt-length 64 --prompt-length 512)
counts=(--top-k 5 --top-k 20 --top-k 50)
all=(--method floor --method guided --method top_p --method vocabulary --method log_ratio --method log_ratio_pair)
all+=(--method retokenizing --method weighted)

candidates() { # floor and guided at every size and number of candidates
  local methods=(--method floor --method guided "${counts[@]}" --new-tokens 16)
  measure candidates-batch-1 "${methods[@]}" "${lengths[@]}" --prompt-length 2048 --rounds 3
  measure candidates-batch-4 "${methods[@]}" "${lengths[@]}" --batch-size 4 --rounds 2
  measure candidates-batch-8 "${methods[@]}" "${lengths[@]}" --batch-size 8 --rounds 2
  # The prompts alone take half a minute for each method and round; with a batch of 8 it would be a minute.
  measure candidates-batch-4-prompt-2048 --method floor --method guided --new-tokens 16 --prompt-length 2048 --batch-size 4 \
    --rounds 2
}

scorers() { # every scorer, on real text
  measure scorers-batch-1 "${all[@]}" "${lengths[@]}" --prompt-length 2048 --new-tokens 16 --rounds 2 --text "$text"
  measure scorers-batch-4 "${all[@]}" --prompt-length 512 --batch-size 4 --new-tokens 12 --rounds 2 --text "$text"
}

shipped() { # the shipped models, which draw by themselves behind real text
  measure shipped --base "$cards/tiny-imdb-base" --reward-model "$cards/tiny-imdb-partial-rm" "${lengths[@]}" \
    --batch-size 1 --batch-size 4 --batch-size 8 --method plain --method floor --method guided --method top_p --method vocabulary \
    --method retokenizing --new-tokens 32 --rounds 4 --text "$text"
  # A step is a few milliseconds, of which four rounds say little.
  measure shipped-top-p --base "$cards/tiny-imdb-base" --reward-model "$cards/tiny-imdb-partial-rm" "${lengths[@]}" \
    --method floor --method top_p --new-tokens 32 --rounds 24 --text "$text"
}

profile() { # where the time of a further token goes
  local methods=(--method floor --method guided --prompt-length 512 --rounds 1)
  measure profile-times-batch-1 "${methods[@]}" "${counts[@]}" --profile "$folder/profile-batch-1.json"
  measure profile-times-batch-4 "${methods[@]}" --batch-size 4 --profile "$folder/profile-batch-4.json"
}

again() { # parts once more, with more options and in a folder of their own: its name, the parts, the options
  local folder=$folder/$1 more=("${@:3}") part
  mkdir -p "$folder"
  for part in $2; do "$part"; done
}
prepacked() { again prepacked "candidates scorers shipped" --prepack; }                        # 30 minutes
bfloat16() { again bfloat16 "candidates shipped" --dtype bfloat16; }                           # 15 minutes
bfloat16_prepacked() { again bfloat16-prepacked "candidates shipped" --dtype bfloat16 --prepack; } # 15 minutes

rivals() { # what others do (15 minutes)
  measure cpu-batch-1 --rounds 3
  measure cpu-batch-4 --method floor --method guided --method replicated --prompt-length 512 --batch-size 4 --new-tokens 12 \
    --rounds 2
}

gpu() { # as "candidates" and "scorers", in bfloat16 on a GPU
  local sizes=("${lengths[@]}" --prompt-length 2048 --batch-size 1 --batch-size 4 --batch-size 8)
  local options=(--device cuda --dtype bfloat16 --new-tokens 64 --rounds 5)
  measure gpu-candidates --method plain --method floor --method guided --method compiled "${counts[@]}" "${sizes[@]}" "${options[@]}"
  measure gpu-scorers "${all[@]}" "${sizes[@]}" "${options[@]}" --text "$text"
}

for part in "$@"; do
  case $part in
    candidates | scorers | shipped | profile | prepacked | bfloat16 | bfloat16_prepacked | rivals | gpu) "$part" ;;
    *)
      echo "Expected candidates, scorers, shipped, profile, prepacked, bfloat16, bfloat16_prepacked, rivals or gpu," \
        "but got $part." >&2
      exit 2
      ;;
  esac
done
