// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/step_codec.h"

#include "engine/exec/flat_bytes.h"

namespace nibble::engine {
namespace {

// "nbp1", "nbo1": bytes that are no plan at all are told apart from a damaged one.
constexpr uint32_t kPlanMagic = 0x3170626e;
constexpr uint32_t kOutputMagic = 0x316f626e;

struct PlanHeader {
  uint32_t magic = kPlanMagic;
  int32_t max_blocks_per_seq = 0;
  uint32_t num_token_ids = 0;
  uint32_t num_positions = 0;
  uint32_t num_slots = 0;
  uint32_t num_query_start = 0;
  uint32_t num_context_lens = 0;
  uint32_t num_block_tables = 0;
  uint32_t num_logits_indices = 0;
  uint32_t num_rows = 0;
};
static_assert(sizeof(PlanHeader) == 10 * 4);

// A SamplingRow but for its arrays, whose values follow it in the order of the counts.
struct RowHeader {
  float temperature = 0.0F;
  float top_p = 0.0F;
  int32_t top_k = 0;
  float min_p = 0.0F;
  float repetition_penalty = 0.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  int32_t logprobs = 0;
  uint64_t seed = 0;
  int64_t output_index = 0;
  uint32_t num_logit_bias = 0;
  uint32_t num_banned = 0;
  uint32_t num_prompt = 0;
  uint32_t num_output = 0;
};
static_assert(sizeof(RowHeader) == 64);

struct TokenHeader {
  int32_t token_id = 0;
  uint32_t no_finite_logit = 0;  // 0 or 1
  TokenLogprob sampled;
  uint32_t num_top = 0;
};
static_assert(sizeof(TokenLogprob) == 12 && sizeof(TokenHeader) == 24);

struct LogitBias {
  int32_t token_id = 0;
  float bias = 0.0F;
};
static_assert(sizeof(LogitBias) == 8);

uint32_t CountOf(const auto& values) { return static_cast<uint32_t>(values.size()); }

size_t EncodedBytes(const StepPlan& plan) {
  size_t num_ids = plan.token_ids.size() + plan.positions.size() + plan.slot_mapping.size() +
                   plan.query_start.size() + plan.context_lens.size() + plan.block_tables.size() +
                   plan.logits_indices.size();
  for (const SamplingRow& row : plan.sampling) {
    num_ids += 2 * row.logit_bias.size() + row.banned_token_ids.size() +
               row.prompt_token_ids.size() + row.output_token_ids.size();
  }
  return sizeof(PlanHeader) + num_ids * 4 + plan.sampling.size() * sizeof(RowHeader);
}

void PutRow(const SamplingRow& row, FlatWriter* writer) {
  writer->Put(RowHeader{.temperature = row.temperature,
                        .top_p = row.top_p,
                        .top_k = row.top_k,
                        .min_p = row.min_p,
                        .repetition_penalty = row.repetition_penalty,
                        .presence_penalty = row.presence_penalty,
                        .frequency_penalty = row.frequency_penalty,
                        .logprobs = row.logprobs,
                        .seed = row.seed,
                        .output_index = row.output_index,
                        .num_logit_bias = CountOf(row.logit_bias),
                        .num_banned = CountOf(row.banned_token_ids),
                        .num_prompt = CountOf(row.prompt_token_ids),
                        .num_output = CountOf(row.output_token_ids)});
  for (const auto& [token_id, bias] : row.logit_bias) writer->Put(LogitBias{token_id, bias});
  writer->PutValues(row.banned_token_ids);
  writer->PutValues(row.prompt_token_ids);
  writer->PutValues(row.output_token_ids);
}

void ReadRow(FlatReader* reader, SamplingRow* row) {
  RowHeader header;
  reader->Read("sampling", &header);
  row->temperature = header.temperature;
  row->top_p = header.top_p;
  row->top_k = header.top_k;
  row->min_p = header.min_p;
  row->repetition_penalty = header.repetition_penalty;
  row->presence_penalty = header.presence_penalty;
  row->frequency_penalty = header.frequency_penalty;
  row->logprobs = header.logprobs;
  row->seed = header.seed;
  row->output_index = header.output_index;
  std::vector<LogitBias> logit_bias;
  reader->ReadValues("logit_bias", header.num_logit_bias, &logit_bias);
  row->logit_bias.reserve(logit_bias.size());
  for (const LogitBias& bias : logit_bias) row->logit_bias.emplace_back(bias.token_id, bias.bias);
  reader->ReadValues("banned_token_ids", header.num_banned, &row->banned_token_ids);
  reader->ReadValues("prompt_token_ids", header.num_prompt, &row->prompt_token_ids);
  reader->ReadValues("output_token_ids", header.num_output, &row->output_token_ids);
}

}  // namespace

std::string EncodePlan(const StepPlan& plan) {
  FlatWriter writer(EncodedBytes(plan));
  writer.Put(PlanHeader{.max_blocks_per_seq = plan.max_blocks_per_seq,
                        .num_token_ids = CountOf(plan.token_ids),
                        .num_positions = CountOf(plan.positions),
                        .num_slots = CountOf(plan.slot_mapping),
                        .num_query_start = CountOf(plan.query_start),
                        .num_context_lens = CountOf(plan.context_lens),
                        .num_block_tables = CountOf(plan.block_tables),
                        .num_logits_indices = CountOf(plan.logits_indices),
                        .num_rows = CountOf(plan.sampling)});
  writer.PutValues(plan.token_ids);
  writer.PutValues(plan.positions);
  writer.PutValues(plan.slot_mapping);
  writer.PutValues(plan.query_start);
  writer.PutValues(plan.context_lens);
  writer.PutValues(plan.block_tables);
  writer.PutValues(plan.logits_indices);
  for (const SamplingRow& row : plan.sampling) PutRow(row, &writer);
  return std::move(writer).Finish();
}

absl::StatusOr<StepPlan> DecodePlan(std::string_view bytes) {
  FlatReader reader(bytes, "step plan");
  PlanHeader header;
  reader.Read("header", &header);
  if (reader.ok() && header.magic != kPlanMagic) {
    return InvalidArgument("no step plan: it begins with {:#x}, want {:#x}", header.magic,
                           kPlanMagic);
  }
  StepPlan plan;
  plan.max_blocks_per_seq = header.max_blocks_per_seq;
  reader.ReadValues("token_ids", header.num_token_ids, &plan.token_ids);
  reader.ReadValues("positions", header.num_positions, &plan.positions);
  reader.ReadValues("slot_mapping", header.num_slots, &plan.slot_mapping);
  reader.ReadValues("query_start", header.num_query_start, &plan.query_start);
  reader.ReadValues("context_lens", header.num_context_lens, &plan.context_lens);
  reader.ReadValues("block_tables", header.num_block_tables, &plan.block_tables);
  reader.ReadValues("logits_indices", header.num_logits_indices, &plan.logits_indices);
  reader.CheckAtMost("the number of sampling rows", header.num_rows,
                     reader.num_left() / sizeof(RowHeader));
  if (reader.ok()) plan.sampling.resize(header.num_rows);
  for (SamplingRow& row : plan.sampling) ReadRow(&reader, &row);
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return plan;
}

std::string EncodeOutput(const StepOutput& output) {
  size_t num_bytes = 2 * sizeof(uint32_t);
  for (const SampledToken& token : output.tokens) {
    num_bytes += sizeof(TokenHeader) + token.logprobs.top.size() * sizeof(TokenLogprob);
  }
  FlatWriter writer(num_bytes);
  writer.Put(kOutputMagic);
  writer.Put(CountOf(output.tokens));
  for (const SampledToken& token : output.tokens) {
    writer.Put(TokenHeader{.token_id = token.token_id,
                           .no_finite_logit = token.no_finite_logit ? 1U : 0U,
                           .sampled = token.logprobs.sampled,
                           .num_top = CountOf(token.logprobs.top)});
    writer.PutValues(token.logprobs.top);
  }
  return std::move(writer).Finish();
}

absl::StatusOr<StepOutput> DecodeOutput(std::string_view bytes) {
  FlatReader reader(bytes, "step output");
  uint32_t magic = 0;
  reader.Read("header", &magic);
  if (reader.ok() && magic != kOutputMagic) {
    return InvalidArgument("no step output: it begins with {:#x}, want {:#x}", magic, kOutputMagic);
  }
  const uint32_t num_tokens = reader.ReadCount("the number of tokens");
  reader.CheckAtMost("the number of tokens", num_tokens, reader.num_left() / sizeof(TokenHeader));
  StepOutput output;
  if (reader.ok()) output.tokens.resize(num_tokens);
  for (SampledToken& token : output.tokens) {
    TokenHeader header;
    reader.Read("a token", &header);
    reader.CheckAtMost("no_finite_logit", header.no_finite_logit, 1);
    token.token_id = header.token_id;
    token.no_finite_logit = header.no_finite_logit == 1;
    token.logprobs.sampled = header.sampled;
    reader.ReadValues("the most likely tokens", header.num_top, &token.logprobs.top);
  }
  NIBBLE_RETURN_IF_ERROR(reader.Finish());
  return output;
}

}  // namespace nibble::engine
