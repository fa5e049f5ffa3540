# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# The indented JSON of `nibble bench BENCH --device cuda` -> rows of gpu-check's table, NAME|RESULT|NOTE: what was
# measured beside what is aimed at on Hopper. ok: reached; FAIL: not; skip: could not be told; n/a: another device.
#   awk -v bench=gemm|attention|codec|allreduce|decode|prefill -f gpu_targets.awk FILE

/^    "sm": / { sm = Number($0) }
/^  "cublaslt": / { no_lt = 1 }
/^  "results": / { in_rows = 1; next }
in_rows && /^    [{]/ { split("", row) }
in_rows && /^      "/ {
  key = $0
  sub(/^ *"/, "", key)
  sub(/".*/, "", key)
  value = $0
  sub(/^[^:]*: */, "", value)
  gsub(/[",]/, "", value)
  if (value != "null") row[key] = value
}
in_rows && /^    [}]/ {
  if (bench == "gemm") AddGemm()
  if (bench == "attention") AddAttention()
  if (bench == "codec") AddCodec()
  if (bench == "allreduce") AddAllReduce()
  if (bench == "decode") PrintDecode()
  if (bench == "prefill") PrintPrefill()
}
END {
  if (bench == "gemm") PrintGemm()
  if (bench == "attention") PrintAttention()
  if (bench == "codec") PrintCodec()
  if (bench == "allreduce") PrintAllReduce()
}

function Number(line) {
  sub(/^[^:]*: */, "", line)
  return line + 0
}

# Figures of the row, for notes.
function Of(key) { return (key in row) ? row[key] : "-" }

# `value` as it was measured, empty if it was not; reached when it is at least (at_most: at most) `aim`.
function Print(name, value, aim, at_most, what) {
  if (value == "") {
    print name "|skip|not measured (aim: " aim " " what ")"
    return
  }
  reached = at_most ? value + 0 <= aim : value + 0 >= aim
  result = reached ? "ok" : (sm == 90 ? "FAIL" : "n/a")
  print name "|" result "|" value " " what " (aim: " aim (sm == 90 ? "" : " on sm_90") ")"
}

# The better of the two integer forms counts.
function AddGemm(  at) {
  if (!(row["shape"] in known)) {
    known[row["shape"]] = 1
    shapes[++num_shapes] = row["shape"]
  }
  at = row["shape"] SUBSEP row["m"]
  if (row["variant"] == "w4a8-float" && "median_us" in row) float_us[at] = row["median_us"]
  if (row["variant"] != "w4a8-folded" && row["variant"] != "w4a8-integer") return
  if (!((row["shape"], row["m"]) in seen)) {
    seen[row["shape"], row["m"]] = 1
    ms[row["shape"]] = ms[row["shape"]] " " row["m"]
  }
  if ("share_of_read" in row && row["share_of_read"] + 0 > share[at] + 0) share[at] = row["share_of_read"]
  if ("times_bf16" in row && row["times_bf16"] + 0 > times[at] + 0) times[at] = row["times_bf16"]
  if ("median_us" in row && (!(at in us) || row["median_us"] + 0 < us[at] + 0)) us[at] = row["median_us"]
}

# The least of values[shape, m] for m in low..high; empty where one is missing or there is none.
function Least(values, shape, low, high,  count, list, i, least) {
  count = split(ms[shape], list, " ")
  least = ""
  for (i = 1; i <= count; ++i) {
    if (list[i] + 0 < low || list[i] + 0 > high) continue
    if (values[shape, list[i]] == "") return ""
    if (least == "" || values[shape, list[i]] + 0 < least + 0) least = values[shape, list[i]]
  }
  return least
}

function PrintGemm(  i, s, at) {
  for (at in us) if (at in float_us && us[at] + 0 > 0) over_float[at] = sprintf("%.3g", float_us[at] / us[at])
  if (no_lt) split("", times)  # compared with our own bf16
  for (i = 1; i <= num_shapes; ++i) {
    s = shapes[i]
    Print(s " W4A8 M<=16", Least(share, s, 1, 16), 0.65, 0, "of the measured bandwidth")
    if (s == "8b-gate-up") Print(s " W4A8 M=64", Least(times, s, 64, 64), 2.5, 0, "x cuBLASLt bf16")
    Print(s " W4A8 M=256..512", Least(times, s, 256, 512), 1.5, 0, "x cuBLASLt bf16")
    Print(s " W4A8 M=512 over float scales", Least(over_float, s, 512, 512), 1.5, 0, "x the float-scale form")
  }
}

function AddCodec(  i, key) {
  for (i = 1; i <= split("encode decode reduce", ops, " "); ++i) {
    key = ops[i] "_share_of_read"
    if (key in row && (!(ops[i] in least_share) || row[key] + 0 < least_share[ops[i]] + 0)) {
      least_share[ops[i]] = row[key]
      least_codec[ops[i]] = row["codec"]
    }
  }
  if ("fixed_us" in row && (most_fixed == "" || row["fixed_us"] + 0 > most_fixed + 0)) {
    most_fixed = row["fixed_us"]
    fixed_codec = row["codec"]
  }
}

function PrintCodec(  i, op) {
  for (i = 1; i <= split("encode decode reduce", ops, " "); ++i) {
    op = ops[i]
    Print("codec " op, least_share[op], 0.8, 0, "of the measured bandwidth, least: " least_codec[op])
  }
  Print("codec fixed cost", most_fixed, 6, 1, "us, most: " fixed_codec)
}

# Our kernels: the least share of what limits them, and the least ratio to FlashInfer.
function AddAttention(  at, share) {
  if (row["backend"] != "nibble" || !("median_us" in row)) return
  at = row["phase"] " " row["dtype"]
  if (!(at in attention_share)) attention[++num_attention] = at
  share = row["phase"] == "decode" ? row["share_of_read"] : row["share_of_peak"]
  if (!(at in attention_share) || share + 0 < attention_share[at] + 0) {
    attention_share[at] = share
    attention_case[at] = row["shape"] " batch " row["sequences"] " context " row["context"]
  }
  if (!("times_flashinfer" in row)) return
  if (!(at in attention_times) || row["times_flashinfer"] + 0 < attention_times[at] + 0) attention_times[at] = row["times_flashinfer"]
}

# Nothing is aimed at but that the figures are there.
function PrintAttention(  i, at) {
  for (i = 1; i <= num_attention; ++i) {
    at = attention[i]
    print "attention " at "|ok|least: " attention_share[at] (at ~ /^decode/ ? " of the measured bandwidth" : " of the bf16 peak") \
      " (" attention_case[at] ")" ((at in attention_times) ? ", " attention_times[at] " x flashinfer" : "")
  }
  if (num_attention == 0) print "attention|skip|no row of nibble's kernels"
}

# The best algorithm of each codec and size counts.
function AddAllReduce(  codec, bytes) {
  if (row["op"] != "sum" || !("median_us" in row)) return
  codec = row["codec"]
  bytes = row["bytes"] + 0
  if (!(codec in known_codec)) {
    known_codec[codec] = 1
    codecs[++num_codecs] = codec
  }
  if (!((codec, bytes) in sum_us) || row["median_us"] + 0 < sum_us[codec, bytes] + 0) sum_us[codec, bytes] = row["median_us"]
  if (smallest == "" || bytes < smallest) smallest = bytes
  if (bytes > largest) largest = bytes
}

# What a codec costs more than bf16 where the message is smallest, and what it is worth where it is largest.
function PrintAllReduce(  i, codec, fixed) {
  for (i = 1; i <= num_codecs; ++i) {
    codec = codecs[i]
    if (codec == "bf16" || codec == "nccl" || codec == "auto") continue
    fixed = ""
    if (((codec, smallest) in sum_us) && (("bf16", smallest) in sum_us)) {
      fixed = sprintf("%.3g", sum_us[codec, smallest] - sum_us["bf16", smallest])
    }
    Print("all-reduce " codec " fixed cost", fixed, 6, 1, "us more than bf16 at " smallest " bytes")
    if (((codec, largest) in sum_us) && (("bf16", largest) in sum_us)) {
      print "all-reduce " codec " of " largest " bytes|ok|" sprintf("%.3g", sum_us["bf16", largest] / sum_us[codec, largest]) \
        " x bf16" ((("nccl", largest) in sum_us) ? sprintf(", %.3g x NCCL", sum_us["nccl", largest] / sum_us[codec, largest]) : "")
    }
  }
}

# Nothing is aimed at but that the figures are there.
function PrintDecode() {
  print "decode batch " Of("batch") " context " Of("context") "|" (("share_of_roofline" in row) ? "ok" : "skip") "|" \
    Of("tokens_per_s") " tokens/s, " Of("share_of_roofline") " of roofline; of " Of("step_median_ms") " ms device " \
    Of("device_ms") " (gaps " Of("gaps_ms") "), host " Of("host_ms")
}

function PrintPrefill() {
  print "prefill of " Of("prompt") "|" (("share_of_roofline" in row) ? "ok" : "skip") "|" Of("tokens_per_s") " tokens/s, " \
    Of("share_of_roofline") " of roofline, " Of("share_of_int8_peak") " of the int8 peak; of " Of("median_ms") \
    " ms device " Of("device_ms") " (gaps " Of("gaps_ms") "), host " Of("host_ms")
}
