#!/usr/bin/env bash
# What a first run on a GPU tells, in order of worth, within LIMIT seconds; run in the repository's root, figures go to
# OUT. A dry run on a CPU: DEVICE=cpu BUDGET=0.004 REPEATS=1 EPISODES=2 LIMIT=1800 SCALE=9 tests/gpu/device_check.sh
# A machine without a package index takes the missing wheels from the folder WHEELS.
set -u
here=$(cd "$(dirname "$0")" && pwd)
: "${OUT:=/tmp/device_check}" "${DEVICE:=cuda}" "${BUDGET:=1}" "${LIMIT:=470}" "${REPEATS:=200}" "${EPISODES:=16}" "${SCALE:=1}"
: "${PYTHON:=python3}" "${WHEELS:=}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
export OUT DEVICE REPEATS MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PWD:$work/site"
export MINARI_DATASETS_PATH=${MINARI_DATASETS_PATH:-$work/datasets}
mkdir -p "$MINARI_DATASETS_PATH"
began=$(date +%s)
: >"$OUT/steps.txt"
: >"$OUT/log.txt"

step() { # step NAME SECONDS COMMAND…: runs it if there is time left; notes how it ended and how long it took
  local name=$1 most=$(($2 * SCALE)) left=$((LIMIT - $(date +%s) + began)) start
  shift 2
  if ((left < 10)); then
    echo "$name: no time left" | tee -a "$OUT/steps.txt"
    return
  fi
  start=$(date +%s)
  echo "=== $name: $*" >>"$OUT/log.txt"
  timeout -k 15 $((most < left ? most : left)) "$@" >>"$OUT/log.txt" 2>&1
  echo "$name: exit code $?, $(($(date +%s) - start)) s" | tee -a "$OUT/steps.txt"
}

if [[ -n $WHEELS ]]; then
  step install 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
fi
trajgen=("$PYTHON" -m trajgen)
paper=(schedule.scales=8 prior.width=256 prior.depth=6 prior.heads=4 conditioner.width=256)
graph=$([[ $DEVICE == cuda* ]] && echo cuda_graph || echo eager)

(cd "$work" && "${trajgen[@]}" data make pointmaze/umaze-dwell) >"$OUT/data.txt" 2>&1 &
data=$!
step tests 150 "$PYTHON" -m pytest -v -p no:cacheprovider -n 4 --dist load tests/gpu --tb=short -rs
for size in default paper; do
  words=()
  [[ $size == paper ]] && words=("${paper[@]}")
  step "decision $size" 60 "${trajgen[@]}" bench decision recipe=mage "${words[@]}" "device=$DEVICE" --against dt \
    "repeats=$REPEATS" "out=$OUT/decision_$size.json"
done
wait $data
step train 150 "${trajgen[@]}" train recipe=mage "device=$DEVICE" "engine.budget=$BUDGET" "run_dir=$work/run" \
  "evaluation.episodes=$EPISODES"
step profile 90 "$PYTHON" "$here/profile_steps.py" "$OUT/profile.json"
step "profile paper" 90 "$PYTHON" "$here/profile_steps.py" "$OUT/profile_paper.json" "${paper[@]}"
step evaluate 60 "${trajgen[@]}" evaluate "run=$work/run" "device=$DEVICE" "policy.backend=$graph" \
  "evaluation.episodes=$EPISODES" evaluation.reference=false "out=$work/evaluation"
step export 60 "${trajgen[@]}" export "run=$work/run" format=torch_export "out=$work/exported"
step "profile paper compiled" 150 "$PYTHON" "$here/profile_steps.py" "$OUT/profile_compiled.json" "${paper[@]}" \
  engine.compile=true
for file in run/evaluation.json run/metrics.jsonl run/summary.md evaluation/evaluation.json; do
  [[ -f $work/$file ]] && cp "$work/$file" "$OUT/${file//\//_}"
done
cat "$OUT/steps.txt"
