# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# The step `text` of gpu_check.sh, which reads this file: all_text, by what is defined there.
# shellcheck shell=bash disable=SC2154

# request PORT BODY: the answer's body, over bash's own TCP.
request() {
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n' "${#2}" >&3
  printf 'Connection: close\r\n\r\n%s' "$2" >&3
  timeout 120 cat <&3 | tr -d '\r' | sed '1,/^$/d'
  exec 3>&-
}

# texts NAME MODEL OPTIONS...: greedy answers of a server into text-NAME.txt. Fails where there are not four; sets
# status, limit and seconds.
texts() {
  local name=$1 model=$2 file=$out/text-$1.txt log=$out/serve-$1.log port= prompt start=$SECONDS
  shift 2
  : >"$log"
  : >"$file"
  limit=300
  if [ -n "$deadline" ] && [ $((deadline - SECONDS)) -lt $limit ]; then limit=$((deadline - SECONDS)); fi
  if [ $limit -le 0 ]; then
    status=124 seconds=0
    return 1
  fi
  timeout --kill-after=5 $limit "${run[@]}" "$bin/nibble" serve "$model" --port 0 --grpc-port 0 "$@" >"$log" 2>&1 </dev/null &
  server=$!
  while kill -0 $server 2>/dev/null; do
    port=$(sed -n 's#.*HTTP  *http://127\.0\.0\.1:\([0-9]*\)/v1.*#\1#p' "$log" | head -1)
    grep -q -- "-d '{" "$log" && break
    sleep 0.2
  done
  if [ -n "$port" ]; then
    for prompt in "Once upon a time" "The little dog" "Lily and Tom went to the park" "One day, a big"; do
      request "$port" '{"model": "'"$(basename "$model")"'", "prompt": "'"$prompt"'", "max_tokens": 100, "temperature": 0}' \
        >"$file.answer" 2>/dev/null &
      child=$!
      wait $child
      child=
      grep -o '"text": *"\([^"\\]\|\\.\)*"' "$file.answer" >>"$file"
    done
    rm -f "$file.answer"
  fi
  kill $server 2>/dev/null
  wait $server 2>/dev/null
  status=$?
  server=
  seconds=$((SECONDS - start))
  [ "$(wc -l <"$file")" = 4 ]
}

# same_text NAME MODEL "OPTIONS" "OTHER OPTIONS": both servers give the same answers.
same_text() {
  local name=$1 start=$SECONDS
  # shellcheck disable=SC2086
  if ! texts "$name-a" "$2" $3; then
    no_answers "$name" $((SECONDS - start)) "$3" "serve-$name-a.log"
  elif ! texts "$name-b" "$2" $4; then
    no_answers "$name" $((SECONDS - start)) "$4" "serve-$name-b.log"
  elif cmp -s "$out/text-$name-a.txt" "$out/text-$name-b.txt"; then
    row text "$name" ok $((SECONDS - start)) "4 greedy answers of 100 tokens: $4 as $3"
  else
    row text "$name" FAIL $((SECONDS - start)) "answers differ: text-$name-a.txt ($3), text-$name-b.txt ($4)"
  fi
}
no_answers() {  # no_answers NAME SECONDS OPTIONS LOG
  if past_limit; then
    row text "$1" incomplete "$2" "past its limit of $limit s with $3, see $4"
  else
    row text "$1" FAIL "$2" "no answers with $3, see $4"
  fi
}

# perplexity NAME MODEL OPTIONS...: sets value, empty if there is none; late, where its time was over.
perplexity() {
  local log=$out/perplexity-$1
  shift
  limited "$(within 300 120)" "$log.log" bash -c 'json=$1; shift; exec "$@" >"$json"' - "$log.json" \
    "${run[@]}" "$bin/nibble" eval perplexity "$@" --data "$text_file" --limit 2000 --json
  value=$(sed -n 's/^ *"perplexity": *\([0-9.e+]*\).*/\1/p' "$log.json" 2>/dev/null)
  ! past_limit || late="past its limit of $limit s: $(basename "$log").log"
}

# In the model's own type the two attentions round differently, and so does the CPU: not the same text, but nearly the
# same perplexity.
same_perplexity() {
  local name=$1 model=$2 start=$SECONDS bound=0.01 cpu value kind values= late=
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
  elif [ -n "$late" ]; then
    row text "$name" incomplete $((SECONDS - start)) "$late"
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
      row text "$name-two-ranks" n/a 0 "two ranks on two devices: nibble sees $num_gpus"
    fi
    same_perplexity "$name-perplexity" "$model"
    same_perplexity "$name-w4a8-perplexity" "$model" --quantization w4a8
  done
  [ -n "$found" ] || row text "stories-*" FAIL 0 "no models in $models"
}
