// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/openai/api_request.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/json.h"
#include "server/openai/api_error.h"

namespace nibble::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RequestLimits Limits() {
  RequestLimits limits;
  limits.sampling.vocab_size = 1000;
  limits.sampling.max_model_len = 64;
  limits.service.max_prompts = 4;
  return limits;
}

constexpr const char* kMessages = R"("messages":[{"role":"user","content":"hi"}])";

absl::StatusOr<ApiRequest> Chat(const std::string& fields) {
  const std::string text =
      "{" + std::string(kMessages) + (fields.empty() ? "" : ",") + fields + "}";
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseJson(text));
  return ParseChatRequest(body, Limits());
}
absl::StatusOr<ApiRequest> Completion(const std::string& fields) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseJson("{" + fields + "}"));
  return ParseCompletionRequest(body, Limits());
}
absl::StatusOr<ApiRequest> Messages(const std::string& messages) {
  NIBBLE_ASSIGN_OR_RETURN(const nlohmann::json body, ParseJson("{\"messages\":" + messages + "}"));
  return ParseChatRequest(body, Limits());
}

// Fields that are refused, and the param that the error must carry.
struct Refusal {
  std::string fields;
  std::string param;
};
void ExpectRefused(const absl::StatusOr<ApiRequest>& result, const Refusal& refusal) {
  ASSERT_FALSE(result.ok()) << refusal.fields;
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << refusal.fields;
  EXPECT_EQ(ParamOf(result.status()), refusal.param) << refusal.fields << " " << result.status();
  if (!refusal.param.empty()) {
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(refusal.param));
  }
  EXPECT_LT(result.status().message().size(), 1000);
}

TEST(ApiRequest, ErrorsTellTheValue) {
  const std::vector<std::pair<absl::Status, std::string>> cases = {
      {Chat(R"("logit_bias":{"0":200})").status(), "token 0 is 200, want"},
      {Chat(R"("logit_bias":{"0":"x"})").status(), "token 0 is a string, want"},
      {Chat(R"("logit_bias":{"12x":1})").status(), "\"12x\" is not a token id in 0..999"},
      {Messages(R"([{"role":")" + std::string(65, 'r') + R"(","content":"x"}])").status(),
       "65 bytes, want 1..64"},
      {Messages("[]").status(), "got an empty list"},
      {Messages("7").status(), "got an integer"},
      {Completion(R"("prompt":{})").status(), "got an object"},
  };
  for (const auto& [status, text] : cases) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  // No more of a client's bytes than help.
  const std::string key(100'000, 'k');
  EXPECT_LT(Chat(R"("logit_bias":{")" + key + R"(":1})").status().message().size(), 300);
}

TEST(ApiRequest, ReadsEveryChatField) {
  const auto result =
      Chat(R"("model":"m","max_completion_tokens":7,"min_tokens":2,"temperature":0.5,"top_p":0.9,)"
           R"("top_k":40,"min_p":0.1,"repetition_penalty":1.5,"presence_penalty":-1,)"
           R"("frequency_penalty":2,"logit_bias":{"5":-100,"7":1.5},"seed":-3,"stop":["a","b"],)"
           R"("stop_token_ids":[1,2],"ignore_eos":true,"include_stop_str_in_output":true,)"
           R"("skip_special_tokens":false,"logprobs":true,"top_logprobs":3,"n":2,"stream":true,)"
           R"("stream_options":{"include_usage":true},"user":"u","priority":-5,)"
           R"("add_generation_prompt":false,"add_special_tokens":true,)"
           R"("chat_template_kwargs":{"enable_thinking":false})");
  ASSERT_TRUE(result.ok()) << result.status();
  const GenerateRequest& request = result->generate;
  const SamplingRequest& sampling = request.sampling;
  EXPECT_TRUE(result->chat && result->stream && result->include_usage && result->logprobs);
  EXPECT_EQ(request.model, "m");
  EXPECT_EQ(request.n, 2);
  EXPECT_EQ(request.priority, -5);
  EXPECT_TRUE(request.add_special_tokens);
  EXPECT_EQ(sampling.max_tokens, 7);
  EXPECT_EQ(sampling.min_tokens, 2);
  EXPECT_EQ(sampling.temperature, 0.5F);
  EXPECT_EQ(sampling.top_p, 0.9F);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.1F);
  EXPECT_EQ(sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(sampling.presence_penalty, -1.0F);
  EXPECT_EQ(sampling.frequency_penalty, 2.0F);
  EXPECT_THAT(sampling.logit_bias, ElementsAre(std::pair(5, -100.0F), std::pair(7, 1.5F)));
  EXPECT_EQ(sampling.seed, -3);
  EXPECT_THAT(sampling.stop, ElementsAre("a", "b"));
  EXPECT_THAT(sampling.stop_token_ids, ElementsAre(1, 2));
  EXPECT_TRUE(sampling.ignore_eos && sampling.include_stop_str_in_output);
  EXPECT_FALSE(sampling.skip_special_tokens);
  EXPECT_EQ(sampling.logprobs, 3);
  const auto& chat = std::get<GenerateRequest::Chat>(request.prompt);
  EXPECT_FALSE(chat.add_generation_prompt);
  EXPECT_EQ(chat.template_kwargs.dump(), R"({"enable_thinking":false})");
  ASSERT_EQ(chat.messages.size(), 1);
  EXPECT_EQ(chat.messages[0].role, "user");
  EXPECT_EQ(chat.messages[0].content, "hi");
}

TEST(ApiRequest, AbsentAndNullFieldsAreUnset) {
  for (const std::string fields :
       {"", R"("temperature":null,"stop":null,"tools":null,"n":null,"response_format":null,)"
            R"("guided_json":null,"stream_options":null,"invented":null)"}) {
    const auto result = Chat(fields);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->generate.sampling.temperature.has_value());
    EXPECT_FALSE(result->generate.sampling.max_tokens.has_value());
    EXPECT_FALSE(result->generate.sampling.default_max_tokens.has_value());
    EXPECT_FALSE(result->generate.sampling.logprobs.has_value());
    EXPECT_EQ(result->generate.n, 1);
    EXPECT_FALSE(result->generate.add_special_tokens);
  }
}

TEST(ApiRequest, RefusesTypesAndRanges) {
  const std::vector<Refusal> cases = {
      {R"("model":5)", "model"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":-1)", "max_tokens"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("max_tokens":"7")", "max_tokens"},
      {R"("max_tokens":true)", "max_tokens"},
      {R"("max_tokens":18446744073709551615)", "max_tokens"},
      {R"("max_tokens":123456789012345678901234567890)", "max_tokens"},
      {R"("max_tokens":5,"max_completion_tokens":6)", "max_completion_tokens"},
      {R"("min_tokens":-1)", "min_tokens"},
      {R"("temperature":-0.1)", "temperature"},
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":1e300)", "temperature"},
      {R"("temperature":"hot")", "temperature"},
      {R"("temperature":[1])", "temperature"},
      {R"("top_p":0)", "top_p"},
      {R"("top_p":1.01)", "top_p"},
      {R"("top_k":-2)", "top_k"},
      {R"("top_k":4294967296)", "top_k"},
      {R"("min_p":-1)", "min_p"},
      {R"("repetition_penalty":0)", "repetition_penalty"},
      {R"("repetition_penalty":2.5)", "repetition_penalty"},
      {R"("presence_penalty":2.5)", "presence_penalty"},
      {R"("frequency_penalty":-3)", "frequency_penalty"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":9223372036854775808)", "seed"},
      {R"("stop":5)", "stop"},
      {R"("stop":"")", "stop"},
      {R"("stop":["a",""])", "stop"},
      {R"("stop":["a",1])", "stop"},
      {R"("stop_token_ids":[1000])", "stop_token_ids"},
      {R"("stop_token_ids":[-1])", "stop_token_ids"},
      {R"("stop_token_ids":["1"])", "stop_token_ids"},
      {R"("stop_token_ids":7)", "stop_token_ids"},
      {R"("logit_bias":[1])", "logit_bias"},
      {R"("logit_bias":{"1000":1})", "logit_bias"},
      {R"("logit_bias":{"-1":1})", "logit_bias"},
      {R"("logit_bias":{"1x":1})", "logit_bias"},
      {R"("logit_bias":{"01":1})", "logit_bias"},
      {R"("logit_bias":{"1":101})", "logit_bias"},
      {R"("logit_bias":{"1":"x"})", "logit_bias"},
      {R"("ignore_eos":1)", "ignore_eos"},
      {R"("stream":"yes")", "stream"},
      {R"("stream_options":{"include_usage":true})", "stream_options"},
      {R"("stream":true,"stream_options":5)", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", "stream_options.include_usage"},
      {R"("stream":true,"stream_options":{"x":1})", "stream_options.x"},
      {R"("n":1.5)", "n"},
      {R"("priority":3000000000)", "priority"},
      {R"("logprobs":3)", "logprobs"},
      {R"("top_logprobs":3)", "top_logprobs"},
      {R"("logprobs":true,"top_logprobs":21)", "top_logprobs"},
      {R"("chat_template_kwargs":[1])", "chat_template_kwargs"},
      {R"("add_generation_prompt":"no")", "add_generation_prompt"},
      {R"("prompt":"x")", "prompt"},
      {R"("invented":1)", "invented"},
  };
  for (const Refusal& refusal : cases) ExpectRefused(Chat(refusal.fields), refusal);
  // Not JSON at all: the parser's error, without a field.
  for (const char* fields : {R"("temperature":NaN)", R"("temperature":1e400)", R"("a":)"}) {
    ExpectRefused(Chat(fields), {fields, ""});
  }
}

TEST(ApiRequest, RefusesExcess) {
  std::string many = "\"stop\":[\"x\"";
  for (int i = 0; i < 100'000; ++i) many += ",\"x\"";
  const auto result = Chat(many + "]");
  ExpectRefused(result, {"stop", "stop"});
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("100001"));
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("16"));
  ExpectRefused(Chat("\"stop\":\"" + std::string(1025, 'x') + "\""), {"stop", "stop"});
  std::string bias = "\"logit_bias\":{\"0\":1";
  for (int i = 1; i < 1025; ++i) bias += ",\"" + std::to_string(i) + "\":1";
  ExpectRefused(Chat(bias + "}"), {"logit_bias", "logit_bias"});
  ExpectRefused(Completion("\"prompt\":[\"a\",\"a\",\"a\",\"a\",\"a\"]"), {"prompt", "prompt"});
  std::string ids = "\"prompt\":[1";
  for (int i = 0; i < 64; ++i) ids += ",1";
  ExpectRefused(Completion(ids + "]"), {"prompt", "prompt"});
  const auto deep = ParseJson(std::string(100, '[') + std::string(100, ']'));
  EXPECT_FALSE(deep.ok());
  // A field's name is the client's too.
  EXPECT_FALSE(Chat("\"" + std::string(100'000, 'q') + "\":1").ok());
  EXPECT_LT(Chat("\"" + std::string(100'000, 'q') + "\":1").status().message().size(), 300);
}

TEST(ApiRequest, KnownFieldsThatAreNotBuiltAreRefusedByName) {
  const std::vector<Refusal> cases = {
      {R"("tools":[{"type":"function"}])", "tools"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("tool_choice":{"type":"function"})", "tool_choice"},
      {R"("functions":[{}])", "functions"},
      {R"("function_call":{"name":"f"})", "function_call"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("response_format":{"type":"json_schema","json_schema":{}})", "response_format"},
      {R"("audio":{})", "audio"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("prediction":{})", "prediction"},
      {R"("web_search_options":{})", "web_search_options"},
      {R"("reasoning_effort":"low")", "reasoning_effort"},
      {R"("service_tier":"priority")", "service_tier"},
      {R"("store":true)", "store"},
      {R"("best_of":2)", "best_of"},
      {R"("echo":true)", "echo"},
      {R"("suffix":"x")", "suffix"},
      {R"("use_beam_search":true)", "use_beam_search"},
      {R"("guided_json":{})", "guided_json"},
      {R"("guided_regex":"a*")", "guided_regex"},
      {R"("guided_choice":["a"])", "guided_choice"},
      {R"("guided_grammar":"g")", "guided_grammar"},
      {R"("structured_outputs":{})", "structured_outputs"},
      {R"("prompt_logprobs":1)", "prompt_logprobs"},
      {R"("logits_processors":["x"])", "logits_processors"},
      {R"("allowed_token_ids":[1])", "allowed_token_ids"},
      {R"("bad_words":["x"])", "bad_words"},
      {R"("truncate_prompt_tokens":5)", "truncate_prompt_tokens"},
      {R"("chat_template":"{{ x }}")", "chat_template"},
      {R"("documents":[{}])", "documents"},
      {R"("continue_final_message":true)", "continue_final_message"},
      {R"("return_token_ids":true)", "return_token_ids"},
      {R"("request_id":"x")", "request_id"},
      {R"("user":5)", "user"},
      {R"("metadata":"x")", "metadata"},
      {R"("stream":true,"stream_options":{"continuous_usage_stats":true})",
       "stream_options.continuous_usage_stats"},
  };
  for (const Refusal& refusal : cases) {
    ExpectRefused(Chat(refusal.fields), refusal);
    ExpectRefused(Completion("\"prompt\":\"x\"," + refusal.fields), refusal);
  }
}

TEST(ApiRequest, ValuesThatAskForNothingPass) {
  const auto result = Chat(
      R"("tools":[],"tool_choice":"none","parallel_tool_calls":true,)"
      R"("response_format":{"type":"text"},"modalities":["text"],"service_tier":"auto",)"
      R"("store":false,"best_of":1,"echo":false,"suffix":"","length_penalty":1,"metadata":{"a":"b"},)"
      R"("user":"me","safety_identifier":"x","prompt_cache_key":"k","bad_words":[])");
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST(ApiRequest, MessageForms) {
  const auto parts = Messages(
      R"([{"role":"system","content":"s","name":"n"},)"
      R"({"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},)"
      R"({"role":"assistant","content":"c","refusal":null,"tool_calls":null,"annotations":[],)"
      R"("reasoning_content":"","audio":null,"server_key":"","other":[],"more":{}}])");
  ASSERT_TRUE(parts.ok()) << parts.status();
  const auto& messages = std::get<GenerateRequest::Chat>(parts->generate.prompt).messages;
  ASSERT_EQ(messages.size(), 3);
  EXPECT_EQ(messages[0].name, "n");
  EXPECT_EQ(messages[1].content, "a\nb");

  const std::vector<Refusal> cases = {
      {"null", "messages"},
      {"[]", "messages"},
      {"{}", "messages"},
      {"\"hi\"", "messages"},
      {"[5]", "messages[0]"},
      {R"([{"content":"x"}])", "messages[0].role"},
      {R"([{"role":5,"content":"x"}])", "messages[0].role"},
      {R"([{"role":"","content":"x"}])", "messages[0].role"},
      {R"([{"role":"tool","content":"x"}])", "messages[0].role"},
      {R"([{"role":"user"}])", "messages[0].content"},
      {R"([{"role":"user","content":5}])", "messages[0].content"},
      {R"([{"role":"user","content":[5]}])", "messages[0].content[0]"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "messages[0].content[0].text"},
      {R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])",
       "messages[0].content[0].type"},
      {R"([{"role":"user","content":[{"type":"text","text":"a","x":1}]}])",
       "messages[0].content[0].x"},
      {R"([{"role":"user","content":"a"},{"role":"assistant","content":"x","tool_calls":[{}]}])",
       "messages[1].tool_calls"},
      {R"([{"role":"user","content":"a","zzz":1}])", "messages[0].zzz"},
      {R"([{"role":"assistant","content":"a","reasoning_content":"why"}])",
       "messages[0].reasoning_content"},
  };
  for (const Refusal& refusal : cases) ExpectRefused(Messages(refusal.fields), refusal);
}

TEST(ApiRequest, PromptForms) {
  const auto text = Completion(R"("prompt":"a")");
  ASSERT_TRUE(text.ok());
  EXPECT_THAT(std::get<GenerateRequest::Text>(text->generate.prompt).prompts, ElementsAre("a"));
  EXPECT_TRUE(text->generate.add_special_tokens);
  EXPECT_EQ(text->generate.sampling.default_max_tokens, 16);
  const auto texts = Completion(R"("prompt":["a","b"],"logprobs":0)");
  ASSERT_TRUE(texts.ok());
  EXPECT_EQ(std::get<GenerateRequest::Text>(texts->generate.prompt).prompts.size(), 2);
  EXPECT_TRUE(texts->logprobs);
  EXPECT_EQ(texts->generate.sampling.logprobs, 0);
  const auto ids = Completion(R"("prompt":[1,2])");
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(std::get<GenerateRequest::TokenIds>(ids->generate.prompt).prompts,
              ElementsAre(ElementsAre(1, 2)));
  const auto lists = Completion(R"("prompt":[[1],[2,3]])");
  ASSERT_TRUE(lists.ok());
  EXPECT_EQ(std::get<GenerateRequest::TokenIds>(lists->generate.prompt).prompts.size(), 2);

  for (const char* prompt : {"null", "[]", "{}", "5", "[\"a\",1]", "[1,\"a\"]", "[[1],\"a\"]",
                             "[[1],2]", "[1000]", "[-1]", "[1.5]", "[true]"}) {
    ExpectRefused(Completion("\"prompt\":" + std::string(prompt)), {prompt, "prompt"});
  }
  ExpectRefused(Completion(""), {"", "prompt"});
  ExpectRefused(Completion(R"("prompt":"a","logprobs":21)"), {"", "logprobs"});
  ExpectRefused(Completion(R"("prompt":"a","logprobs":true)"), {"", "logprobs"});
  ExpectRefused(Completion(R"("prompt":"a","max_completion_tokens":5)"),
                {"", "max_completion_tokens"});
}

TEST(ApiRequest, BodiesThatAreNoObjects) {
  for (const char* text : {"[]", "5", "null", "\"x\""}) {
    const nlohmann::json body = *ParseJson(text);
    EXPECT_FALSE(ParseChatRequest(body, Limits()).ok());
    EXPECT_FALSE(ParseCompletionRequest(body, Limits()).ok());
    EXPECT_FALSE(ParseTokenizeRequest(body, Limits()).ok());
    EXPECT_FALSE(ParseDetokenizeRequest(body, Limits()).ok());
  }
}

TEST(ApiRequest, TokenizeAndDetokenize) {
  const auto prompt = ParseTokenizeRequest(*ParseJson(R"({"prompt":"a"})"), Limits());
  ASSERT_TRUE(prompt.ok());
  EXPECT_TRUE(prompt->add_special_tokens);
  const auto chat = ParseTokenizeRequest(
      *ParseJson("{" + std::string(kMessages) + R"(,"return_token_strs":true})"), Limits());
  ASSERT_TRUE(chat.ok());
  EXPECT_TRUE(chat->chat.has_value() && chat->return_token_strs);
  EXPECT_FALSE(chat->add_special_tokens);
  EXPECT_FALSE(ParseTokenizeRequest(*ParseJson("{}"), Limits()).ok());
  EXPECT_FALSE(ParseTokenizeRequest(*ParseJson("{\"prompt\":\"a\"," + std::string(kMessages) + "}"),
                                    Limits())
                   .ok());
  const auto ids = ParseDetokenizeRequest(*ParseJson(R"({"tokens":[1,2]})"), Limits());
  ASSERT_TRUE(ids.ok());
  EXPECT_THAT(ids->tokens, ElementsAre(1, 2));
  EXPECT_FALSE(ParseDetokenizeRequest(*ParseJson(R"({"tokens":[1000]})"), Limits()).ok());
  EXPECT_FALSE(ParseDetokenizeRequest(*ParseJson("{}"), Limits()).ok());
}

}  // namespace
}  // namespace nibble::server
