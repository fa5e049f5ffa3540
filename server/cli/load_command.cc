// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/load_command.h"

#include <atomic>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "fmt/core.h"

#include "client/load/grpc_api.h"
#include "client/load/http_api.h"
#include "client/load/result.h"
#include "client/report/report.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/cli/commands.h"
#include "server/cli/model_setup.h"
#include "server/cli/progress.h"
#include "server/cli/replace_file.h"

namespace nibble::cli {
namespace {

using client::LoadOptions;
using client::LoadResult;
using nlohmann::ordered_json;

constexpr int kInterruptedStatus = 130;  // 128 + SIGINT

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

// The first Ctrl-C ends the test with what was measured, the second one the process.
void OnInterrupt(int /*signal*/) {
  interrupted.store(true);
  std::signal(SIGINT, SIG_DFL);
}

// A tokenizer of a model directory.
class LocalCodec final : public client::TextCodec {
 public:
  explicit LocalCodec(std::unique_ptr<engine::Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) override {
    return tokenizer_->Encode(text, /*add_special_tokens=*/false);
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) override {
    return tokenizer_->Decode(ids, /*skip_special_tokens=*/false);
  }
  absl::StatusOr<std::vector<int32_t>> PlainTokens() override {
    std::vector<int32_t> ids;
    for (int64_t id = 0; id < tokenizer_->vocab_size(); ++id) {
      const auto token = static_cast<int32_t>(id);
      if (!tokenizer_->IsSpecial(token) && !tokenizer_->TokenBytes(token).empty()) {
        ids.push_back(token);
      }
    }
    if (ids.empty()) return InvalidArgument("the tokenizer has no plain tokens");
    return ids;
  }

 private:
  std::unique_ptr<engine::Tokenizer> tokenizer_;
};

// Everything of a test but its options.
class LoadSetup {
 public:
  absl::Status Open(const LoadOptions& options) {
    if (options.grpc.empty()) {
      NIBBLE_ASSIGN_OR_RETURN(client::HttpStreamsOptions http, client::ParseHttp(options));
      server_ = client::MakeHttpApi(std::move(http), options.path());
    } else {
      NIBBLE_ASSIGN_OR_RETURN(server_, client::MakeGrpcApi(options));
    }
    if (!options.tokenizer.empty()) {
      auto tokenizer = engine::Tokenizer::Load(options.tokenizer);
      if (!tokenizer.ok()) return Annotate(tokenizer.status(), "--tokenizer");
      codec_ = std::make_unique<LocalCodec>(*std::move(tokenizer));
    }
    std::signal(SIGINT, OnInterrupt);
    std::signal(SIGPIPE, SIG_IGN);  // a server that went away is an error code, not a signal
    environment_ = {.server = server_.get(),
                    .tokenizer = codec_.get(),
                    .hooks = {.interrupted = &interrupted,
                              .progress = [this](const auto& progress) { Show(progress); }},
                    .say = [this](const std::string& line) {
                      bar_.reset();
                      PrintMessage("nibble: " + line + "\n");
                    }};
    NIBBLE_ASSIGN_OR_RETURN(model_, client::WaitUntilReady(options, environment_));
    return absl::OkStatus();
  }

  void EndProgress() { bar_.reset(); }
  const client::ServedModel& model() const { return model_; }
  const client::LoadEnvironment& environment() const { return environment_; }

 private:
  void Show(const client::LoadProgress& progress) {
    if (progress.seconds < last_seconds_) bar_.reset();  // the next run of a sweep
    last_seconds_ = progress.seconds;
    if (!bar_.has_value()) bar_.emplace("requests", "done");
    const int64_t done = progress.completed + progress.failed;
    std::string detail =
        fmt::format("{} running, {:.1f} req/s, {:.0f} chunks/s", progress.running,
                    progress.seconds > 0 ? static_cast<double>(done) / progress.seconds : 0.0,
                    progress.chunks_per_s);
    if (progress.mean_ttft_ms > 0) {
      detail += fmt::format(", TTFT {:.1f} ms, ITL {:.2f} ms", progress.mean_ttft_ms,
                            progress.mean_itl_ms);
    }
    if (progress.failed > 0) detail += fmt::format(", {} FAILED", progress.failed);
    bar_->Update(done, progress.total, detail);
  }

  std::unique_ptr<client::ServerApi> server_;
  std::unique_ptr<client::TextCodec> codec_;
  client::LoadEnvironment environment_;
  client::ServedModel model_;
  std::optional<Progress> bar_;
  double last_seconds_ = 0;
};

// As vLLM names its files.
std::string ResultPath(const LoadCommandOptions& options, const ordered_json& result,
                       const std::string& what) {
  const LoadOptions& load = options.sweep.load;
  std::string name = options.output.result_filename;
  if (name.empty()) {
    const std::string model = result["model_id"].get<std::string>();
    name = fmt::format("{}-{}-{}-{}.json", load.label.empty() ? load.backend_name() : load.label,
                       what, model.substr(model.rfind('/') + 1), result["date"].get<std::string>());
  }
  return (std::filesystem::path(options.output.result_dir) / name).string();
}

std::string RateName(const LoadOptions& load) {
  const client::ArrivalOptions& arrival = load.arrival;
  std::string name =
      std::isinf(arrival.request_rate) ? "inf" : fmt::format("{}", arrival.request_rate);
  if (arrival.has_ramp()) {
    name = fmt::format("ramp-up-{}-{}qps-{}", arrival.ramp_up_strategy, *arrival.start_rps,
                       *arrival.end_rps);
  }
  name += "qps";
  if (load.max_concurrency > 0) name += fmt::format("-concurrency{}", load.max_concurrency);
  return name;
}

// Before the test: nobody measures for an hour to find that the folder is not there.
absl::Status CheckOutput(const LoadOutput& output) {
  if (!output.result_dir.empty()) {
    std::error_code error;
    std::filesystem::create_directories(output.result_dir, error);
    if (error) return Unavailable("--result-dir {}: {}", output.result_dir, error.message());
  }
  if (!output.save_result && (!output.result_dir.empty() || !output.result_filename.empty())) {
    return InvalidArgument("--result-dir and --result-filename go with --save-result");
  }
  if (!output.report.empty()) {
    const absl::Status status = CheckReplaceable(output.report);
    if (!status.ok()) return Annotate(status, "--report");
  }
  return absl::OkStatus();
}

absl::Status Save(const std::string& path, const std::string& text) {
  NIBBLE_RETURN_IF_ERROR(ReplaceFile(path, text));
  PrintMessage(fmt::format("nibble: wrote {}\n", path));
  return absl::OkStatus();
}

int ExitStatus(bool was_interrupted, int64_t completed) {
  if (was_interrupted) return kInterruptedStatus;
  if (completed > 0) return 0;
  return Fail(Unavailable("no request was answered"));
}

void RemoveSweepDetails(ordered_json* sweep) {
  for (ordered_json& result : (*sweep)["results"]) client::RemoveDetails(&result);
}

absl::StatusOr<int> Serve(const LoadCommandOptions& options) {
  const LoadOptions& load = options.sweep.load;
  NIBBLE_RETURN_IF_ERROR(load.Validate());
  NIBBLE_RETURN_IF_ERROR(CheckOutput(options.output));
  LoadSetup setup;
  NIBBLE_RETURN_IF_ERROR(setup.Open(load));
  absl::StatusOr<LoadResult> run = client::RunLoadTest(load, setup.model(), setup.environment());
  setup.EndProgress();
  if (absl::IsCancelled(run.status())) return kInterruptedStatus;
  if (!run.ok()) return run.status();
  const std::string report = options.output.report.empty() ? "" : client::RenderReport(run->json);
  const std::vector<std::string> warnings = client::Warnings(run->json);
  if (!options.output.save_detailed) client::RemoveDetails(&run->json);
  const std::string json = DumpJson(run->json) + "\n";
  fmt::print("{}", options.output.json ? json : client::FormatBlock(run->json));
  for (const std::string& warning : warnings) PrintMessage("nibble: warning: " + warning + "\n");
  if (options.output.save_result) {
    NIBBLE_RETURN_IF_ERROR(Save(ResultPath(options, run->json, RateName(load)), json));
  }
  if (!options.output.report.empty()) {
    NIBBLE_RETURN_IF_ERROR(Save(options.output.report, report));
  }
  return ExitStatus(run->interrupted, run->json["completed"].get<int64_t>());
}

absl::StatusOr<int> Sweep(const LoadCommandOptions& options) {
  NIBBLE_RETURN_IF_ERROR(options.sweep.Validate());
  NIBBLE_RETURN_IF_ERROR(CheckOutput(options.output));
  LoadSetup setup;
  NIBBLE_RETURN_IF_ERROR(setup.Open(options.sweep.load));
  absl::StatusOr<LoadResult> sweep = client::RunSweep(
      options.sweep, setup.model(), setup.environment(), [&](const std::string& row) {
        setup.EndProgress();
        if (!options.output.json) fmt::print("{}\n", row);
        std::fflush(stdout);
      });
  setup.EndProgress();
  if (absl::IsCancelled(sweep.status())) return kInterruptedStatus;
  if (!sweep.ok()) return sweep.status();
  int64_t completed = 0;
  for (const ordered_json& result : sweep->json["results"]) {
    completed += result["completed"].get<int64_t>();
  }
  const std::string report =
      options.output.report.empty() ? "" : client::RenderSweepReport(sweep->json["results"]);
  if (!options.output.save_detailed) RemoveSweepDetails(&sweep->json);
  const std::string json = DumpJson(sweep->json) + "\n";
  if (options.output.json) fmt::print("{}", json);
  if (options.output.save_result) {
    NIBBLE_RETURN_IF_ERROR(Save(ResultPath(options, sweep->json, "sweep"), json));
  }
  if (!options.output.report.empty()) {
    NIBBLE_RETURN_IF_ERROR(Save(options.output.report, report));
  }
  return ExitStatus(sweep->interrupted, completed);
}

int ToExitStatus(const absl::StatusOr<int>& status) {
  if (status.ok()) return *status;
  if (absl::IsCancelled(status.status())) return kInterruptedStatus;
  return Fail(status.status());
}

}  // namespace

int RunBenchServe(const LoadCommandOptions& options) { return ToExitStatus(Serve(options)); }
int RunBenchSweep(const LoadCommandOptions& options) { return ToExitStatus(Sweep(options)); }

}  // namespace nibble::cli
