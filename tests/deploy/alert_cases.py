# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Every alert with series in which it fires and series in which it does not, one value a minute.

Values are promtool's: "5+0x30" is 5 thirty-one times, "0+2x30" counts up by 2. Beside them a server is ready all the time,
but where a case says otherwise.
"""
import dataclasses

SERVER = 'job="nibble", instance="a:8000"'
MODEL = f'{SERVER}, model_name="stories", engine="0"'
GROUP = f'{SERVER}, model_name="stories"'
OTHER = 'job="vllm", instance="b:8000", model_name="other", engine="0"'  # not nibble: nothing of it may fire
READY = {f"nibble:ready{{{MODEL}}}": "1+0x120"}


@dataclasses.dataclass
class Case:
    minutes: int  # when to look
    fires: dict
    quiet: dict
    ready: dict = dataclasses.field(default_factory=lambda: READY)
    quiet_ready: dict = dataclasses.field(default_factory=lambda: READY)


def health(is_ready, **states):
    """nibble:ready, and the states of /health that are 1 at some time."""
    return {f"nibble:ready{{{MODEL}}}": is_ready,
            **{f'nibble:health_state{{{MODEL}, state="{state}"}}': values for state, values in states.items()}}


def http(status, handler="/v1/completions", namespace="a"):
    return f'http_requests_total{{{SERVER}, namespace="{namespace}", handler="{handler}", method="POST", status="{status}"}}'


def grpc(code):
    return f'grpc_server_handled_total{{{SERVER}, grpc_service="nibble.v1.Nibble", grpc_method="Generate", grpc_code="{code}"}}'


def finished(reason, labels=MODEL):
    return f'vllm:request_success_total{{{labels}, finished_reason="{reason}"}}'


def histogram(name, labels=MODEL, **per_minute):
    """Buckets that grow: histogram("x", le_5=80, le_10=100)."""
    buckets = {key.removeprefix("le_").replace("_", "."): count for key, count in per_minute.items()}
    buckets["+Inf"] = max(per_minute.values())
    return {f'{name}_bucket{{{labels}, le="{bound}"}}': f"0+{count}x60" for bound, count in buckets.items()}


def versions(*names):
    return {f'nibble:build_info{{job="nibble", instance="{index}:8000", version="{name}"}}': "1+0x120"
            for index, name in enumerate(names)}


CASES = {
    "NibbleDown": Case(10, {f"up{{{SERVER}}}": "0+0x20"}, {f"up{{{SERVER}}}": "1 0 0 1+0x20", 'up{job="node"}': "0+0x20"}),
    "NibbleAbsent": Case(10, {"up": "0+0x20"}, {}, ready={}),
    "NibbleNotReady": Case(10, {}, {}, ready=health("0+0x20", broken="1+0x20"),
                           quiet_ready=health("0 0 0 1+0x20", ready="0 0 0 1+0x20", stalled="1 1 1 0+0x20")),
    "NibbleLoading": Case(30, {}, {}, ready=health("0+0x60", loading="1+0x60"),
                          quiet_ready=health("0+0x15 1+0x40", ready="0+0x15 1+0x40", loading="1+0x15 0+0x40")),
    "NibbleStepStalled": Case(5, {f"nibble:step_age_seconds{{{MODEL}}}": "0 0 40 100 160 220"},
                              {f"nibble:step_age_seconds{{{MODEL}}}": "0 10 25 1 0 2"}),
    "NibbleRestarting": Case(15, {f"process_start_time_seconds{{{SERVER}}}": "1 1 2 2 3 4+0x20"},
                             {f"process_start_time_seconds{{{SERVER}}}": "1 1 2+0x20",
                              f"process_start_time_seconds{{{OTHER}}}": "0+1x20"}),
    "NibbleServerErrors": Case(15, {http(200): "0+90x20", http(500): "0+10x20"},
                               {http(200): "0+99x20", http(500): "0+1x20", http(503, "/health"): "0+100x20",
                                http(503, "/health/ready"): "0+100x20"}),
    "NibbleSequencesFail": Case(5, {finished("error"): "0 0 0 1 1 1"},
                                {finished("error"): "2+0x20", finished("stop"): "0+9x20"}),
    "NibbleRequestsRefused": Case(15, {http(200): "0+95x20", http(429): "0+5x20"}, {http(200): "0+95x20"}),
    "NibbleQueueAlmostFull": Case(5, {f"vllm:num_requests_waiting{{{MODEL}}}": "900+0x20",
                                      f"nibble:max_queued_requests{{{MODEL}}}": "1000+0x20"},
                                  {f"vllm:num_requests_waiting{{{MODEL}}}": "700+0x20",
                                   f"nibble:max_queued_requests{{{MODEL}}}": "1000+0x20"}),
    "NibbleQueueTimeHigh": Case(20, histogram("vllm:request_queue_time_seconds", le_5=80, le_10=100),
                                {**histogram("vllm:request_queue_time_seconds", le_5=95, le_10=100),
                                 **histogram("vllm:request_queue_time_seconds", labels=OTHER, le_5=0, le_10=100)}),
    "NibbleFirstTokenSlow": Case(20, histogram("vllm:time_to_first_token_seconds", le_10=90, le_20=100),
                                 histogram("vllm:time_to_first_token_seconds", le_10=1000, le_20=1001)),
    "NibbleTokensSlow": Case(20, histogram("vllm:inter_token_latency_seconds", le_0_5=90, le_0_75=100),
                             histogram("vllm:inter_token_latency_seconds", le_0_5=1000, le_0_75=1001)),
    "NibbleKvCacheFull": Case(15, {f"vllm:kv_cache_usage_perc{{{MODEL}}}": "0.99+0x20"},
                              {f"vllm:kv_cache_usage_perc{{{MODEL}}}": "0.99 0.99 0.99 0.9+0x20",
                               f"vllm:kv_cache_usage_perc{{{OTHER}}}": "0.99+0x20"}),
    "NibblePreemptions": Case(20, {f"vllm:num_preemptions_total{{{MODEL}}}": "0+2x30", finished("stop"): "0+10x30"},
                              {f"vllm:num_preemptions_total{{{MODEL}}}": "0+1x30", finished("stop"): "0+100x30"}),
    "NibbleClientsLeave": Case(40, {finished("abort"): "0+5x60", finished("stop"): "0+5x60"},
                               {finished("abort"): "0+1x60", finished("stop"): "0+9x60"}),
    "NibbleRankDown": Case(5, {f'nibble:rank_up{{{GROUP}, node="0", rank="0"}}': "1+0x20",
                               f'nibble:rank_up{{{GROUP}, node="1", rank="1"}}': "1 0+0x20"},
                           {f'nibble:rank_up{{{GROUP}, node="0", rank="0"}}': "1+0x20"}),
    "NibbleRanksLost": Case(50, {f'nibble:rank_losses_total{{{GROUP}, node="1", rank="1", reason="killed"}}': "0 1 2 3+0x60"},
                            {f'nibble:rank_losses_total{{{GROUP}, node="1", rank="1", reason="killed"}}': "0 1+0x60"}),
    "NibbleGroupOutage": Case(40, {f"nibble:outage_seconds_total{{{GROUP}}}": "0+6x60"},
                              {f"nibble:outage_seconds_total{{{GROUP}}}": "0+1x60"}),
    "NibbleExpertsUnbalanced": Case(40, {f'nibble:moe_balancedness{{{GROUP}, layer="0"}}': "0.9+0x60",
                                         f'nibble:moe_balancedness{{{GROUP}, layer="1"}}': "0.3+0x60"},
                                    {f'nibble:moe_balancedness{{{GROUP}, layer="0"}}': "0.7+0x60"}),
    "NibbleFilesAlmostUsedUp": Case(10, {f"process_open_fds{{{SERVER}}}": "90+0x20",
                                         f"process_max_fds{{{SERVER}}}": "100+0x20"},
                                    {f"process_open_fds{{{SERVER}}}": "50+0x20",
                                     f"process_max_fds{{{SERVER}}}": "100+0x20"}),
    # promtool's time begins at 0: a week are 604800 seconds.
    "NibbleCertificateExpires": Case(90, {f"nibble:tls_certificate_expiry_timestamp_seconds{{{MODEL}}}": "604800+0x120"},
                                     {f"nibble:tls_certificate_expiry_timestamp_seconds{{{MODEL}}}": "700000+0x120"}),
    "NibbleKeyFileStale": Case(10, {f"nibble:api_key_file_stale{{{MODEL}}}": "0 1+0x20"},
                               {f"nibble:api_key_file_stale{{{MODEL}}}": "0 1 1 0+0x20"}),
    "NibbleVersionsDiffer": Case(90, versions("1.0", "1.1"), versions("1.1", "1.1")),
}


# More situations of the same alerts, and some in which none may fire.
SITUATIONS = [
    # One minute alive, then five of Kubernetes' back-off, again and again.
    ("NibbleRestarting", Case(50, {f"process_start_time_seconds{{{SERVER}}}": " _ _ _ _ _ ".join(map(str, range(10)))},
                              {f"process_start_time_seconds{{{SERVER}}}": "1+0x20 2+0x60"})),
    ("NibbleServerErrors", Case(15, {grpc("OK"): "0+9x20", grpc("INTERNAL"): "0+1x20"},
                                {grpc("OK"): "0+9x20", grpc("INVALID_ARGUMENT"): "0+9x20", grpc("UNAUTHENTICATED"): "0+9x20"})),
    ("NibbleRequestsRefused", Case(15, {grpc("OK"): "0+9x20", grpc("RESOURCE_EXHAUSTED"): "0+1x20"}, {grpc("OK"): "0+9x20"})),
    (None, Case(10, {}, {}, quiet_ready=health("0+0x20", draining="1+0x20"))),
    # Another release with the same job and model: neither dilutes the other's errors, nor do their versions differ.
    ("NibbleServerErrors", Case(15, {http(200, namespace="a"): "0+900x20", http(500, namespace="b"): "0+10x20"},
                                {http(200, namespace="a"): "0+9x20", http(200, namespace="b"): "0+9x20"})),
    (None, Case(90, {}, {f'nibble:build_info{{job="nibble", namespace="{version}", version="{version}"}}': "1+0x120"
                         for version in ("1.0", "1.1")})),
]


def unit_test(alert, case, is_firing):
    """A test for promtool: which alerts fire at that time; and the rendered alert, which promtool prints."""
    series = {**(case.ready if is_firing else case.quiet_ready), **(case.fires if is_firing else case.quiet)}
    return {"interval": "1m", "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{case.minutes}m",
                 "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if is_firing else []}]}


def render_test(alert, case):
    """One that fails where the alert fires, so that promtool says what it would send."""
    return {"interval": "1m", "input_series": unit_test(alert, case, True)["input_series"],
            "alert_rule_test": [{"alertname": alert, "eval_time": f"{case.minutes}m", "exp_alerts": []}]}
