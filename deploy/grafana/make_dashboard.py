#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Writes nibble.json, the Grafana dashboard, beside this file: python3 make_dashboard.py [--check]

A row is a list of panels, a panel a title, a unit and queries; identities and places on the grid follow from the order.
With --check nothing is written, and the exit status is 1 where nibble.json is not what would be.
"""
import argparse
import json
import pathlib
import sys

TARGET = pathlib.Path(__file__).with_name("nibble.json")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRID_WIDTH = 24

# What selects the series: those of the engine have a model, those of the process and of HTTP have none.
ENGINE = 'job=~"$job", instance=~"$instance", model_name=~"$model"'
PROCESS = 'job=~"$job", instance=~"$instance"'
OF_MODEL = f"and on (job, instance) nibble:ready{{{ENGINE}}}"
RATE = "$__rate_interval"


def rate(metric, labels=ENGINE, by=""):
    summed = f"sum by ({by})" if by else "sum"
    return f"{summed} (rate({metric}{{{labels}}}[{RATE}]))"


def quantile(q, metric, labels=ENGINE, by="le"):
    return f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


def mean(metric):
    return f"{rate(metric + '_sum')} / {rate(metric + '_count')}"


def query(expression, legend="", **options):
    return {"expr": expression, "legendFormat": legend or "__auto", **options}


def panel(kind, title, description, queries, unit, width, height, defaults, options):
    targets = [{"datasource": DATASOURCE, "editorMode": "code", "range": kind != "stat", "instant": kind == "stat",
                "refId": chr(ord("A") + index), **target} for index, target in enumerate(queries)]
    return {"type": kind, "title": title, "description": description, "datasource": DATASOURCE, "targets": targets,
            "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": []}, "options": options,
            "gridPos": {"w": width, "h": height}}


def lines(title, description, queries, unit="short", width=8, height=8, stacked=False, top=None):
    """Lines over time; `top` is the axis's end where the values have one."""
    custom = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 25 if stacked else 8, "showPoints": "never",
              "spanNulls": False, "stacking": {"mode": "normal" if stacked else "none", "group": "A"}}
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}, "min": 0, **({} if top is None else {"max": top})}
    options = {"legend": {"displayMode": "table", "placement": "bottom", "showLegend": True,
                          "calcs": ["mean", "max", "lastNotNull"]},
               "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel("timeseries", title, description, queries, unit, width, height, defaults, options)


def stat(title, description, expression, unit="short", steps=None, mappings=None, width=4, text=False):
    """One number. `steps` are colours from values on, [(None, "green"), (0.8, "red")]; `text` shows the legend."""
    steps = steps or [(None, "text")]
    thresholds = {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}
    defaults = {"thresholds": thresholds, "color": {"mode": "thresholds"}, "mappings": mappings or []}
    options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value",
               "graphMode": "none", "justifyMode": "auto", "textMode": "name" if text else "value"}
    target = query(expression, "{{version}}" if text else "")
    return panel("stat", title, description, [target], unit, width, 4, defaults, options)


def heatmap(title, description, metric, unit="s", width=8):
    queries = [query(f"sum by (le) (increase({metric}_bucket{{{ENGINE}}}[{RATE}]))", "{{le}}", format="heatmap")]
    options = {"calculate": False, "cellGap": 1, "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
               "yAxis": {"unit": unit, "axisPlacement": "left"}, "tooltip": {"mode": "single", "yHistogram": True},
               "legend": {"show": True}, "cellValues": {"unit": "short"}, "filterValues": {"le": 1e-9}}
    return panel("heatmap", title, description, queries, unit, width, 8, {}, options)


def state_timeline(title, description, queries, mappings, width=12):
    defaults = {"custom": {"fillOpacity": 80, "lineWidth": 0}, "mappings": mappings, "color": {"mode": "thresholds"},
                "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": "red"}, {"value": 1, "color": "green"}]}}
    options = {"mergeValues": True, "showValue": "never", "rowHeight": 0.85,
               "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "single"}}
    return panel("state-timeline", title, description, queries, "none", width, 8, defaults, options)


def words(**by_value):
    """Words in place of the values 0 and 1: words(zero="down", one="up")."""
    return [{"type": "value", "options": {"0": {"text": by_value["zero"], "color": "red"},
                                          "1": {"text": by_value["one"], "color": "green"}}}]


def quantiles(title, metric, description, width=8):
    return lines(title, description,
                 [query(quantile(q, metric), name) for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))]
                 + [query(mean(metric), "mean")], "s", width)


OVERVIEW = [
    stat("Up", "Servers that Prometheus can scrape, of those it knows. One that loads its model is up, and not ready.",
         f"sum(up{{{PROCESS}}}) / count(up{{{PROCESS}}})", "percentunit", [(None, "red"), (0.5, "orange"), (1, "green")]),
    stat("Ready", "Servers whose /health says ready, of those that are up.",
         f"sum(nibble:ready{{{ENGINE}}}) / count(nibble:ready{{{ENGINE}}})", "percentunit",
         [(None, "red"), (0.5, "orange"), (1, "green")]),
    stat("Requests", "Sequences finished per second, for whatever reason.", rate("vllm:request_success_total"), "reqps"),
    stat("Output", "Tokens generated per second.", rate("vllm:generation_tokens_total"), "short"),
    stat("Input", "Prompt tokens per second, those found in the prefix cache too.", rate("vllm:prompt_tokens_total"), "short"),
    stat("Version", "Of the servers; more than one while a rollout goes on.",
         f"count by (version) (nibble:build_info{{{ENGINE}}})", text=True),
    lines("Tokens per second", "Prompt tokens count when a sequence gets its first token, each prompt once.",
          [query(rate("vllm:generation_tokens_total"), "output"),
           query(rate("vllm:prompt_tokens_by_source_total", by="source"), "input, {{source}}")], "short"),
    lines("Requests per second by how they ended",
          "stop and length are answers; abort is a client that left or a deadline; error is a fault of the server.",
          [query(rate("vllm:request_success_total", by="finished_reason"), "{{finished_reason}}")], "reqps", stacked=True),
    state_timeline("Health", "What /health says of each server: a state is shown while it lasts.",
                   [query(f"max by (instance, state) (nibble:health_state{{{ENGINE}}}) > 0", "{{instance}} {{state}}")],
                   words(zero="no", one="yes"), width=8),
]

LATENCY = [
    quantiles("Time to first token", "vllm:time_to_first_token_seconds", "From queued to the first token."),
    quantiles("Inter-token latency", "vllm:inter_token_latency_seconds", "Between two tokens of a sequence."),
    quantiles("End to end", "vllm:e2e_request_latency_seconds", "From queued to the last token."),
    heatmap("Time to first token", "How many sequences took how long.", "vllm:time_to_first_token_seconds"),
    heatmap("Inter-token latency", "How many tokens took how long.", "vllm:inter_token_latency_seconds"),
    heatmap("End to end", "How many sequences took how long.", "vllm:e2e_request_latency_seconds"),
    quantiles("Queue", "vllm:request_queue_time_seconds", "From queued to scheduled. The finest bucket is 0.3 s."),
    quantiles("Prefill", "vllm:request_prefill_time_seconds",
              "From scheduled to the first token. The finest bucket is 0.3 s."),
    quantiles("Decode", "vllm:request_decode_time_seconds",
              "From the first to the last token. The finest bucket is 0.3 s."),
    lines("Where the time of a sequence goes", "Means per sequence, stacked.",
          [query(mean(f"vllm:request_{part}_time_seconds"), part) for part in ("queue", "prefill", "decode")], "s", width=12,
          stacked=True),
    quantiles("Time per output token, per sequence", "vllm:request_time_per_output_token_seconds",
              "Mean of each sequence after its first token; quantiles over sequences.", width=12),
]

REQUESTS = [
    heatmap("Prompt lengths", "Tokens per sequence.", "vllm:request_prompt_tokens", "short"),
    heatmap("Answer lengths", "Tokens per sequence.", "vllm:request_generation_tokens", "short"),
    heatmap("max_tokens asked for", "Per sequence.", "vllm:request_params_max_tokens", "short"),
]

SCHEDULER = [
    lines("Sequences", "Running: in the batch. Waiting: queued for a place or for KV blocks.",
          [query(f"sum(vllm:num_requests_running{{{ENGINE}}})", "running"),
           query(f"sum(vllm:num_requests_waiting{{{ENGINE}}})", "waiting"),
           query(f"sum(nibble:max_num_seqs{{{ENGINE}}})", "running at most")]),
    lines("Queue in use", "Waiting sequences of those that may wait; at 100 % requests are refused (429).",
          [query(f"vllm:num_requests_waiting{{{ENGINE}}} / nibble:max_queued_requests{{{ENGINE}}}", "{{instance}}")],
          "percentunit", top=1),
    lines("Preemptions per second", "Sequences that lost their KV blocks to others, or with a rank, and are recomputed.",
          [query(rate("vllm:num_preemptions_total"), "preempted"),
           query(rate("nibble:recomputed_sequences_total"), "lost with a rank")]),
    heatmap("Tokens per step", "Prompt and output tokens together: how full the batches are.", "vllm:iteration_tokens_total",
            "short"),
    quantiles("Time per step", "nibble:step_seconds", "From a step's plan to its tokens; steps may overlap."),
    lines("Since the last step", "While sequences run: what grows here is an engine that does not get on.",
          [query(f"nibble:step_age_seconds{{{ENGINE}}}", "{{instance}}")], "s"),
]

CACHE = [
    lines("KV cache in use", "Blocks held by sequences; blocks that only the prefix cache keeps are free.",
          [query(f"vllm:kv_cache_usage_perc{{{ENGINE}}}", "{{instance}}")], "percentunit", top=1),
    lines("Prefix cache hits", "Tokens found, of those looked up.",
          [query(f"{rate('vllm:prefix_cache_hits_total')} / {rate('vllm:prefix_cache_queries_total')}", "hits")],
          "percentunit", top=1),
    lines("Prompt tokens by source", "local_cache_hit was found in the prefix cache, local_compute was computed.",
          [query(rate("vllm:prompt_tokens_by_source_total", by="source"), "{{source}}")], "short", stacked=True),
]

HTTP = [
    lines("Requests by route", "Probes and scrapes too.",
          [query(rate("http_requests_total", PROCESS, "handler"), "{{handler}}")], "reqps"),
    lines("Requests by status", "429: the queue is full. 503: draining, loading, no connection left, ranks lost for too long.",
          [query(rate("http_requests_total", PROCESS, "status"), "{{status}}")], "reqps", stacked=True),
    lines("Duration by route, p99", "From the whole request to the whole answer.",
          [query(quantile(0.99, "http_request_duration_seconds", PROCESS, "le, handler"), "{{handler}}")], "s"),
    lines("gRPC calls by status", "Of all methods.",
          [query(rate("grpc_server_handled_total", PROCESS, "grpc_code"), "{{grpc_code}}")], "reqps", stacked=True),
    lines("gRPC duration by method, p99", "From a call's start to its end.",
          [query(quantile(0.99, "grpc_server_handling_seconds", PROCESS, "le, grpc_method"), "{{grpc_method}}")], "s"),
    lines("Connections", "Open connections of the HTTP and gRPC servers.",
          [query(f"nibble:http_connections{{{ENGINE}}}", "{{instance}}"),
           query(f"nibble:grpc_connections{{{ENGINE}}}", "{{instance}} gRPC")]),
    lines("Held requests", "Bytes of HTTP requests that are not answered yet.",
          [query(f"nibble:http_buffered_bytes{{{ENGINE}}}", "{{instance}}")], "bytes"),
    lines("Certificate ends in", "Until the certificate that new connections get is over.",
          [query(f"nibble:tls_certificate_expiry_timestamp_seconds{{{ENGINE}}} - time()", "{{instance}}")], "s"),
    lines("Open files", "Of those that may be open: connections are files.",
          [query(f"process_open_fds{{{PROCESS}}} / process_max_fds{{{PROCESS}}} {OF_MODEL}", "{{instance}}")], "percentunit"),
]

PROCESSES = [
    lines("Memory", "Resident memory of the serving process; ranks are processes of their own.",
          [query(f"process_resident_memory_bytes{{{PROCESS}}} {OF_MODEL}", "{{instance}}")], "bytes"),
    lines("CPUs", "CPU seconds per second of the serving process.",
          [query(f"rate(process_cpu_seconds_total{{{PROCESS}}}[{RATE}]) {OF_MODEL}", "{{instance}}")]),
    lines("Running for", "Since the process started.",
          [query(f"time() - process_start_time_seconds{{{PROCESS}}} {OF_MODEL}", "{{instance}}")], "s"),
]

RANKS = [
    state_timeline("Ranks", "Which ranks take part in the group. None where the model is in the serving process.",
                   [query(f"nibble:rank_up{{{ENGINE}}}", "{{instance}} rank {{rank}} on node {{node}}")],
                   words(zero="lost", one="up")),
    lines("Ranks lost", "By reason, within the last hour: killed, exited, silent, unreachable, hung, failed.",
          [query(f"sum by (node, rank, reason) (increase(nibble:rank_losses_total{{{ENGINE}}}[1h])) > 0",
                 "rank {{rank}} on node {{node}}: {{reason}}")], width=12),
    lines("Group formations", "Times that the group was formed since the server started; 1 is the start itself.",
          [query(f"nibble:group_formations_total{{{ENGINE}}}", "{{instance}}")]),
    lines("Outage", "Share of time without a whole group: sequences wait meanwhile.",
          [query(f"rate(nibble:outage_seconds_total{{{ENGINE}}}[{RATE}])", "{{instance}}")], "percentunit", top=1),
    lines("All-reduce", "Which algorithm and codec carry sums of up to so many bytes.",
          [query(f"count by (up_to_bytes, algorithm, codec) (nibble:all_reduce_info{{{ENGINE}}})",
                 "up to {{up_to_bytes}} bytes: {{algorithm}}, {{codec}}")]),
]

EXPERTS = [
    lines("Balance of the expert ranks", "Mean by maximum of the ranks' tokens, by layer: 1 is ideal.",
          [query(f"min by (layer) (nibble:moe_balancedness{{{ENGINE}}})", "layer {{layer}}")], "percentunit", width=12, top=1),
    lines("Most used experts", "Share of a layer's tokens, the ten largest.",
          [query(f"topk(10, sum by (layer, expert) (rate(nibble:moe_expert_tokens_total{{{ENGINE}}}[{RATE}])) / on (layer) "
                 f"group_left sum by (layer) (rate(nibble:moe_expert_tokens_total{{{ENGINE}}}[{RATE}])))",
                 "layer {{layer}} expert {{expert}}")], "percentunit", width=12),
]

# (title, panels, collapsed at first)
ROWS = [("Overview", OVERVIEW, False), ("Latency", LATENCY, False), ("Scheduler", SCHEDULER, False),
        ("KV cache and prefix hits", CACHE, False), ("HTTP and gRPC", HTTP, False), ("Requests", REQUESTS, True),
        ("Process", PROCESSES, True), ("Ranks", RANKS, True), ("Experts", EXPERTS, True)]


def variable(name, label, metric, selector, key):
    text = f"label_values({metric}{{{selector}}}, {key})"
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "definition": text,
            "query": {"query": text, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}


def annotation(name, expression, title, color):
    return {"name": name, "datasource": DATASOURCE, "enable": True, "expr": expression, "titleFormat": title, "step": "30s",
            "iconColor": color}


def placed(panels, top, next_id):
    """The panels from left to right in lines of the grid; also the row below them and the next identity."""
    left, height = 0, 0
    for item in panels:
        size = item["gridPos"]
        if left + size["w"] > GRID_WIDTH:
            left, top, height = 0, top + height, 0
        item["gridPos"] = {"x": left, "y": top, **size}
        item["id"] = next_id
        left, height, next_id = left + size["w"], max(height, size["h"]), next_id + 1
    return panels, top + height, next_id


def dashboard():
    panels, top, next_id = [], 0, 1
    for title, content, is_collapsed in ROWS:
        row = {"type": "row", "title": title, "id": next_id, "collapsed": is_collapsed, "panels": [],
               "gridPos": {"x": 0, "y": top, "w": GRID_WIDTH, "h": 1}}
        content, below, next_id = placed(content, top + 1, next_id + 1)
        panels.append(row)
        if is_collapsed:
            row["panels"], top = content, top + 1
        else:
            panels, top = panels + content, below
    return {
        "uid": "nibble", "title": "nibble", "description": "Inference servers: what clients get, and why.",
        "tags": ["nibble", "inference"], "schemaVersion": 38, "version": 1, "editable": True, "graphTooltip": 1,
        "refresh": "10s", "time": {"from": "now-30m", "to": "now"}, "timezone": "browser", "links": [],
        "annotations": {"list": [
            annotation("Starts", f"changes(process_start_time_seconds{{{PROCESS}}}[1m]) > 0 {OF_MODEL}",
                       "{{instance}} was started", "blue"),
            annotation("Ranks lost", f"increase(nibble:rank_losses_total{{{ENGINE}}}[1m]) > 0",
                       "rank {{rank}} on node {{node}}: {{reason}}", "red")]},
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1,
             "current": {}, "multi": False, "includeAll": False},
            variable("job", "Job", "nibble:ready", "", "job"),
            variable("model", "Model", "nibble:ready", 'job=~"$job"', "model_name"),
            variable("instance", "Instance", "nibble:ready", 'job=~"$job", model_name=~"$model"', "instance")]},
        "panels": panels,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true")
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not parser.parse_args().check:
        TARGET.write_text(text)
    elif not TARGET.is_file() or TARGET.read_text() != text:
        sys.exit(f"{TARGET.name} is not what {pathlib.Path(__file__).name} writes: run it")


if __name__ == "__main__":
    main()
