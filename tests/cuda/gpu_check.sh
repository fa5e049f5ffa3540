#!/usr/bin/env bash
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# Checks nibble's CUDA engine on a machine with a GPU: kernels against their references, the sanitizers, CPU against
# GPU text, benchmarks. Needs bash and a driver; lies in the pack of ./dev gpu-pack, or runs by ./dev gpu-check.
set -uo pipefail

usage() {
  cat <<'TEXT'
Usage: gpu-check [--out FOLDER] [--bin FOLDER] [--models FOLDER] [--libraries FOLDER] [--time SECONDS] [--quick]
                 [--without-gpu] [STEP...]

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

--libraries names a folder with libcublasLt.so.13 or libnccl.so.2, which are also looked for in the toolkit's and in
Python's packages. --time ends what still runs so many seconds after the first look, with the results there are. --quick
shortens the time limit of each program. --without-gpu runs the tests anyway, where they must skip: always incomplete.
Output goes to FOLDER (default ./gpu-check-out), from which earlier results are removed: results.json, written anew
after each row, a log for each program, JSON of each benchmark.
In the table: ok, FAIL, missed (right, but slower than what is aimed at), incomplete (its time was over before its
end), skip (was asked for and could not be checked), n/a (left out on purpose, or nothing to fail by).
Exit status, the first that holds: 1 a FAIL; 3 incomplete: something was skipped or out of time; 4 an aim was missed;
0 passed. 2 no GPU that nibble can use, or bad arguments: nothing was run. 128 and the signal's number: interrupted.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=gpu-check-out bin=$here/bin models=$here/models libraries= time= quick= without_gpu= steps=()
while [ $# -gt 0 ]; do
  case $1 in
    --out | --bin | --models | --libraries | --time)
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
[[ -z $time || $time =~ ^[1-9][0-9]{0,6}$ ]] || { echo "gpu-check: --time is '$time', want seconds" >&2; exit 2; }
[ -x "$bin/nibble" ] || { echo "gpu-check: no nibble in $bin" >&2; exit 2; }
if ! mkdir -p "$out" 2>/dev/null || ! : 2>/dev/null >"$out/version.log"; then
  echo "gpu-check: cannot write to $out: --out names another folder" >&2
  exit 2
fi
out=$(cd "$out" && pwd)
rm -f "$out"/{results.json,device.log,nibble-with-libraries} \
  "$out"/{probe,tests,memcheck,racecheck,serve,text,perplexity,bench}-*.{log,txt,json}

# shellcheck source-path=SCRIPTDIR source=gpu_check_text.sh
source "$here/gpu_check_text.sh"

# In the pack; a build finds its source tree's.
if [ -d "$here/tests/fixtures" ]; then
  export NIBBLE_TEST_DATA=$here
  text_file=$here/tests/fixtures/data/generated_stories.txt
else
  text_file=$here/../fixtures/data/generated_stories.txt
fi

# The machine's cuBLASLt and NCCL, which are opened by name: the folder of each that lies where installers, containers
# and Python's packages put them.
find_library() {  # find_library FILE -> FOLDER; empty: not there, or where the loader looks anyway
  local folder
  while read -r folder; do
    [ -n "$folder" ] && [ -e "$folder/$1" ] && { echo "$folder"; return; }
  done < <(
    echo "$libraries"
    tr : '\n' <<<"${LD_LIBRARY_PATH:-}"
    ldconfig -p 2>/dev/null | sed -n "s#^\s*$1 .*=> \(.*\)/[^/]*#\1#p"
    printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64
    for folder in ${VIRTUAL_ENV:+"$VIRTUAL_ENV"/lib/python3*/site-packages} $python \
      /usr/local/lib/python3*/{dist,site}-packages /opt/*/lib/python3*/site-packages; do
      printf '%s\n' "$folder"/nvidia/{cu13,cublas,nccl}/lib
    done
  )
}
python=$(python3 -c 'import site; print(*site.getsitepackages(), site.getusersitepackages(), sep="\n")' 2>/dev/null)
library_note=()
for library in cuBLASLt:libcublasLt.so.13 NCCL:libnccl.so.2; do
  folder=$(find_library "${library#*:}")
  if [ -n "$folder" ]; then
    library_note+=("${library%:*}: $folder")
    [[ :${LD_LIBRARY_PATH:-}: == *":$folder:"* ]] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
  else
    library_note+=("${library%:*}: no ${library#*:} found; --libraries FOLDER names where it lies")
  fi
done

# The pack's libraries; the compiler's only where the machine's are older than what nibble was built with; its C library
# only where the machine's is.
run=(env)
if [ -d "$here/lib" ]; then
  for folders in "$here/lib" "$here/lib:$here/lib-compiler"; do
    run=(env "LD_LIBRARY_PATH=$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
    "${run[@]}" "$bin/nibble" --version >/dev/null 2>&1 && break
    run=("$here/glibc/ld-linux-x86-64.so.2" --library-path "$here/glibc:$folders${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
  done
  if [ "${run[0]}" != env ]; then
    # /proc/self/exe is the linker then: ranks are started by this.
    printf '#!/bin/sh\nexec %s "$@"\n' "$(printf '%q ' "${run[@]}" "$bin/nibble")" >"$out/nibble-with-libraries"
    chmod +x "$out/nibble-with-libraries"
    export NIBBLE_RANK_PROGRAM=$out/nibble-with-libraries
  fi
fi
"${run[@]}" "$bin/nibble" --version >"$out/version.log" 2>&1 || { cat "$out/version.log" >&2; exit 2; }
version=$(<"$out/version.log") device=

rows=()  # "step|name|result|seconds|note"
state=passed
write_results() {  # write_results STATE
  local entry step name result seconds note separator=
  {
    printf '{"version": "%s", "device": "%s", "state": "%s", "rows": [\n' "${version//[\"\\]/}" "${device//[\"\\]/}" "$1"
    for entry in "${rows[@]}"; do
      entry=${entry//[\"\\]/}
      IFS='|' read -r step name result seconds note <<<"${entry//[$'\t\r\n']/ }"
      printf '%s  {"step": "%s", "name": "%s", "result": "%s", "seconds": %s, "note": "%s"}' "$separator" "$step" "$name" \
        "$result" "$seconds" "$note"
      separator=$',\n'
    done
    printf '\n]}\n'
  } >"$out/results.json"
}
row() {
  rows+=("$1|$2|$3|$4|$5")
  case $3 in
    FAIL) state=failed ;;
    skip | incomplete) [ $state = failed ] || state=incomplete ;;
    missed) [ $state != passed ] || state=missed ;;
  esac
  printf '%-10s %-34s %-10s %5s s  %s\n' "$1" "$2" "$3" "$4" "$5"
  write_results running
}
table() {
  local entry step name result seconds note
  echo
  printf '%-10s %-34s %-10s %s\n' step name result note
  for entry in "${rows[@]}"; do
    IFS='|' read -r step name result seconds note <<<"$entry"
    printf '%-10s %-34s %-10s %s (%s s)\n' "$step" "$name" "$result" "$note" "$seconds"
  done
  echo
}

# What runs: a program under `timeout` (with a process group of its own, which a signal to `timeout` reaches), a server
# under another. Waited for by the shell's own wait, so that a trap does not wait for its end.
child= server= deadline=
interrupted() {  # interrupted NUMBER
  trap '' INT TERM HUP
  local pid
  for pid in $child $server; do kill "$pid" 2>/dev/null; done
  wait
  table
  write_results interrupted
  echo "gpu-check: INTERRUPTED; what was checked before is in $out"
  exit $((128 + $1))
}
trap 'interrupted 1' HUP
trap 'interrupted 2' INT
trap 'interrupted 15' TERM

# limited SECONDS LOG COMMAND...: sets status, seconds, and limit.
limited() {
  local log=$2 start=$SECONDS
  limit=$1
  shift 2
  if [ -n "$deadline" ] && [ $((deadline - SECONDS)) -lt "$limit" ]; then limit=$((deadline - SECONDS)); fi
  status=124
  if [ "$limit" -gt 0 ]; then
    timeout --kill-after=5 "$limit" "$@" >"$log" 2>&1 </dev/null &
    child=$!
    wait "$child" 2>/dev/null
    status=$?
    child=
  else
    limit=0
    echo "no time was left" >"$log"
  fi
  seconds=$((SECONDS - start))
}
within() { if [ -n "$quick" ]; then echo "$2"; else echo "$1"; fi; }  # within SECONDS SECONDS-IF-QUICK
past_limit() { [ "$status" = 124 ] || { [ "$status" = 137 ] && [ "$seconds" -ge "$limit" ]; }; }

has_gpu= sm= num_gpus=0
# no_gpu WHY: the end, unless --without-gpu.
no_gpu() {
  [ -z "$without_gpu" ] || return
  echo "gpu-check: no GPU that nibble can use: $1" >&2
  rm -f "$out/results.json"
  exit 2
}
# What the driver says, then whether nibble sees a device, by its smallest benchmark.
look_for_gpu() {
  local smi="no nvidia-smi in PATH" count
  status=1
  if command -v nvidia-smi >/dev/null; then
    limited 60 "$out/device.log" nvidia-smi --format=csv \
      --query-gpu=index,name,compute_cap,memory.total,driver_version,clocks.max.sm,clocks.max.mem
    smi="nvidia-smi: $(grep -m 1 . "$out/device.log" || echo "exit status $status")"
  fi
  if [ "$status" != 0 ] && [ ! -e /dev/nvidiactl ] && [ ! -e /dev/nvidia0 ]; then
    no_gpu "$smi, and there is no /dev/nvidiactl"
    return
  fi
  [ "$status" = 0 ] || echo "$smi"
  limited 120 "$out/probe-device.log" "${run[@]}" "$bin/nibble" bench codec --device cuda --bits 8 --group-size 128 \
    --variant plain --rows 1 --seconds 0 --save "$out/probe-device.json"
  if [ "$status" = 0 ]; then
    sm=$(sed -n 's/^    "sm": \([0-9]*\).*/\1/p' "$out/probe-device.json")
    num_gpus=$(sed -n 's/^    "num_devices": \([0-9]*\).*/\1/p' "$out/probe-device.json")
    device=$(sed -n 's/^    "name": "\(.*\)",*$/\1/p' "$out/probe-device.json")
    row device "what nibble sees" ok "$seconds" "$num_gpus x $device, sm_$sm"
  elif grep -Eq 'no CUDA device|cudaGetDevice(Count|Properties)' "$out/probe-device.log"; then
    no_gpu "$(tail -1 "$out/probe-device.log")${CUDA_VISIBLE_DEVICES+ (CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES')}"
    return
  else
    sm=$(sed -n '2s/^[^,]*,[^,]*, *\([0-9]*\)\.\([0-9]*\),.*/\1\2/p' "$out/device.log" 2>/dev/null)
    count=$(sed 1d "$out/device.log" 2>/dev/null | grep -c .)
    num_gpus=${CUDA_VISIBLE_DEVICES+$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)}
    num_gpus=${num_gpus:-$count}
    device=$(sed -n 2p "$out/device.log" 2>/dev/null)
    row device "what nibble sees" "$(past_limit && echo incomplete || echo FAIL)" "$seconds" \
      "a codec's kernels do not run: $(tail -1 "$out/probe-device.log")"
  fi
  has_gpu=1
}
echo "$version on $(uname -n), $(nproc) CPUs"
look_for_gpu
[ -z "$has_gpu" ] || cat "$out/device.log" 2>/dev/null
printf '%s\n' "${library_note[@]}"
[ -z "$time" ] || deadline=$((SECONDS + time))

# Why tests of a gtest log were skipped, each reason once: "REASON (TIMES)".
reasons() {
  awk '/: Skipped$/ { getline; if ($0 == "") $0 = "no reason"; if (!($0 in times)) list[++n] = $0; ++times[$0] }
    END { for (i = 1; i <= n; ++i) printf "%s%s (%d)", (i > 1 ? "; " : ""), list[i], times[list[i]] }' "$1"
}

# What a gtest binary said. Where there is a GPU, a test that saw none is a failure, and so is one that skips on sm_90
# what is of sm_90.
judge() {  # judge STEP NAME LOG [WHAT A TOOL FOUND]
  local passed skipped bad why last
  passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) tests*\..*/\1/p' "$3" | tail -1)
  skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) tests*, listed.*/\1/p' "$3" | tail -1)
  bad=$(grep -c '^\[  FAILED  \] .*ms)' "$3")
  why=$(reasons "$3")
  last=$(sed -n 's/^\[ RUN      \] //p' "$3" | tail -1)
  if past_limit && [ "$bad" = 0 ]; then
    row "$1" "$2" incomplete "$seconds" "past its limit of $limit s${last:+, in $last}${4:+; $4}: slow, or hangs; see $(basename "$3")"
  elif [ "$status" != 0 ]; then
    row "$1" "$2" FAIL "$seconds" "exit status $status; $bad failed${4:+; $4}, see $(basename "$3")"
  elif [ -n "$has_gpu" ] && [[ $why == *"no CUDA device"* ]]; then
    row "$1" "$2" FAIL "$seconds" "${skipped:-0} skipped, though there is a GPU: $why"
  elif [ "$sm" = 90 ] && grep -Eq 'sm_90|wgmma is of' <<<"$why"; then
    row "$1" "$2" FAIL "$seconds" "${skipped:-0} skipped, though this is sm_90: $why"
  elif [ "${passed:-0}" = 0 ] || [[ $why == *"no CUDA device"* ]]; then
    row "$1" "$2" skip "$seconds" "${passed:-0} passed, ${skipped:-0} skipped${why:+: $why}"
  else
    row "$1" "$2" ok "$seconds" "$passed passed${skipped:+, $skipped skipped: $why}"
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
  local tool=$1 sanitizer test name log filter cannot options=()
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
    limited "$(within 600 120)" "$log" "$sanitizer" --tool "$tool" "${options[@]}" --error-exitcode 9 --target-processes all \
      "${run[@]}" "$test" ${filter:+"--gtest_filter=-$filter"}
    # Of the machine, not of the test: containers and some virtual machines let no tool look into a device.
    cannot=$(sed -n 's/^========= *\(Internal Sanitizer \)\{0,1\}Error: \(.*\)/\2/p' "$log" |
      grep -Ei -m 1 'not supported|no attachable process|attach|failed to initialize')
    if [ -n "$cannot" ]; then
      row "$tool" compute-sanitizer skip "$seconds" "cannot attach here: $cannot"
      return
    fi
    if [ "$status" = 0 ] && ! grep -q '^========= .*SUMMARY: ' "$log"; then
      row "$tool" "$name" skip "$seconds" "the tool has no summary: it saw nothing, see $(basename "$log")"
      continue
    fi
    judge "$tool" "$name" "$log" "$(found "$log")"
    if [ -n "$filter" ]; then
      row "$tool" "$filter" n/a 0 "kernels that wait for each other: the tool runs one at a time"
    fi
  done
}

# bench [--limit SECONDS] STEP NAME ARGUMENTS...
bench() {
  local limit_s step name file log measured
  limit_s=$(within 300 120)
  [ "$1" != --limit ] || { limit_s=$2; shift 2; }
  step=$1 name=$2 file=$out/$2.json log=$out/$2.log
  shift 2
  # The file is written anew after each row.
  limited "$limit_s" "$log" "${run[@]}" "$bin/nibble" bench "$@" --device cuda --save "$file"
  measured=$(grep -c '^    {' "$file" 2>/dev/null)
  if [ "$status" = 0 ]; then
    row "$step" "$name" ok "$seconds" "$name.json"
  elif past_limit; then
    row "$step" "$name" incomplete "$seconds" "past its limit of $limit s: ${measured:-0} rows so far, in $name.json"
  elif grep -q 'between devices: at least 2 are needed' "$log"; then
    row "$step" "$name" n/a "$seconds" "sums between devices: this machine has one"
  else
    row "$step" "$name" FAIL "$seconds" "exit status $status, ${measured:-0} rows; $(tail -1 "$log")"
  fi
}

kernel_benches() {
  local subject
  # Ten matrices of up to 470 million weights, packed on the host for each of six variants.
  bench --limit "$(within 1800 900)" bench bench-gemm gemm
  aims gemm "$out/bench-gemm.json"
  for subject in attention codec allreduce; do
    bench bench "bench-$subject" "$subject"
    aims "$subject" "$out/bench-$subject.json"
  done
}

# aims BENCH FILE: rows of what is aimed at, of what the benchmark before measured.
aims() {
  local name result note
  [ -s "$2" ] || return
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

table
write_results $state
case $state in
  passed) echo "gpu-check: passed; results are in $out/results.json" ;;
  failed) echo "gpu-check: FAILED; logs are in $out"; exit 1 ;;
  incomplete) echo "gpu-check: INCOMPLETE: nothing failed, but what says skip or incomplete was not checked; logs are in $out"; exit 3 ;;
  missed) echo "gpu-check: all is right, but aims were MISSED; results are in $out/results.json"; exit 4 ;;
esac
