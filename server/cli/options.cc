// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The command line: which command, and running it.
#include "server/cli/options.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "fmt/ranges.h"

#include "CLI/CLI.hpp"
#include "base/log.h"
#include "client/chat/chat.h"
#include "server/cli/commands.h"
#include "server/cli/version.h"

namespace nibble::cli {
namespace {

void AddChat(CLI::App* app, client::ChatOptions* options) {
  app->add_option("--url", options->url, "server to talk to")->capture_default_str();
  app->add_option("--model", options->model, "model name (default: the first one served)");
  app->add_option("--system", options->system, "system message");
  app->add_option("--temperature", options->temperature,
                  "sampling temperature (default: the server's)");
  app->add_option("--top-p", options->top_p, "nucleus sampling (default: the server's)");
  app->add_option("--seed", options->seed, "seed of the sampling");
  app->add_option("--max-tokens", options->max_tokens, "longest answer (default: what fits)");
  app->add_flag("--stats", options->stats, "print tokens and speed after each answer");
  AddClientSecurity(app, &options->security);
}

// CLI11 alone would say that a command is missing, not that it does not know the one that is there.
std::string FailureMessage(const CLI::App* app, const CLI::Error& error) {
  const std::vector<std::string> unknown = app->remaining(/*recurse=*/true);
  const bool is_missing = dynamic_cast<const CLI::RequiredError*>(&error) != nullptr;
  if (!is_missing || unknown.empty()) return CLI::FailureMessage::simple(app, error);
  return fmt::format("'{}' is not known here. {}", unknown.front(),
                     CLI::FailureMessage::simple(app, error));
}

// Without the program's name. vLLM's short names have two letters, which CLI11 does not take.
std::vector<std::string> Arguments(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = 1; i < argc; ++i) {
    std::string argument = argv[i];
    for (const auto& [brief, name] : {std::pair("-tp", "--tensor-parallel-size"),
                                      std::pair("-pp", "--pipeline-parallel-size")}) {
      if (argument == brief || argument.rfind(std::string(brief) + "=", 0) == 0) {
        argument.replace(0, 3, name);
        break;
      }
    }
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

// Results go out by fmt::print, which throws when standard output is closed or its disk is full.
int Guarded(const std::function<int()>& command) {
  try {
    return command();
  } catch (const std::system_error& error) {
    return Fail(Unavailable("writing the output: {}", error.what()));
  }
}

// "serve MODEL --port 1": what was given, but for keys, which stay out of logs.
std::string Given(const CLI::App* app) {
  std::string text = app->get_name();
  for (const CLI::Option* option : app->get_options()) {
    if (option->count() == 0) continue;
    const std::string name = option->get_name();
    if (option->get_positional()) {
      text += " " + option->as<std::string>();
    } else if (name == "--api-key") {
      text += fmt::format(" {} ({} given)", name, option->count());
    } else if (option->get_items_expected_max() == 0) {  // a flag, perhaps one with a no- before it
      text += " " + name + (option->as<bool>() ? "" : "=false");
    } else {
      text += fmt::format(" {} {}", name, fmt::join(option->reduced_results(), " "));
    }
  }
  return text;
}

}  // namespace

void PrintMessage(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

int Fail(const absl::Status& status) {
  std::string_view message(status.message().data(), status.message().size());
  while (!message.empty()) {
    const size_t end = message.find('\n');
    const std::string_view line = message.substr(0, end);
    // Lines that go on with what was said before are indented (start_error.h).
    const bool goes_on = line.substr(0, 2) == "  ";
    PrintMessage(fmt::format("{}{}\n", goes_on ? "" : "nibble: error: ", line));
    message.remove_prefix(end == std::string_view::npos ? message.size() : end + 1);
  }
  return 1;
}

int Main(int argc, char** argv) {
  CLI::App app("nibble: a server for quantized large language models", "nibble");
  app.set_version_flag("--version", std::string("nibble ") + kVersion);
  app.require_subcommand(1);
  app.fallthrough();
  app.failure_message(FailureMessage);
  // Scripts append what overrides: the last one counts. Commands take this over.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  std::string log_level = "info";
  app.add_option("--log-level", log_level, "debug, info, warning, error or off")
      ->capture_default_str();

  server::ServeConfig serve;
  CLI::App* serve_app =
      app.add_subcommand("serve", "serve a model over HTTP (OpenAI API) and gRPC");
  AddServe(serve_app, &serve);
  RankOptions rank;
  CLI::App* rank_app = app.add_subcommand(
      "rank", "one rank of a group: started by `nibble serve --tensor-parallel-size`");
  rank_app->group("");  // not in the help: nobody types it
  AddRank(rank_app, &rank);
  client::ChatOptions chat;
  CLI::App* chat_app = app.add_subcommand("chat", "talk to a running server in the terminal");
  AddChat(chat_app, &chat);
  QuantizeOptions quantize;
  CLI::App* quantize_app = app.add_subcommand("quantize", "write a quantized checkpoint");
  AddQuantize(quantize_app, &quantize);
  CLI::App* eval_app = app.add_subcommand("eval", "measure a model");
  eval_app->require_subcommand(1);
  PerplexityOptions perplexity;
  CLI::App* perplexity_app =
      eval_app->add_subcommand("perplexity", "perplexity of a text in sliding windows");
  AddPerplexity(perplexity_app, &perplexity);
  BenchOptions bench;
  std::function<int()> run_bench;
  CLI::App* bench_app = app.add_subcommand("bench", "measure speed; prints JSON");
  AddBench(bench_app, &bench, &run_bench);
  InspectOptions inspect;
  CLI::App* inspect_app = app.add_subcommand("inspect", "say what a model directory holds");
  AddInspect(inspect_app, &inspect);

  try {
    std::vector<std::string> arguments = Arguments(argc, argv);
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? 0 : 2;
  }
  log::Level level = log::Level::kInfo;
  if (!log::ParseLevel(log_level, &level)) {
    Fail(
        InvalidArgument("--log-level is '{}', want debug, info, warning, error or off", log_level));
    return 2;
  }
  log::SetLevel(level);
  if (serve_app->parsed()) {
    log::Info("nibble {}: {}", kVersion, Given(serve_app));
    return RunServe(serve);
  }
  if (rank_app->parsed()) return RunRank(rank);
  return Guarded([&] {
    if (chat_app->parsed()) return client::RunChat(chat);
    if (quantize_app->parsed()) return RunQuantize(quantize);
    if (perplexity_app->parsed()) return RunPerplexity(perplexity);
    if (bench_app->parsed()) return run_bench();
    return RunInspect(inspect);
  });
}

}  // namespace nibble::cli
