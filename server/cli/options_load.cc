// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble bench serve and nibble bench sweep.
#include <string>

#include "CLI/CLI.hpp"
#include "server/cli/load_command.h"
#include "server/cli/options.h"

namespace nibble::cli {
namespace {

using client::LoadOptions;

// One value for each time the option is given, or several after it.
CLI::Option* AddPairs(CLI::App* app, const std::string& name, std::vector<std::string>* values,
                      const std::string& description) {
  return app->add_option(name, *values, description);
}

void AddServer(CLI::App* app, LoadOptions* load) {
  CLI::Option* const url =
      app->add_option("--url,--base-url", load->url, "server of the OpenAI API")
          ->capture_default_str();
  app->add_option("--grpc", load->grpc, "HOST:PORT of nibble's gRPC API, instead of --url")
      ->excludes(url);
  app->add_flag("--grpc-tls", load->grpc_tls,
                "TLS to --grpc; also with --ca-cert, --cert or --insecure");
  app->add_option("--backend", load->backend, "openai (completions) or openai-chat")
      ->capture_default_str();
  app->add_option("--endpoint", load->endpoint,
                  "path of the requests (default: /v1/completions or /v1/chat/completions)");
  app->add_option("--model", load->model, "model name (default: the first one served)");
  app->add_option("--tokenizer", load->tokenizer,
                  "model directory with the server's tokenizer, for random prompts (default: the "
                  "server is asked)");
  AddPairs(app, "--header", &load->headers, "NAME=VALUE: header of every request");
  AddClientSecurity(app, &load->security);
  app->add_option("--ready-check-timeout-sec", load->ready_check_timeout_seconds,
                  "how long to wait for a server that is not ready")
      ->capture_default_str();
  app->add_option("--request-timeout", load->request_timeout_seconds,
                  "seconds after which a request has failed")
      ->capture_default_str();
}

void AddData(CLI::App* app, client::DatasetOptions* data) {
  app->add_option("--dataset-name", data->name,
                  "random, prefix_repetition, custom (JSON lines with prompt and perhaps "
                  "output_tokens) or timed-trace (with timestamp as well)")
      ->capture_default_str();
  app->add_option("--dataset-path", data->path, "file, of custom and timed-trace");
  app->add_option("--num-prompts", data->num_prompts, "requests (0: all of the file)")
      ->capture_default_str();
  app->add_option("--seed", data->seed, "of prompts, their order and arrivals")
      ->capture_default_str();
  app->add_flag("--disable-shuffle", data->disable_shuffle, "keep the order of prompts");
  app->add_flag("--no-oversample", data->no_oversample,
                "do not go through a file again that has fewer prompts");
  app->add_option("--random-input-len", data->random_input_len, "tokens of a random prompt")
      ->capture_default_str();
  app->add_option("--random-output-len", data->random_output_len, "tokens that answer it")
      ->capture_default_str();
  app->add_option("--random-range-ratio", data->random_range_ratio,
                  "both are drawn from length * (1 - ratio) to length * (1 + ratio)")
      ->capture_default_str();
  app->add_option("--random-prefix-len", data->random_prefix_len,
                  "tokens before these that all prompts share")
      ->capture_default_str();
  app->add_option("--prefix-repetition-prefix-len", data->prefix_len, "tokens of a prefix")
      ->capture_default_str();
  app->add_option("--prefix-repetition-suffix-len", data->suffix_len, "tokens after it")
      ->capture_default_str();
  app->add_option("--prefix-repetition-num-prefixes", data->num_prefixes,
                  "prefixes, shared by as many prompts each")
      ->capture_default_str();
  app->add_option("--prefix-repetition-output-len", data->prefix_output_len,
                  "tokens that answer it")
      ->capture_default_str();
  app->add_option("--custom-output-len", data->custom_output_len,
                  "tokens that answer a prompt of a file that does not say")
      ->capture_default_str();
}

void AddArrival(CLI::App* app, LoadOptions* load, bool with_rate, bool with_concurrency) {
  client::ArrivalOptions* const arrival = &load->arrival;
  if (with_rate) {
    app->add_option("--request-rate", arrival->request_rate, "requests a second, or inf: at once")
        ->capture_default_str();
  }
  app->add_option("--burstiness", arrival->burstiness,
                  "shape of the gamma distribution of gaps: 1 is a Poisson process, less is "
                  "burstier, inf even")
      ->capture_default_str();
  app->add_option("--ramp-up-strategy", arrival->ramp_up_strategy,
                  "linear or exponential, from --ramp-up-start-rps to --ramp-up-end-rps");
  app->add_option("--ramp-up-start-rps", arrival->start_rps, "requests a second at the start");
  app->add_option("--ramp-up-end-rps", arrival->end_rps, "requests a second at the end");
  app->add_flag_callback(
      "--no-self-timed", [load] { load->self_timed = false; },
      "a timed trace's requests come at --request-rate, not at its times");
  if (with_concurrency) {
    app->add_option("--max-concurrency", load->max_concurrency,
                    "requests in progress at most (0: no limit)")
        ->capture_default_str();
  }
  app->add_option("--num-warmups", load->num_warmups, "requests before those that are measured")
      ->capture_default_str();
}

void AddSampling(CLI::App* app, LoadOptions* load) {
  client::SamplingOptions* const sampling = &load->sampling;
  const std::string whose = " (default: the server's)";
  app->add_option("--temperature", sampling->temperature, "0: the likeliest token" + whose);
  app->add_option("--top-p", sampling->top_p, "nucleus sampling" + whose);
  app->add_option("--top-k", sampling->top_k, "likeliest tokens to choose from" + whose);
  app->add_option("--min-p", sampling->min_p, "least share of the likeliest's chance" + whose);
  app->add_option("--frequency-penalty", sampling->frequency_penalty, "OpenAI's" + whose);
  app->add_option("--presence-penalty", sampling->presence_penalty, "OpenAI's" + whose);
  app->add_option("--repetition-penalty", sampling->repetition_penalty, "factor" + whose);
  app->add_flag("--ignore-eos", load->ignore_eos,
                "answers are as long as asked for (random and timed-trace: always)");
  app->add_option("--extra-body", load->extra_body,
                  "JSON object: more members of every request's body (with --grpc of "
                  "nibble.v1.SamplingParams)");
}

void AddFigures(CLI::App* app, LoadCommandOptions* options) {
  LoadOptions* const load = &options->sweep.load;
  LoadOutput* const output = &options->output;
  AddPairs(app, "--goodput", &load->goodput,
           "ttft:MS tpot:MS e2el:MS: requests that keep these are good");
  app->add_option("--percentile-metrics", load->percentile_metrics,
                  "of ttft, tpot, itl, e2el, client_queue_time, e2el_including_client_queue "
                  "(comma-separated)")
      ->capture_default_str();
  app->add_option("--metric-percentiles", load->metric_percentiles,
                  "percentiles of these (comma-separated)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  AddPairs(app, "--metadata", &load->metadata, "KEY=VALUE: goes into the JSON");
  app->add_option("--label", load->label, "of the result (default: the backend)");
  app->add_flag("--save-result", output->save_result, "write a JSON file");
  app->add_flag("--save-detailed", output->save_detailed, "each request's own figures in the JSON");
  app->add_option("--result-dir", output->result_dir, "folder of the file, made if need be");
  app->add_option("--result-filename", output->result_filename,
                  "its name (default: of label, rate, model and date)");
  app->add_option("--report", output->report, "write an HTML file with plots")
      ->check([](const std::string& path) { return path.empty() ? "want a file, got ''" : ""; });
  app->add_flag("--json", output->json, "the JSON to standard output, where the figures would be");
}

}  // namespace

void AddClientSecurity(CLI::App* app, client::ClientSecurity* security) {
  app->add_option("--api-key", security->api_key,
                  "key of a guarded server (or NIBBLE_API_KEY in the environment)");
  app->add_option("--ca-cert", security->ca_cert,
                  "PEM file: who signed the server's certificate (default: the system's list)");
  app->add_option("--cert", security->cert, "PEM file: this client's certificate");
  app->add_option("--key", security->key, "PEM file: its key");
  app->add_flag("--insecure", security->insecure, "take any certificate of the server");
  app->parse_complete_callback([security] { client::TakeApiKeyFromEnvironment(security); });
}

void AddBenchServe(CLI::App* app, BenchOptions* options) {
  LoadOptions* const load = &options->load.sweep.load;
  AddServer(app, load);
  AddData(app, &load->dataset);
  AddArrival(app, load, /*with_rate=*/true, /*with_concurrency=*/true);
  AddSampling(app, load);
  AddFigures(app, &options->load);
}

void AddBenchSweep(CLI::App* app, BenchOptions* options) {
  client::SweepOptions* const sweep = &options->load.sweep;
  app->add_option("--request-rates", sweep->request_rates,
                  "a run for each of these requests a second (comma-separated)")
      ->delimiter(',')
      ->allow_extra_args(false);
  app->add_option("--max-concurrencies", sweep->max_concurrencies,
                  "a run for each of these limits of requests in progress (comma-separated)")
      ->delimiter(',')
      ->allow_extra_args(false);
  AddServer(app, &sweep->load);
  AddData(app, &sweep->load.dataset);
  AddArrival(app, &sweep->load, /*with_rate=*/false, /*with_concurrency=*/true);
  AddSampling(app, &sweep->load);
  AddFigures(app, &options->load);
}

}  // namespace nibble::cli
