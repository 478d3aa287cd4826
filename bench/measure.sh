#!/usr/bin/env bash
# What is timed on a CPU and kept in bench/results/, then the pages made of it: `make measure`.
#
# Not taken here: demo/ (`python -m bench.lic demo`), comparison/ (`python -m bench.lic compare`), launches/,
# state/ and kernels/aot* (exact, by `launches`, `gate --record` and `kernels --aot`), what an experiment
# of docs/decisions.md left in refresh/ (elic_cpu_slow_loop, _fast_loop, _one_thread_amd), and GPUs
# (`device`).
#
# Sized for 20 to 30 minutes on two cores that nothing else uses; how long it takes since a refresh
# period goes before the timed ones is not measured. What is done is kept in a folder
# of the commit that is measured, so that the same command goes on where it was stopped; results are
# copied to their places once all are there. Peers that are not installed are named and left out.
# Numbers belong to a commit: files that differ from it are refused, and results of two are as well.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
commit=$(git rev-parse --short HEAD)
KEPT=${KEPT:-build/measured/$commit}
RESULTS=${RESULTS:-bench/results}
failed=()

publish() { # to their places, and the pages made of them
  cp -R "$KEPT/results/." "$RESULTS"
  "$PYTHON" -m bench report "$RESULTS" --out docs/measured
  "$PYTHON" -m bench readme
}

if [ -e "$KEPT/whole" ]; then
  echo "all results of $commit are in $KEPT and are copied from there; to take them anew: rm -r $KEPT" >&2
  publish
  exit
fi
if [ -n "$(git status --porcelain -uno)" ]; then
  echo "files differ from commit $commit, to which the numbers would belong: commit them first" >&2
  exit 2
fi

measure() { # FILE COMMAND [OPTION...]: the command's result as FILE.json
  local file="$KEPT/results/$1.json"
  if [ -s "$file" ]; then
    return
  fi
  echo "$1: python -m bench ${*:2}" >&2
  mkdir -p "$(dirname "$file")"
  if "$PYTHON" -m bench "${@:2}" --json "$file.new"; then
    mv "$file.new" "$file"
  else
    failed+=("$1")
  fi
}

narrower() { # MODEL: its parameters at a quarter of all widths, as a file that --shapes takes
  local file="$KEPT/shapes/$1.json"
  if [ -s "$file" ]; then
    return
  fi
  mkdir -p "$(dirname "$file")"
  "$PYTHON" -m bench.lic shapes --model "$1" --factor 0.25 --json "$file.new" >/dev/null ||
    return 0 # a step that does not find the file is named among what failed
  # No result of it may pass for one of the whole model.
  sed 's/^ "model": "[^"]*/& at a quarter of its width/' "$file.new" >"$file"
}

on=(--device cpu)
peers=(--peers pytorch_optimizer,heavyball,adamw,oracle)

measure roof/cpu roof "${on[@]}"
measure kernels/elic_cpu kernels --shapes elic "${on[@]}" --steps 5
# Five periods are five refreshing calls, which `bench compare --gate` asks for; the larger models'
# would take too long, so that of theirs plain calls alone can be held to a gate.
measure step/hyperprior_cpu step --shapes hyperprior --periods 5 "${on[@]}" "${peers[@]}"
for model in elic_like elic; do
  measure "step/${model}_cpu" step --shapes "$model" --periods 2 "${on[@]}" "${peers[@]}"
done
for model in tcm_64 lalic dcae; do
  narrower "$model"
  measure "step/${model}_quarter_cpu" step --shapes "$KEPT/shapes/$model.json" "${on[@]}" "${peers[@]}"
done
measure refresh/elic_cpu refresh --shapes elic "${on[@]}"
measure refresh/elic_cpu_one_thread refresh --shapes elic "${on[@]}" --threads 1
measure train/demo_cpu train "${on[@]}" --periods 5 --peers pytorch_optimizer,heavyball,adamw
for model in elic tcm_64 lalic dcae; do
  measure "train/${model}_quarter_cpu" train --model "$model" --width 0.25 --batch 2 --crop 128 \
    --periods 1 "${on[@]}" --peers pytorch_optimizer
done
measure scaling/cpu scaling "${on[@]}"

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}; the same command tries them again, the others are kept in $KEPT" >&2
  exit 1
fi
commits=$(find "$KEPT/results" -name '*.json' -exec grep -h '^ "commit"' {} + | sort -u)
if [ "$(wc -l <<<"$commits")" -gt 1 ]; then
  echo "results of several commits are in $KEPT: rm -r $KEPT, and do not commit while measuring" >&2
  exit 1
fi
touch "$KEPT/whole"
publish
