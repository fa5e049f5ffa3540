#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# Checks nibble's CUDA engine on a machine with a GPU: kernels against their references, the sanitizers, CPU against
# GPU text, benchmarks. Needs bash and a driver; lies in the pack of ./dev gpu-pack, or runs by ./dev gpu-check.
set -uo pipefail

usage() {
  cat <<'TEXT'
Usage: gpu-check [--out FOLDER] [--bin FOLDER] [--models FOLDER] [--quick] [--without-gpu] [STEP...]

Steps (default: all): tests memcheck racecheck text bench models
  tests      every *_gpu_test
  memcheck   the same under compute-sanitizer (in PATH or /usr/local/cuda/bin), without those whose kernels wait for
             each other
  racecheck  the same, for shared memory
  text       the bundled models: greedy text in float32 and W4A8 with float32, CUDA against the CPU; in their own type
             and W4A8, graphs against --enforce-eager; perplexity of nibble's attention, FlashInfer's and the CPU's
  bench      the kernels against rooflines
  models     decode and prefill of a random model of Llama-3-8B's shape, and of the bundled models

Rows "aims" of the last two say what was measured beside what is aimed at on Hopper; elsewhere they are n/a.

--quick shortens the time limits. --without-gpu runs the tests anyway, where they must skip: always incomplete.
Output goes to FOLDER (default ./gpu-check-out): results.json, a log for each step, JSON of each benchmark.
In the table: ok, FAIL, skip (was asked for and could not be checked), n/a (left out on purpose).
Exit status: 0 passed, 1 something failed, 2 no GPU or bad arguments, 3 incomplete: nothing failed, something skipped.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=gpu-check-out bin=$here/bin models=$here/models quick= without_gpu= steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --out | --bin | --models)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    --quick) quick=1 ;;
    --without-gpu) without_gpu=1 ;;
    -h | --help) usage; exit 0 ;;
    tests | memcheck | racecheck | text | bench | models) steps+=("$1") ;;
    *) echo "gpu-check: unknown argument '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
[ ${#steps[@]} -gt 0 ] || steps=(tests memcheck racecheck text bench models)
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
[ -x "$bin/nibble" ] || { echo "gpu-check: no nibble in $bin" >&2; exit 2; }

# In the pack; a build finds its source tree's.
if [ -d "$here/tests/fixtures" ]; then
  export NIBBLE_TEST_DATA=$here
  text_file=$here/tests/fixtures/data/generated_stories.txt
else
  text_file=$here/../fixtures/data/generated_stories.txt
fi

# The pack's libraries; its C library only where the machine's is older than what nibble was built with.
run=(env)
if [ -d "$here/lib" ]; then
  run=(env "LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
  if ! "${run[@]}" "$bin/nibble" --version >/dev/null 2>&1; then
    run=("$here/glibc/ld-linux-x86-64.so.2" --library-path "$here/glibc:$here/lib:/usr/local/cuda/lib64")
  fi
fi
"${run[@]}" "$bin/nibble" --version >"$out/version.log" 2>&1 || { cat "$out/version.log" >&2; exit 2; }

has_gpu=
if command -v nvidia-smi >/dev/null; then
  fields=index,name,compute_cap,memory.total,driver_version,clocks.max.sm,clocks.max.mem
  nvidia-smi --query-gpu=$fields --format=csv >"$out/device.log" 2>&1 && has_gpu=1
elif [ -e /dev/nvidiactl ]; then
  has_gpu=1
fi
num_gpus=$(sed 1d "$out/device.log" 2>/dev/null | grep -c .)
echo "$(cat "$out/version.log") on $(uname -n), $(nproc) CPUs"
if [ -n "$has_gpu" ]; then
  cat "$out/device.log" 2>/dev/null
elif [ -z "$without_gpu" ]; then
  echo "gpu-check: no GPU here: nvidia-smi finds none, and there is no /dev/nvidiactl" >&2
  exit 2
fi

rows=()  # "step|name|result|seconds|note"
state=passed
row() {
  rows+=("$1|$2|$3|$4|$5")
  case $3 in
    FAIL) state=failed ;;
    skip) [ $state = failed ] || state=incomplete ;;
  esac
  printf '%-10s %-34s %-5s %5s s  %s\n' "$1" "$2" "$3" "$4" "$5"
}
# limited SECONDS LOG COMMAND...: sets status and seconds.
limited() {
  local limit=$1 log=$2 start=$SECONDS
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1
  status=$?
  seconds=$((SECONDS - start))
}
within() { if [ -n "$quick" ]; then echo "$2"; else echo "$1"; fi; }  # within SECONDS SECONDS-IF-QUICK
why() { [ "$1" = 124 ] || [ "$1" = 137 ] && echo "past its time limit" || echo "exit status $1"; }

# What a gtest binary said.
judge() {  # judge STEP NAME LOG [WHAT A TOOL FOUND]
  local passed skipped bad
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests*\..*/\1/p' "$3" | tail -1)
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) tests*, listed.*/\1/p' "$3" | tail -1)
  bad=$(grep -c '^\[  FAILED  \] .*ms)' "$3")
  if [ "$status" != 0 ]; then
    row "$1" "$2" FAIL "$seconds" "$(why "$status"); $bad failed${4:+; $4}, see $(basename "$3")"
  elif [ -n "$has_gpu" ] && [ "${passed:-0}" = 0 ] && grep -q 'there is no CUDA device' "$3"; then
    row "$1" "$2" FAIL "$seconds" "sees no CUDA device: is the driver one for CUDA 13 (580 or later)?"
  elif [ "${passed:-0}" = 0 ]; then
    row "$1" "$2" skip "$seconds" "${skipped:-0} skipped$(sed -n 's/^.*\(no CUDA device[^"]*\).*/: \1/p' "$3" | head -1)"
  else
    row "$1" "$2" ok "$seconds" "$passed passed${skipped:+, $skipped skipped}"
  fi
}

# Of ranks of one process whose kernels wait for each other on streams of one device: the --gtest_filter in
# NAME_gpu_test.peers (PEERS of nibble_cuda_test). A kernel that is loaded at its first launch waits for those that run;
# a tool that lets one kernel run at a time never sees the other come.
peers() { cat "$bin/$1.peers" 2>/dev/null; }  # peers TEST
environment() { [ -z "$(peers "$1")" ] || echo CUDA_MODULE_LOADING=EAGER; }  # environment TEST

gpu_tests() {
  local test name found=
  for test in "$bin"/*_gpu_test; do
    [ -x "$test" ] || continue
    found=1
    name=$(basename "$test")
    # shellcheck disable=SC2046
    limited "$(within 300 60)" "$out/tests-$name.log" env $(environment "$name") "${run[@]}" "$test"
    judge tests "$name" "$out/tests-$name.log"
  done
  [ -n "$found" ] || row tests "*_gpu_test" FAIL 0 "none in $bin"
}

# found LOG: the first of a sanitizer's errors; where it said no such thing, how many there are.
found() {
  local lines
  lines=$(sed -n 's/^=========  *//p' "$1" | grep -E 'Invalid|out of bounds|misaligned|Race reported|[1-9][0-9]* hazard')
  [ -n "$lines" ] || lines=$(grep -o 'ERROR SUMMARY: [1-9].*' "$1")
  head -2 <<<"$lines" | paste -sd';'
}

sanitize() {  # sanitize memcheck|racecheck
  local tool=$1 sanitizer test name log filter options=()
  # Tests make calls fail on purpose.
  [ "$tool" != memcheck ] || options=(--report-api-errors no)
  sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
  if [ -z "$sanitizer" ]; then
    row "$tool" compute-sanitizer skip 0 "not in PATH, nor in /usr/local/cuda/bin"
    return
  fi
  for test in "$bin"/*_gpu_test; do
    [ -x "$test" ] || continue
    name=$(basename "$test")
    log=$out/$tool-$name.log
    filter=$(peers "$name")
    if [ -n "$filter" ]; then
      row "$tool" "$filter" n/a 0 "kernels that wait for each other: the tool runs one at a time"
    fi
    limited "$(within 600 120)" "$log" "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 9 --target-processes all \
      "${run[@]}" "$test" ${filter:+"--gtest_filter=-$filter"}
    judge "$tool" "$name" "$log" "$(found "$log")"
  done
}

# request PORT BODY: the answer's body, over bash's own TCP.
request() {
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n' "${#2}" >&3
  printf 'Connection: close\r\n\r\n%s' "$2" >&3
  timeout 120 cat <&3 | tr -d '\r' | sed '1,/^$/d'
  exec 3>&-
}

# texts NAME MODEL OPTIONS...: greedy answers of a server into text-NAME.txt.
texts() {
  local name=$1 model=$2 file=$out/text-$1.txt log=$out/serve-$1.log port= prompt pid i
  shift 2
  : >"$log"
  timeout 300 "${run[@]}" "$bin/nibble" serve "$model" --port 0 --grpc-port 0 "$@" >"$log" 2>&1 &
  pid=$!
  for ((i = 0; i < 600; ++i)); do
    port=$(sed -n 's#.*HTTP  *http://127\.0\.0\.1:\([0-9]*\)/v1.*#\1#p' "$log" | head -1)
    grep -q -- "-d '{" "$log" && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  : >"$file"
  if [ -n "$port" ]; then
    for prompt in "Once upon a time" "The little dog" "Lily and Tom went to the park" "One day, a big"; do
      request "$port" '{"model": "'"$(basename "$model")"'", "prompt": "'"$prompt"'", "max_tokens": 100, "temperature": 0}' |
        grep -o '"text": *"\([^"\\]\|\\.\)*"' >>"$file"
    done
  fi
  kill "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  [ "$(wc -l <"$file")" = 4 ]
}

# same_text NAME MODEL "OPTIONS" "OTHER OPTIONS": both servers give the same answers.
same_text() {
  local name=$1 start=$SECONDS
  # shellcheck disable=SC2086
  if ! texts "$name-a" "$2" $3; then
    row text "$name" FAIL $((SECONDS - start)) "no answers with $3, see serve-$name-a.log"
  elif ! texts "$name-b" "$2" $4; then
    row text "$name" FAIL $((SECONDS - start)) "no answers with $4, see serve-$name-b.log"
  elif cmp -s "$out/text-$name-a.txt" "$out/text-$name-b.txt"; then
    row text "$name" ok $((SECONDS - start)) "4 greedy answers of 100 tokens: $4 as $3"
  else
    row text "$name" FAIL $((SECONDS - start)) "answers differ: text-$name-a.txt ($3), text-$name-b.txt ($4)"
  fi
}

# perplexity NAME MODEL OPTIONS...: sets value, empty if there is none.
perplexity() {
  local log=$out/perplexity-$1
  shift
  limited "$(within 300 120)" "$log.log" bash -c 'json=$1; shift; exec "$@" >"$json"' - "$log.json" \
    "${run[@]}" "$bin/nibble" eval perplexity "$@" --data "$text_file" --limit 2000 --json
  value=$(sed -n 's/^ *"perplexity": *\([0-9.e+]*\).*/\1/p' "$log.json" 2>/dev/null)
}

# In the model's own type the two attentions round differently, and so does the CPU: not the same text, but nearly the
# same perplexity.
same_perplexity() {
  local name=$1 model=$2 start=$SECONDS bound=0.01 cpu value kind values=
  shift 2
  perplexity "$name-cpu" "$model" --device cpu "$@"
  cpu=$value
  for kind in nibble flashinfer; do
    perplexity "$name-$kind" "$model" --device cuda --attention-backend "$kind" "$@"
    values+=" ${value:-none}"
  done
  # shellcheck disable=SC2086
  if [ -n "$cpu" ] && awk -v bound=$bound 'BEGIN {
      for (i = 2; i < ARGC; ++i) {
        if (ARGV[i] !~ /^[0-9.]/ || ARGV[i] / ARGV[1] > 1 + bound || ARGV[1] / ARGV[i] > 1 + bound) exit 1
      } }' "$cpu" $values; then
    row text "$name" ok $((SECONDS - start)) "perplexity: CPU $cpu, nibble and flashinfer$values: within $bound"
  else
    row text "$name" FAIL $((SECONDS - start)) "perplexity: CPU ${cpu:-none}, nibble and flashinfer$values: want within $bound, see perplexity-$name-*"
  fi
}

all_text() {
  local model name found=
  for model in "$models"/stories-*; do
    [ -d "$model" ] || continue
    found=1
    name=$(basename "$model")
    same_text "$name-float32" "$model" "--device cpu --dtype float32" "--device cuda --dtype float32"
    same_text "$name-w4a8-float32" "$model" "--device cpu --dtype float32 --quantization w4a8" \
      "--device cuda --dtype float32 --quantization w4a8"
    same_text "$name-graphs" "$model" "--device cuda --enforce-eager" "--device cuda"
    same_text "$name-w4a8-graphs" "$model" "--device cuda --quantization w4a8 --enforce-eager" \
      "--device cuda --quantization w4a8"
    if [ "$num_gpus" -ge 2 ]; then
      same_text "$name-two-ranks" "$model" "--device cuda --dtype float32" \
        "--device cuda --dtype float32 --tensor-parallel-size 2 --all-reduce none"
    else
      row text "$name-two-ranks" n/a 0 "two ranks on two devices: nvidia-smi lists $num_gpus"
    fi
    same_perplexity "$name-perplexity" "$model"
    same_perplexity "$name-w4a8-perplexity" "$model" --quantization w4a8
  done
  [ -n "$found" ] || row text "stories-*" FAIL 0 "no models in $models"
}

# bench [--limit SECONDS] STEP NAME ARGUMENTS...: status is 0 where it was measured
bench() {
  local limit step name
  limit=$(within 300 120)
  [ "$1" != --limit ] || { limit=$2; shift 2; }
  step=$1 name=$2
  shift 2
  # JSON on stdout, the rest on stderr.
  limited "$limit" "$out/$name.log" bash -c 'json=$1; shift; exec "$@" >"$json"' - "$out/$name.json" \
    "${run[@]}" "$bin/nibble" bench "$@" --device cuda
  if [ "$status" = 0 ]; then
    row "$step" "$name" ok "$seconds" "$name.json"
  elif grep -q 'between devices: at least 2 are needed' "$out/$name.log"; then
    row "$step" "$name" n/a "$seconds" "sums between devices: this machine has one"
  else
    row "$step" "$name" FAIL "$seconds" "$(why "$status"), see $name.log"
  fi
}

kernel_benches() {
  local subject
  # Ten matrices of up to 470 million weights, packed on the host for each of six variants.
  bench --limit "$(within 1800 900)" bench bench-gemm gemm
  aims gemm "$out/bench-gemm.json"
  for subject in grouped-gemm attention codec allreduce; do
    if "${run[@]}" "$bin/nibble" bench "$subject" --help 2>&1 | grep -q -- --device; then
      bench bench "bench-$subject" "$subject"
      [ "$subject" = grouped-gemm ] || aims "$subject" "$out/bench-$subject.json"
    else
      row bench "bench-$subject" n/a 0 "nibble bench $subject is the CPU's: no --device"
    fi
  done
}

# aims BENCH FILE: rows of what is aimed at, where the benchmark before was measured.
aims() {
  local name result note
  [ "$status" = 0 ] || return
  while IFS='|' read -r name result note; do
    row aims "$name" "$result" 0 "$note"
  done < <(awk -v bench="$1" -f "$here/gpu_targets.awk" "$2")
}

model_benches() {
  local model name subject options
  bench models bench-decode-random-8b decode random:llama-3-8b --quantization w4a8 --batch 1,16,64,128 --context 1024
  aims decode "$out/bench-decode-random-8b.json"
  bench models bench-prefill-random-8b prefill random:llama-3-8b --quantization w4a8 --prompt 2048
  aims prefill "$out/bench-prefill-random-8b.json"
  for model in "$models"/stories-*; do
    for subject in decode prefill; do
      for options in "" "--quantization w4a8"; do
        name=bench-$subject-$(basename "$model")${options:+-w4a8}
        # shellcheck disable=SC2086
        bench models "$name" "$subject" "$model" $options
      done
    done
  done
}

for step in "${steps[@]}"; do
  if [ -z "$has_gpu" ] && [ "$step" != tests ]; then
    row "$step" "-" skip 0 "no GPU"
    continue
  fi
  case $step in
    tests) gpu_tests ;;
    memcheck | racecheck) sanitize "$step" ;;
    text) all_text ;;
    bench) kernel_benches ;;
    models) model_benches ;;
  esac
done

{
  printf '{"version": "%s", "device": "%s", "state": "%s", "rows": [\n' "$(tr -d '"\\\n' <"$out/version.log")" \
    "$(sed 1d "$out/device.log" 2>/dev/null | head -1 | tr -d '"\\\n')" "$state"
  separator=
  for entry in "${rows[@]}"; do
    IFS='|' read -r step name result seconds note <<<"$entry"
    printf '%s  {"step": "%s", "name": "%s", "result": "%s", "seconds": %s, "note": "%s"}' "$separator" "$step" "$name" \
      "$result" "$seconds" "$(tr -d '"\\' <<<"$note")"
    separator=$',\n'
  done
  printf '\n]}\n'
} >"$out/results.json"

echo
printf '%-10s %-34s %-6s %s\n' step name result note
for entry in "${rows[@]}"; do
  IFS='|' read -r step name result seconds note <<<"$entry"
  printf '%-10s %-34s %-6s %s (%s s)\n' "$step" "$name" "$result" "$note" "$seconds"
done
echo
case $state in
  passed) echo "gpu-check: passed; results are in $out/results.json" ;;
  failed) echo "gpu-check: FAILED; logs are in $out"; exit 1 ;;
  incomplete) echo "gpu-check: INCOMPLETE: nothing failed, but what says skip was not checked; logs are in $out"; exit 3 ;;
esac
