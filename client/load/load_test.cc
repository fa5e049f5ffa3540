// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/load_test.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <thread>

#include "fmt/ranges.h"

#include "client/http/printable.h"
#include "client/load/dataset.h"
#include "client/load/limits.h"
#include "client/load/result.h"

namespace nibble::client {
namespace {

constexpr auto kRetryInterval = std::chrono::milliseconds(500);
constexpr auto kInterruptInterval = std::chrono::milliseconds(50);

void Say(const LoadEnvironment& environment, const std::string& text) {
  if (environment.say) environment.say(text);
}

bool Interrupted(const LoadEnvironment& environment) {
  return environment.hooks.interrupted != nullptr && environment.hooks.interrupted->load();
}

absl::StatusOr<ServedModel> FindModel(const LoadOptions& options, ServerApi* server) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<ServedModel> models, server->ListModels());
  if (options.model.empty()) return models.front();
  std::vector<std::string> names;
  for (const ServedModel& model : models) {
    if (model.id == options.model) return model;
    names.push_back(model.id);
  }
  return NotFound("--model: {} has no '{}'; it serves {}", server->address(), options.model,
                  PrintableMessage(fmt::format("{}", fmt::join(names, ", "))));
}

// A stream takes a file; limits of 1024 are common.
void RaiseOpenFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// The first error of a warm-up: whatever is wrong would be wrong for every request.
absl::Status WarmUp(const LoadOptions& options, const std::vector<LoadRequest>& warmups,
                    Transport* transport, const LoadEnvironment& environment) {
  if (warmups.empty()) return absl::OkStatus();
  Say(environment, fmt::format("warming up with {} requests", warmups.size()));
  const std::vector<double> at_once(warmups.size(), 0.0);
  RunHooks hooks = environment.hooks;
  hooks.progress = nullptr;
  const RunOutcome outcome =
      RunRequests(warmups, at_once, options.max_concurrency, transport, hooks);
  if (outcome.interrupted) return absl::CancelledError("interrupted while warming up");
  for (const RequestRecord& record : outcome.records) {
    if (record.state == RequestRecord::State::kFailed) {
      return absl::UnknownError("warming up: " + record.error);
    }
  }
  return absl::OkStatus();
}

// Prompts whose length is known, too long for the model: their requests would all be refused.
// Those of a file may be some of many.
absl::Status CheckLengths(const LoadOptions& options, const ServedModel& model,
                          const std::vector<LoadRequest>& requests,
                          const LoadEnvironment& environment) {
  if (model.max_model_len < 1) return absl::OkStatus();
  const auto length = [](const LoadRequest& request) {
    return request.prompt_length() + request.output_tokens;
  };
  int64_t num_too_long = 0;
  const LoadRequest* longest = &requests.front();
  for (const LoadRequest& request : requests) {
    num_too_long += length(request) > model.max_model_len ? 1 : 0;
    if (length(request) > length(*longest)) longest = &request;
  }
  if (num_too_long == 0) return absl::OkStatus();
  const std::string text = fmt::format(
      "{} of {} requests do not fit: the longest has {} prompt tokens and asks for {}, {} has {} "
      "for both",
      num_too_long, requests.size(), longest->prompt_length(), longest->output_tokens,
      PrintableMessage(model.id), model.max_model_len);
  if (!options.dataset.has_file() || num_too_long == static_cast<int64_t>(requests.size())) {
    return absl::InvalidArgumentError(text);
  }
  Say(environment, "warning: " + text);
  return absl::OkStatus();
}

double Number(const nlohmann::ordered_json& result, const char* key) {
  const auto found = result.find(key);
  return found != result.end() && found->is_number() ? found->get<double>() : 0.0;
}

std::string TableRow(const std::string& value, const nlohmann::ordered_json& result) {
  return fmt::format(
      "{:>12} {:>9} {:>7} {:>9.2f} {:>10.1f} {:>10.2f} {:>10.2f} {:>10.2f} {:>10.2f}", value,
      result["completed"].get<int64_t>(), result["failed"].get<int64_t>(),
      Number(result, "request_throughput"), Number(result, "output_throughput"),
      Number(result, "median_ttft_ms"), Number(result, "median_tpot_ms"),
      Number(result, "median_itl_ms"), Number(result, "median_e2el_ms"));
}

}  // namespace

std::string DateNow() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  const size_t length = std::strftime(text, sizeof text, "%Y%m%d-%H%M%S", &local);
  return {text, length};
}

absl::StatusOr<ServedModel> WaitUntilReady(const LoadOptions& options,
                                           const LoadEnvironment& environment) {
  using Clock = std::chrono::steady_clock;
  const auto give_up =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(options.ready_check_timeout_seconds));
  environment.server->SetInterrupt(environment.hooks.interrupted);
  for (bool told = false;; told = true) {
    absl::StatusOr<ServedModel> model = FindModel(options, environment.server);
    const bool may_come =
        absl::IsUnavailable(model.status()) || absl::IsDeadlineExceeded(model.status());
    if (model.ok() || !may_come) return model;
    if (Clock::now() >= give_up) {
      return Annotate(model.status(), "the server is not ready");
    }
    if (!told) {
      Say(environment,
          fmt::format("waiting for the server: {}", std::string(model.status().message())));
    }
    const auto next = std::min(give_up, Clock::now() + kRetryInterval);
    while (Clock::now() < next) {
      if (Interrupted(environment)) return absl::CancelledError("interrupted");
      std::this_thread::sleep_for(kInterruptInterval);
    }
  }
}

absl::StatusOr<LoadResult> RunLoadTest(const LoadOptions& options, const ServedModel& model,
                                       const LoadEnvironment& environment) {
  RaiseOpenFileLimit();
  environment.server->SetModel(model);
  environment.server->SetInterrupt(environment.hooks.interrupted);
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<Transport> transport,
      environment.server->MakeTransport({.model = model.id,
                                         .chat = options.chat(),
                                         .ignore_eos = options.ignores_eos(),
                                         .sampling = options.sampling,
                                         .extra_body = options.extra_body,
                                         .timeout_seconds = options.request_timeout_seconds}));
  TextCodec* const codec =
      environment.tokenizer != nullptr ? environment.tokenizer : environment.server;
  NIBBLE_ASSIGN_OR_RETURN(const Dataset dataset,
                          MakeDataset(options.dataset, options.num_warmups, options.chat(), codec,
                                      {.interrupted = environment.hooks.interrupted,
                                       .progress = environment.prompt_progress}));
  NIBBLE_RETURN_IF_ERROR(CheckLengths(options, model, dataset.requests, environment));
  const auto count = static_cast<int64_t>(dataset.requests.size());
  std::vector<double> arrivals;
  if (options.follows_trace()) {
    for (const LoadRequest& request : dataset.requests) arrivals.push_back(request.timestamp);
  } else {
    std::vector<std::string> violations;  // how many a file has is not known before
    options.arrival.CheckSpan(count, &violations);
    if (!violations.empty()) return absl::InvalidArgumentError(violations.front());
    arrivals = PlanArrivals(options.arrival, count, options.dataset.seed);
  }
  if (dataset.warmups_are_measured) {
    Say(environment,
        "warning: the file has too few prompts: some warm up first and are measured then, when the "
        "server's cache may have them");
  }
  NIBBLE_RETURN_IF_ERROR(WarmUp(options, dataset.warmups, transport.get(), environment));
  const RunDescription description{.date = environment.date.empty() ? DateNow() : environment.date,
                                   .model = model.id,
                                   .num_prompts = count,
                                   .with_details = environment.with_details};
  const RunOutcome outcome = RunRequests(dataset.requests, arrivals, options.max_concurrency,
                                         transport.get(), environment.hooks);
  return LoadResult{.json = BuildResult(options, description, outcome),
                    .interrupted = outcome.interrupted};
}

absl::Status SweepOptions::Validate() const {
  std::vector<std::string> violations;
  if (request_rates.empty() == max_concurrencies.empty()) {
    violations.push_back("want --request-rates or --max-concurrencies");
  }
  if (!max_concurrencies.empty() && load.max_concurrency > 0) {
    violations.push_back("--max-concurrency and --max-concurrencies: want one of them");
  }
  if (!request_rates.empty() && load.arrival.has_ramp()) {
    violations.push_back("--request-rates and --ramp-up-strategy: want one of them");
  }
  if (load.follows_trace() && !request_rates.empty()) {
    violations.push_back("--request-rates go with --no-self-timed where a trace has times");
  }
  for (const double rate : request_rates) {
    const size_t before = violations.size();
    const ArrivalOptions arrival{.request_rate = rate};
    arrival.Validate(&violations);
    if (violations.size() == before) arrival.CheckSpan(load.dataset.num_prompts, &violations);
  }
  for (const int64_t concurrency : max_concurrencies) {
    CheckLimits("--max-concurrencies", concurrency, 1, kMaxConcurrency, &violations);
  }
  if (const absl::Status status = load.Validate(); !status.ok()) {
    violations.push_back(std::string(status.message()));
  }
  if (violations.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(fmt::format("{}", fmt::join(violations, "\n")));
}

SweepResult RunSweep(const SweepOptions& options, const ServedModel& model,
                     const LoadEnvironment& environment,
                     const std::function<void(const std::string&)>& row) {
  const bool by_rate = !options.request_rates.empty();
  SweepResult sweep;
  sweep.json = {{"date", environment.date.empty() ? DateNow() : environment.date},
                {"sweep", by_rate ? "request_rate" : "max_concurrency"},
                {"backend", options.load.backend_name()},
                {"model_id", model.id},
                {"results", nlohmann::ordered_json::array()}};
  if (options.load.dataset.has_file() && options.size() > 1) {
    Say(environment,
        "warning: every run has the file's prompts: those after the first may find them in the "
        "server's cache");
  }
  LoadEnvironment of_runs = environment;
  of_runs.date.clear();
  row(fmt::format("{:>12} {:>9} {:>7} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
                  by_rate ? "req/s asked" : "concurrency", "completed", "failed", "req/s",
                  "out tok/s", "TTFT ms", "TPOT ms", "ITL ms", "E2EL ms"));
  for (size_t i = 0; i < options.size() && !sweep.interrupted; ++i) {
    LoadOptions load = options.load;
    load.dataset.seed += i;
    if (by_rate) {
      load.arrival.request_rate = options.request_rates[i];
    } else {
      load.max_concurrency = options.max_concurrencies[i];
    }
    const std::string value = by_rate ? fmt::format("{}", options.request_rates[i])
                                      : fmt::format("{}", options.max_concurrencies[i]);
    absl::StatusOr<LoadResult> result = RunLoadTest(load, model, of_runs);
    if (absl::IsCancelled(result.status())) {
      sweep.interrupted = true;
      break;
    }
    if (!result.ok()) {
      sweep.status = Annotate(result.status(), "the run at " + value);
      break;
    }
    sweep.interrupted = result->interrupted;
    row(TableRow(value, result->json));
    for (const std::string& warning : Warnings(result->json)) {
      Say(environment, "warning: at " + value + ": " + warning);
    }
    sweep.json["results"].push_back(std::move(result->json));
  }
  return sweep;
}

}  // namespace nibble::client
