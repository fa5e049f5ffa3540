// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options of nibble serve: keys, TLS, limits, the request log.
#include "CLI/CLI.hpp"
#include "server/cli/options.h"

namespace nibble::cli {

void AddGuardOptions(CLI::App* app, server::GuardOptions* options) {
  app->add_option("--api-key", options->api_keys,
                  "key that clients must send (Authorization: Bearer KEY); may be given several "
                  "times. Other users of this host see it in the list of processes: "
                  "--api-key-file, or NIBBLE_API_KEY in the environment, is better")
      ->allow_extra_args(false);
  app->add_option("--api-key-file", options->api_key_file,
                  "file with one such key a line (# begins a comment line), read again when it "
                  "changes");
  app->add_option("--ssl-certfile", options->ssl_certfile,
                  "PEM file: the server's certificate chain; HTTP and gRPC then speak TLS. This "
                  "and the next two are read again when they change");
  app->add_option("--ssl-keyfile", options->ssl_keyfile, "PEM file: its key");
  app->add_option("--ssl-ca-certs", options->ssl_ca_certs,
                  "PEM file: who signs clients' certificates");
  app->add_option("--ssl-cert-reqs", options->ssl_cert_reqs,
                  "whether clients show a certificate: none, optional, required")
      ->capture_default_str();
  app->add_option("--max-header-bytes", options->max_header_bytes,
                  "header of an HTTP request, metadata of a gRPC call; more is refused (431)")
      ->capture_default_str();
  app->add_option("--max-connections", options->max_connections,
                  "open HTTP connections, and as many of gRPC; more are refused (503) or closed. "
                  "Half of the files that the process may open (ulimit -n) are for each")
      ->capture_default_str();
  app->add_option("--http-read-timeout", options->http_read_timeout_seconds,
                  "seconds in which an HTTP request must arrive (408), and a client that takes "
                  "nothing of its answer is dropped; idle connections close after them")
      ->capture_default_str();
  app->add_option("--request-timeout", options->request_timeout_seconds,
                  "seconds after which a generation ends with 504 / DEADLINE_EXCEEDED (0: never); "
                  "a request may ask for less by the header x-request-timeout")
      ->capture_default_str();
  app->add_option("--request-log", options->request_log,
                  "file for one line of JSON a request, at its end (-: standard error); opened "
                  "again on SIGHUP, and when it was renamed");
  app->add_flag("--request-log-prompts", options->request_log_prompts,
                "with --request-log, prompts and outputs too");
}

}  // namespace nibble::cli
