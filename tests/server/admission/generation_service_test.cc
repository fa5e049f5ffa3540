// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/generation_service.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/admission/service_gate.h"
#include "tests/server/admission/fakes.h"

namespace nibble::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RecordingSink final : public GenerationSink {
 public:
  void OnDelta(int index, engine::RequestOutput output) override {
    deltas.emplace_back(index, std::move(output.text));
  }
  std::vector<std::pair<int, std::string>> deltas;
};

class GenerationServiceTest : public ::testing::Test {
 protected:
  GenerationServiceTest() { Build(); }

  void Build(engine::GenerationConfig defaults = {}, bool with_template = true,
             int64_t max_prompt_bytes = 200) {
    GenerationService::Parts parts;
    parts.model = {.name = "fake", .max_model_len = 64, .vocab_size = 258};
    parts.limits = {.max_choices = 8,
                    .max_prompts = 4,
                    .max_prompt_bytes = max_prompt_bytes,
                    .max_detokenized_bytes = 100,
                    .max_whole_answer_entries = 60};
    parts.engine = &engine_;
    parts.tokenizer = &tokenizer_;
    parts.defaults = defaults;
    parts.template_variables = {{"bos_token", "<s>"}};
    if (with_template) {
      auto parsed = ChatTemplate::Parse(
          "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
          "{% if add_generation_prompt %}A{% endif %}{{ extra }}{% if tools %}T{% endif %}");
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      parts.chat_template = std::move(parsed).value();
    }
    service_ = std::make_unique<GenerationService>(std::move(parts));
  }
  absl::Status Generate(GenerateRequest request) {
    auto result = service_->Generate(std::move(request), sink_);
    if (result.ok()) generation_ = *result;
    return result.status();
  }
  // Expects a refusal that mentions all of `words`.
  void Refused(GenerateRequest request, const std::vector<std::string>& words) {
    const absl::Status status = Generate(std::move(request));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    for (const std::string& word : words) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(word));
    }
    EXPECT_EQ(engine_.num_requests(), 0);
  }
  static GenerateRequest TextRequest(std::vector<std::string> prompts) {
    GenerateRequest request;
    request.prompt = GenerateRequest::Text{std::move(prompts)};
    return request;
  }
  static GenerateRequest ChatRequest(std::string content) {
    GenerateRequest request;
    GenerateRequest::Chat chat;
    chat.messages.push_back({.role = "user", .content = std::move(content)});
    request.prompt = std::move(chat);
    return request;
  }
  std::string PromptText(engine::RequestId id) {
    return *tokenizer_.Decode(engine_.request(id).prompt_token_ids, true);
  }

  testing::FakeEngine engine_;
  testing::FakeTokenizer tokenizer_;
  std::unique_ptr<GenerationService> service_;
  std::shared_ptr<RecordingSink> sink_ = std::make_shared<RecordingSink>();
  std::shared_ptr<Generation> generation_;
};

TEST_F(GenerationServiceTest, RendersAndSubmitsAChat) {
  GenerateRequest request = ChatRequest("hi");
  std::get<GenerateRequest::Chat>(request.prompt).template_kwargs = {{"extra", "!"}};
  ASSERT_TRUE(Generate(std::move(request)).ok());
  EXPECT_EQ(PromptText(0), "<s>user:hi;A!");  // the template's own <s>, as bytes; none added
  EXPECT_EQ(engine_.request(0).prompt_token_ids.size(), 13);
  EXPECT_EQ(engine_.request(0).sampling.max_tokens, 64 - 13);  // the rest of the context
  EXPECT_EQ(generation_->num_prompt_tokens(), 13);
  engine_.Emit(0, {.text = "yo"});
  EXPECT_THAT(sink_->deltas, ElementsAre(std::pair(0, std::string("yo"))));
}

TEST_F(GenerationServiceTest, ChoicesAreOrderedSeededAndAtomic) {
  GenerateRequest request = TextRequest({"ab", "c"});
  request.n = 2;
  request.priority = 3;
  request.sampling.seed = -1;
  ASSERT_TRUE(Generate(std::move(request)).ok());
  ASSERT_EQ(engine_.num_requests(), 4);
  EXPECT_EQ(generation_->num_choices(), 4);
  EXPECT_EQ(generation_->num_prompt_tokens(), 5);  // two beginnings, three bytes
  EXPECT_EQ(PromptText(1), "ab");
  EXPECT_EQ(PromptText(2), "c");
  EXPECT_EQ(engine_.request(2).priority, 3);
  EXPECT_EQ(engine_.request(0).sampling.seed, ~uint64_t{0});
  EXPECT_EQ(engine_.request(1).sampling.seed, 0U);  // seed + 1
  engine_.Emit(3, {.text = "x"});
  EXPECT_EQ(sink_->deltas.at(0).first, 3);
}

TEST_F(GenerationServiceTest, DefaultsComeFromRequestThenModelThenServer) {
  engine::GenerationConfig defaults;
  defaults.temperature = 0.6F;
  defaults.top_p = 0.9F;
  defaults.top_k = -1;
  defaults.max_new_tokens = 10;
  Build(defaults);
  GenerateRequest request = TextRequest({"a"});
  request.sampling.top_p = 0.5F;
  ASSERT_TRUE(Generate(request).ok());
  const engine::SamplingParams params = engine_.request(0).sampling;
  EXPECT_EQ(params.temperature, 0.6F);
  EXPECT_EQ(params.top_p, 0.5F);
  EXPECT_EQ(params.top_k, 0);
  EXPECT_EQ(params.min_p, 0.0F);
  EXPECT_EQ(params.max_tokens, 10);
  EXPECT_FALSE(params.seed.has_value());
  request.sampling.default_max_tokens = 16;
  ASSERT_TRUE(Generate(request).ok());
  EXPECT_EQ(engine_.request(1).sampling.max_tokens, 16);
  // A default, unlike a wish, is cut to what fits.
  request.prompt = GenerateRequest::Text{{std::string(60, 'a')}};
  ASSERT_TRUE(Generate(request).ok());
  EXPECT_EQ(engine_.request(2).sampling.max_tokens, 3);
}

TEST_F(GenerationServiceTest, RefusesWhatDoesNotFit) {
  GenerateRequest request = TextRequest({"abc"});
  request.sampling.max_tokens = 61;
  Refused(request, {"4 tokens", "max_tokens is 61", "64"});
  request.sampling.max_tokens = std::numeric_limits<int64_t>::max();
  Refused(request, {"max_tokens is 9223372036854775807"});
  request.sampling.max_tokens = 0;
  Refused(request, {"max_tokens"});
  Refused(TextRequest({std::string(63, 'a')}), {"64 tokens", "63"});
  Refused(TextRequest({std::string(150, 'a'), std::string(51, 'a')}), {"201 bytes", "200"});
  Refused(ChatRequest(std::string(201, 'a')), {"201 bytes", "200"});
  request = TextRequest({"a"});
  request.sampling.max_tokens = 62;
  EXPECT_TRUE(Generate(request).ok());
}

TEST_F(GenerationServiceTest, RefusesCounts) {
  GenerateRequest request = TextRequest({"a"});
  for (const int64_t n : {int64_t{-1}, int64_t{0}, int64_t{9}, int64_t{1'000'000'000},
                          std::numeric_limits<int64_t>::max()}) {
    request.n = n;
    Refused(request, {fmt::format("n is {}", n), "1..8"});
  }
  Refused(TextRequest({}), {"no prompt"});
  Refused(TextRequest({"a", "b", "c", "d", "e"}), {"5 prompts", "4"});
  request = TextRequest({"a", "b", "c"});
  request.n = 3;
  Refused(request, {"9 choices", "8"});
}

TEST_F(GenerationServiceTest, RefusesBadPrompts) {
  GenerateRequest request;
  request.prompt = GenerateRequest::TokenIds{{{1, 258}}};
  Refused(request, {"258", "0..257"});
  request.prompt = GenerateRequest::TokenIds{{{-1}}};
  Refused(request, {"-1"});
  request.prompt = GenerateRequest::TokenIds{{{}}};
  Refused(request, {"empty"});
  request = TextRequest({""});
  request.add_special_tokens = false;
  Refused(request, {"empty"});
  Refused(TextRequest({"\xff"}), {"UTF-8"});
  Refused(ChatRequest("\xc3"), {"messages[0]", "UTF-8"});
  request = ChatRequest("a");
  std::get<GenerateRequest::Chat>(request.prompt).messages.clear();
  Refused(request, {"messages"});
  for (const char* name : {"messages", "add_generation_prompt", "tools"}) {
    request = ChatRequest("a");
    std::get<GenerateRequest::Chat>(request.prompt).template_kwargs = {{name, 1}};
    Refused(request, {"chat_template_kwargs", name});
  }
  request = ChatRequest("a");
  std::get<GenerateRequest::Chat>(request.prompt).template_kwargs = 7;
  Refused(request, {"chat_template_kwargs"});
  Build({}, /*with_template=*/false);
  Refused(ChatRequest("a"), {"no chat template"});
}

TEST_F(GenerationServiceTest, KnowsOneModel) {
  GenerateRequest request = TextRequest({"a"});
  request.model = "other";
  EXPECT_EQ(Generate(request).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(service_->CheckModelName("other").message()), HasSubstr("\"fake\""));
  EXPECT_TRUE(service_->CheckModelName("fake").ok());
  EXPECT_LT(service_->CheckModelName(std::string(1 << 20, 'x')).message().size(), 500);
}

TEST_F(GenerationServiceTest, RefusesWhenTheEngineHasFailed) {
  engine_.health = absl::InternalError("rank 1 is gone");
  const absl::Status refused = Generate(TextRequest({"a"}));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("rank 1 is gone"));
}

TEST_F(GenerationServiceTest, TakesRequestsWhileALostRankIsWaitedFor) {
  engine_.SetHealth(absl::UnavailableError("rank 1 (pid 4711): killed by signal 9"));
  EXPECT_TRUE(Generate(TextRequest({"a"})).ok());  // it waits in the engine's queue
}

TEST_F(GenerationServiceTest, TheGateIsOpenBetweenLoadingAndDraining) {
  ServiceGate gate;
  EXPECT_EQ(gate.Enter().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(gate.Enter().status().message()), HasSubstr("loading"));
  gate.Open(service_.get());
  ASSERT_TRUE(gate.Enter().ok());
  EXPECT_EQ(*gate.Enter(), service_.get());
  gate.Close();
  EXPECT_EQ(gate.Enter().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(gate.Enter().status().message()), HasSubstr("shutting down"));
}

TEST_F(GenerationServiceTest, RefusesWhatTheQueueCanNeverHold) {
  engine_.mutable_config()->max_queued_requests = 2;
  GenerateRequest request = TextRequest({"a"});
  request.n = 3;
  Refused(request, {"n = 3", "max_queued_requests", "holds 2"});
  EXPECT_EQ(ParamOf(Generate(request)), "n");
  request.n = 2;
  EXPECT_TRUE(Generate(request).ok());
}

TEST_F(GenerationServiceTest, BoundsWholeAnswers) {
  GenerateRequest request = TextRequest({"a", "b"});
  request.whole_answer = true;
  request.n = 2;
  request.sampling.logprobs = 2;
  request.sampling.max_tokens = 6;  // 4 choices * 6 tokens * 3 entries
  Refused(request, {"max_tokens is 6", "limit is 5", "at most 60"});
  EXPECT_EQ(ParamOf(Generate(request)), "max_tokens");
  request.sampling.max_tokens = 5;
  ASSERT_TRUE(Generate(request).ok());
  request.sampling.max_tokens.reset();  // a default is cut
  ASSERT_TRUE(Generate(request).ok());
  EXPECT_EQ(engine_.request(4).sampling.max_tokens, 5);
  request.whole_answer = false;
  request.sampling.max_tokens = 20;
  EXPECT_TRUE(Generate(request).ok());
}

TEST_F(GenerationServiceTest, RefusesLongTextBeforeTokenizing) {
  Build({}, true, /*max_prompt_bytes=*/1000);
  // 64 tokens of "</s>" at most: the fake's longest token.
  Refused(TextRequest({std::string(257, 'a')}), {"257 bytes", "64 tokens", "256"});
  Refused(ChatRequest(std::string(257, 'a')), {"64 tokens", "256"});
  EXPECT_EQ(ParamOf(Generate(ChatRequest(std::string(257, 'a')))), "messages");
  Refused(TextRequest({std::string(256, 'a')}), {"257 tokens"});  // fits the bound, then counted
}

TEST_F(GenerationServiceTest, BoundsDetokenizedText) {
  EXPECT_TRUE(service_->Detokenize(std::vector<int32_t>(100, 'a')).ok());
  EXPECT_TRUE(service_->Detokenize(std::vector<int32_t>(25, 257)).ok());  // "</s>"
  const auto refused = service_->Detokenize(std::vector<int32_t>(26, 257));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("104 bytes of text"));
  EXPECT_EQ(ParamOf(refused.status()), "tokens");
  EXPECT_FALSE(service_->Detokenize({258}).ok());
}

TEST_F(GenerationServiceTest, NamesTheFieldOfMinTokens) {
  GenerateRequest request = TextRequest({"a"});
  request.sampling.max_tokens = 3;
  request.sampling.min_tokens = 9;
  Refused(request, {"min_tokens is 9", "0..3"});
  EXPECT_EQ(ParamOf(Generate(request)), "min_tokens");
}

TEST_F(GenerationServiceTest, PassesTheEnginesRefusalOn) {
  engine_.submit_status = absl::ResourceExhaustedError("queue full");
  EXPECT_EQ(Generate(TextRequest({"a"})).code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(GenerationServiceTest, CancelEndsAllChoicesOnce) {
  GenerateRequest request = TextRequest({"a"});
  request.n = 3;
  ASSERT_TRUE(Generate(std::move(request)).ok());
  generation_->Cancel();
  generation_->Cancel();
  EXPECT_EQ(engine_.num_cancelled(), 3);
}

}  // namespace
}  // namespace nibble::server
