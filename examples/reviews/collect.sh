#!/usr/bin/env bash
# Copies the results that documents quote from the folder of a run to a folder of the repository.
#
#     bash examples/reviews/collect.sh OUTPUT_DIR RESULTS_DIR
set -euo pipefail
out=$1 results=$2
mkdir -p "$results"
cp "$out"/claims.md "$out"/prefix_accuracy*.* "$out"/candidate_values.md "$results"
find "$out/evaluation" -maxdepth 1 -name "*.png" -exec cp {} "$results" \;
for folder in "$out"/evaluation/val-*; do
    to=$results/$(basename "$folder" | sed s/^val-//)
    mkdir -p "$to"
    cp "$folder"/table.md "$folder"/results.json "$to"
    # The figures of the others are drawn by figures.py.
    case $(basename "$folder") in val-main | val-cut | val-plain) cp "$folder"/*.png "$to" ;; esac
    # Folders as in the commands of the README, wherever they were.
    sed "s#$out/#runs/reviews/#g" "$out/methods/$(basename "$folder").yaml" >"$to/methods.yaml"
done
