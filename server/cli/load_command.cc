// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/load_command.h"

#include <algorithm>
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
                    .say =
                        [this](const std::string& line) {
                          bar_.reset();
                          PrintMessage("nibble: " + line + "\n");
                        },
                    .date = {},
                    .prompt_progress =
                        [this](int64_t done, int64_t total) {
                          if (!bar_.has_value()) bar_.emplace("prompts", "made");
                          bar_->Update(done, total);
                          if (done == total) bar_.reset();
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

// The files that become of a test. They are looked at before it begins: nobody measures for an hour
// to find that the folder is not there.
class OutputFiles {
 public:
  explicit OutputFiles(const LoadOutput& output) : output_(output) {}

  // What can be told of the options alone.
  absl::Status Validate() const {
    if (!output_.save_result && (!output_.result_dir.empty() || !output_.result_filename.empty())) {
      return InvalidArgument("--result-dir and --result-filename go with --save-result");
    }
    if (output_.report.empty()) return absl::OkStatus();
    return Annotate(CheckReplaceable(output_.report), "--report");
  }

  // `what` was measured, of which vLLM's name of the file says so.
  absl::Status Prepare(const LoadOptions& load, const std::string& what, const std::string& model,
                       const std::string& date) {
    if (!output_.save_result) return absl::OkStatus();
    if (!output_.result_dir.empty()) {
      std::error_code error;
      std::filesystem::create_directories(output_.result_dir, error);
      if (error) return Unavailable("--result-dir {}: {}", output_.result_dir, error.message());
    }
    std::string name = output_.result_filename;
    if (name.empty()) {
      name = fmt::format("{}-{}-{}-{}.json", load.label.empty() ? load.backend_name() : load.label,
                         what, model.substr(model.rfind('/') + 1), date);
      std::replace(name.begin(), name.end(), '/', '-');
    }
    result_ = (std::filesystem::path(output_.result_dir) / name).string();
    return Annotate(CheckReplaceable(result_), "--save-result");
  }

  // Both, whatever becomes of the other.
  absl::Status Write(const std::string& json, const std::string& report) const {
    std::string errors;
    for (const auto& [path, text] :
         {std::pair(result_, &json), std::pair(output_.report, &report)}) {
      if (path.empty()) continue;
      const absl::Status status = ReplaceFile(path, *text);
      if (status.ok()) {
        PrintMessage(fmt::format("nibble: wrote {}\n", path));
      } else {
        errors += (errors.empty() ? "" : "\n") + std::string(status.message());
      }
    }
    return errors.empty() ? absl::OkStatus() : absl::UnavailableError(errors);
  }

 private:
  const LoadOutput& output_;
  std::string result_;  // empty: none
};

int ExitStatus(bool was_interrupted, int64_t completed) {
  if (was_interrupted) return kInterruptedStatus;
  if (completed > 0) return 0;
  return Fail(Unavailable("no request was answered"));
}

absl::StatusOr<int> Serve(const LoadCommandOptions& options) {
  const LoadOptions& load = options.sweep.load;
  OutputFiles files(options.output);
  NIBBLE_RETURN_IF_ERROR(load.Validate());
  NIBBLE_RETURN_IF_ERROR(files.Validate());
  LoadSetup setup;
  NIBBLE_RETURN_IF_ERROR(setup.Open(load));
  client::LoadEnvironment environment = setup.environment();
  environment.date = client::DateNow();
  environment.with_details = options.output.save_detailed || !options.output.report.empty();
  NIBBLE_RETURN_IF_ERROR(files.Prepare(load, RateName(load), setup.model().id, environment.date));
  absl::StatusOr<LoadResult> run = client::RunLoadTest(load, setup.model(), environment);
  setup.EndProgress();
  if (!run.ok()) return run.status();
  const std::string report = options.output.report.empty() ? "" : client::RenderReport(run->json);
  if (!options.output.save_detailed) client::RemoveDetails(&run->json);
  const std::string json = DumpJson(run->json) + "\n";
  fmt::print("{}", options.output.json ? json : client::FormatBlock(run->json));
  for (const std::string& warning : client::Warnings(run->json)) {
    PrintMessage("nibble: warning: " + warning + "\n");
  }
  NIBBLE_RETURN_IF_ERROR(files.Write(json, report));
  return ExitStatus(run->interrupted, run->json["completed"].get<int64_t>());
}

absl::StatusOr<int> Sweep(const LoadCommandOptions& options) {
  OutputFiles files(options.output);
  NIBBLE_RETURN_IF_ERROR(options.sweep.Validate());
  NIBBLE_RETURN_IF_ERROR(files.Validate());
  LoadSetup setup;
  NIBBLE_RETURN_IF_ERROR(setup.Open(options.sweep.load));
  client::LoadEnvironment environment = setup.environment();
  environment.date = client::DateNow();
  environment.with_details = options.output.save_detailed;
  NIBBLE_RETURN_IF_ERROR(
      files.Prepare(options.sweep.load, "sweep", setup.model().id, environment.date));
  const client::SweepResult sweep =
      client::RunSweep(options.sweep, setup.model(), environment, [&](const std::string& row) {
        setup.EndProgress();
        if (!options.output.json) fmt::print("{}\n", row);
        std::fflush(stdout);
      });
  setup.EndProgress();
  const ordered_json& results = sweep.json["results"];
  if (results.empty()) return sweep.interrupted ? kInterruptedStatus : Fail(sweep.status);
  int64_t completed = 0;
  for (const ordered_json& result : results) completed += result["completed"].get<int64_t>();
  const std::string json = DumpJson(sweep.json) + "\n";
  if (options.output.json) fmt::print("{}", json);
  const absl::Status written =
      files.Write(json, options.output.report.empty() ? "" : client::RenderSweepReport(results));
  if (!sweep.status.ok()) Fail(sweep.status);
  NIBBLE_RETURN_IF_ERROR(written);
  return sweep.status.ok() ? ExitStatus(sweep.interrupted, completed) : 1;
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
