# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
#
# The indented JSON of `nibble bench BENCH --device cuda` -> rows of gpu-check's table, NAME|RESULT|NOTE: what was
# measured beside what is aimed at on Hopper. ok: reached; missed: not; skip: could not be told; n/a: another device, or
# nothing to fail by, as in rows "beside ...", which have the figures that others published (tests/cuda/README.md has the
# sources). FAIL: a row that could not be measured.
#   awk -v bench=gemm|attention|codec|allreduce|decode|prefill -f gpu_targets.awk FILE

/^    "sm": / { sm = Number($0) }
/^  "left_out": / { in_left_out = 1; next }
in_left_out && /^  [}]/ { in_left_out = 0 }
in_left_out && /^    "nccl": / {
  sub(/^ *"nccl": "/, "")
  sub(/",*$/, "")
  print "all-reduce nccl|skip|" $0
}
/^  "results": / { in_rows = 1; next }
in_rows && /^    [{]/ {
  split("", row)
  split("", op_share)
  num_ops = 0
}
in_rows && /^      "/ {
  key = $0
  sub(/^ *"/, "", key)
  sub(/".*/, "", key)
  value = $0
  sub(/^[^:]*: */, "", value)
  gsub(/[",]/, "", value)
  if (value != "null") row[key] = value
}
# The list "ops" of a row.
in_rows && /^          "op": / {
  op = $2
  gsub(/[",]/, "", op)
  op_name[++num_ops] = op
}
in_rows && /^          "share_of_step": / { op_share[num_ops] = Number($0) }
in_rows && /^          "share_of_roofline": / { op_share[num_ops] = op_share[num_ops] " (" Number($0) " of roofline)" }
in_rows && /^    [}]/ {
  if ("error" in row) print NameOf() "|FAIL|" row["error"]
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

# A row without figures.
function NameOf() {
  if (bench == "gemm") return row["shape"] " " row["variant"] (("m" in row) ? " M=" row["m"] : "")
  if (bench == "attention") return "attention " row["shape"] " " row["dtype"] " batch " row["sequences"] " context " row["context"]
  if (bench == "codec") return "codec " row["codec"] (("rows" in row) ? " rows " row["rows"] : "")
  if (bench == "allreduce") return "all-reduce " row["codec"] " of " row["bytes"] " bytes"
  if (bench == "decode") return "decode batch " row["batch"] " context " row["context"]
  return "prefill of " row["prompt"]
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
  result = reached ? "ok" : (sm == 90 ? "missed" : "n/a")
  print name "|" result "|" value " " what " (aim: " aim (sm == 90 ? "" : " on sm_90") ")"
}

# The better of the two integer forms counts; of W8A8, ours or the library's.
function AddGemm(  at) {
  if (!(row["shape"] in known)) {
    known[row["shape"]] = 1
    shapes[++num_shapes] = row["shape"]
  }
  at = row["shape"] SUBSEP row["m"]
  if (row["variant"] == "w4a8-float" && "median_us" in row) float_us[at] = row["median_us"]
  if (row["variant"] ~ /^w8a8/ && "median_us" in row && (!(at in w8a8_us) || row["median_us"] + 0 < w8a8_us[at] + 0)) {
    w8a8_us[at] = row["median_us"]
  }
  if (row["variant"] != "w4a8-folded" && row["variant"] != "w4a8-integer") return
  if (!((row["shape"], row["m"]) in seen)) {
    seen[row["shape"], row["m"]] = 1
    ms[row["shape"]] = ms[row["shape"]] " " row["m"]
  }
  if ("share_of_read" in row && row["share_of_read"] + 0 > share[at] + 0) share[at] = row["share_of_read"]
  # Our own bf16 is no measure, and is what others are compared with where cuBLASLt is missing or failed.
  if (row["times_bf16_of"] == "bf16-cublaslt" && row["times_bf16"] + 0 > times[at] + 0) times[at] = row["times_bf16"]
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

function Most(values, shape, low, high,  count, list, i, most) {
  count = split(ms[shape], list, " ")
  most = ""
  for (i = 1; i <= count; ++i) {
    if (list[i] + 0 < low || list[i] + 0 > high) continue
    if (values[shape, list[i]] == "") return ""
    if (values[shape, list[i]] + 0 > most + 0) most = values[shape, list[i]]
  }
  return most
}

function Beside(name, value, what) {
  if (value != "") print "beside " name "|n/a|" value " " what
}

# Microseconds of an H100 with 3.35 TB/s and 1979 TOP/s (arithmetic), and of LiquidGEMM's open port on an H100.
function PrintPublished(  layer, i) {
  if (!("8b-gate-up" in known)) return
  Beside("8b-gate-up M<=16", Most(us, "8b-gate-up", 1, 16), "us at most, 0.65 of 3.35 TB/s is 28")
  if ("70b-gate-up" in known) Beside("70b-gate-up M<=16", Most(us, "70b-gate-up", 1, 16), "us at most, 0.75 of 3.35 TB/s is 96")
  Beside("8b-gate-up M=64", Most(us, "8b-gate-up", 64, 64), "us, aimed at: 32, open port: 60.4, cuBLAS bf16 beside it: 85")
  split("8b-qkv 8b-o 8b-down", others, " ")
  split("19.8 17.5 34.9", port_us, " ")
  layer = Most(us, "8b-gate-up", 256, 256)
  for (i = 1; i <= 3; ++i) {
    if (!(others[i] in known)) return
    Beside(others[i] " M=64", Most(us, others[i], 64, 64), "us, open port: " port_us[i])
    value = Most(us, others[i], 256, 256)
    layer = (layer == "" || value == "") ? "" : layer + value
  }
  Beside("8b layer M=256", layer, "us of its four products, 0.6 of 1979 TOP/s is 94")
}

function PrintGemm(  i, s, at) {
  for (at in us) if (at in float_us && us[at] + 0 > 0) over_float[at] = sprintf("%.3g", float_us[at] / us[at])
  for (at in us) if (at in w8a8_us && us[at] + 0 > 0) over_w8a8[at] = sprintf("%.3g", w8a8_us[at] / us[at])
  for (i = 1; i <= num_shapes; ++i) {
    s = shapes[i]
    Print(s " W4A8 M<=16", Least(share, s, 1, 16), s == "70b-gate-up" ? 0.75 : 0.65, 0, "of the measured bandwidth")
    if (s == "8b-gate-up") Print(s " W4A8 M=64", Least(times, s, 64, 64), 2.5, 0, "x cuBLASLt bf16")
    Print(s " W4A8 M=256..512", Least(times, s, 256, 512), 1.5, 0, "x cuBLASLt bf16")
    Print(s " W4A8 M=512 over float scales", Least(over_float, s, 512, 512), 1.5, 0, "x the float-scale form")
    if (s == "8b-gate-up" || s == "70b-gate-up") {
      Beside(s " M<=64 over W8A8", Least(over_w8a8, s, 1, 64), "x the better W8A8 at least, aimed at: 1.6")
      Beside(s " M=512 over W8A8", Least(over_w8a8, s, 512, 512), "x the better W8A8, aimed at: 0.9; LiquidGEMM end to end: 0.98 to 1.63")
    }
  }
  PrintPublished()
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

# Where a step goes: each kind of op's share of it.
function PrintOps(name,  i, list) {
  if (num_ops == 0) return
  for (i = 1; i <= num_ops; ++i) list = list (i > 1 ? ", " : "") op_name[i] " " op_share[i]
  print name " by op|n/a|shares of the step: " list
}

# Nothing is aimed at but that the figures are there.
function PrintDecode() {
  if ("error" in row) return
  PrintOps("decode batch " Of("batch") " context " Of("context"))
  print "decode batch " Of("batch") " context " Of("context") "|" (("share_of_roofline" in row) ? "ok" : "skip") "|" \
    Of("tokens_per_s") " tokens/s, " Of("share_of_roofline") " of roofline; of " Of("step_median_ms") " ms device " \
    Of("device_ms") " (gaps " Of("gaps_ms") "), host " Of("host_ms")
  if (Of("batch") + 0 == 128 && "tokens_per_s" in row) {
    Beside("decode batch 128 of 8B", row["tokens_per_s"], "tokens/s; served, prompts of 1024: on an H800 LiquidGEMM 16694 (Llama-2-70B 3695, Mixtral-8x7B 10745), TensorRT-LLM FP8 16820; on an A100 QServe 3005")
  }
}

function PrintPrefill() {
  if ("error" in row) return
  PrintOps("prefill of " Of("prompt"))
  print "prefill of " Of("prompt") "|" (("share_of_roofline" in row) ? "ok" : "skip") "|" Of("tokens_per_s") " tokens/s, " \
    Of("share_of_roofline") " of roofline, " Of("share_of_int8_peak") " of the int8 peak; of " Of("median_ms") \
    " ms device " Of("device_ms") " (gaps " Of("gaps_ms") "), host " Of("host_ms")
}
