# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Dashboard, recording rules and alerts with a real Prometheus that scrapes real servers under load; each alert with promtool."""
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import grpc
import pytest
import yaml

from alert_cases import CASES, SITUATIONS, render_test, unit_test
from nibble_server import ROOT, STORIES, Server
from ranks import free_port, run_streams, wait_until

PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
RULES = (PROMETHEUS / "recording_rules.yml", PROMETHEUS / "alert_rules.yml")
SCRAPE_SECONDS = 1

pytestmark = pytest.mark.skipif(not (shutil.which("prometheus") and shutil.which("promtool")),
                                reason="Prometheus is not installed (Debian's package prometheus)")

# Queries without a result on healthy servers, each with its reason.
EMPTY = {
    "Ranks lost": "only losses are shown, and no rank is lost here",
    "Starts": "no server is started again here",
    "NibbleAbsent": "servers are there",
    "NibbleCertificateExpires": "no server here has a certificate (tests/e2e/test_guards.py has one)",
    "Certificate ends in": "likewise",
}


def load(path):
    return yaml.safe_load(path.read_text())


def rules(path):
    return [rule for group in load(path)["groups"] for rule in group["rules"]]


def promtool(*arguments):
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=600)


# --- what needs no server

def test_configuration_and_rules_are_valid():
    for check in (("config", PROMETHEUS / "prometheus.yml"), ("rules", *RULES)):
        result = promtool("check", *check)
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_has_what_an_operator_needs():
    runbook = (PROMETHEUS / "RUNBOOK.md").read_text()
    alerts = rules(RULES[1])
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule
        assert rule["annotations"]["summary"] and rule["annotations"]["description"], rule
        assert rule["annotations"]["runbook_url"] == f"RUNBOOK.md#{rule['alert'].lower()}", rule
    sections = re.findall(r"^## (\w+)\n\n\*\*Means\*\* .*?\n\*\*Look\*\* .*?\n\*\*Do\*\* ", re.sub(
        r"\*\*Look\*\* and \*\*do\*\*", "**Look** .\n**Do**", runbook), re.M | re.S)
    assert sections == [rule["alert"] for rule in alerts]


def write_tests(folder, tests):
    path = folder / "tests.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rule) for rule in RULES], "evaluation_interval": "1m", "tests": tests}))
    return path


def test_every_alert_fires_and_keeps_quiet(tmp_path):
    assert list(CASES) == [rule["alert"] for rule in rules(RULES[1])]
    tests = [unit_test(alert, case, fires) for alert, case in [*CASES.items(), *SITUATIONS] for fires in (True, False)
             if alert or not fires]
    result = promtool("test", "rules", write_tests(tmp_path, tests))
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_alerts_say_can_be_rendered(tmp_path):
    result = promtool("test", "rules", write_tests(tmp_path, [render_test(*item) for item in CASES.items()]))
    said = result.stdout + result.stderr
    for alert in CASES:
        assert f'alertname="{alert}"' in said, f"{alert} did not fire:\n{said}"
    for fault in ("<error expanding template", "<no value>", "NaN"):
        assert fault not in said, said


def test_the_dashboard_is_what_its_script_writes():
    result = subprocess.run([sys.executable, str(GRAFANA / "make_dashboard.py"), "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def panels(dashboard):
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def test_panels_have_places_of_their_own():
    dashboard = json.loads((GRAFANA / "nibble.json").read_text())
    identities = [panel["id"] for panel in panels(dashboard)]
    assert len(identities) == len(set(identities))
    groups = [dashboard["panels"], *(row["panels"] for row in dashboard["panels"] if row.get("panels"))]
    for group in groups:
        taken = set()
        for panel in group:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
            taken |= cells
    assert all(panel["type"] == "row" or panel["description"] for panel in panels(dashboard))


def test_provisioning_files_are_read():
    source = load(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    assert source["type"] == "prometheus"
    assert load(GRAFANA / "provisioning" / "dashboards" / "nibble.yml")["providers"][0]["options"]["path"]


# --- a real Prometheus

class Prometheus:
    def __init__(self, folder, targets):
        configuration = {"global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
                         "rule_files": [str(path) for path in RULES],
                         "scrape_configs": [{"job_name": "nibble", "static_configs": [{"targets": targets}]}]}
        self.url = f"http://127.0.0.1:{free_port()}"
        # Its own metrics have some of the same names: nothing of nibble's may count them.
        configuration["scrape_configs"].append(
            {"job_name": "prometheus", "static_configs": [{"targets": [self.url.removeprefix("http://"), "127.0.0.1:1"]}]})
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        self.log = open(folder / "log", "w+")
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=warn",
             f"--web.listen-address={self.url.removeprefix('http://')}"], stdout=self.log, stderr=subprocess.STDOUT)

    def get(self, path, **parameters):
        """`data` of an answer; fails with Prometheus' own words."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]

    def is_up(self, count):
        try:
            result = self.get("query", query='sum(up{job="nibble"})')["result"]
        except (OSError, urllib.error.URLError, AssertionError):  # nobody listens, or not ready yet
            return False
        return bool(result) and float(result[0]["value"][1]) == count

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.log.close()


class Loaded:
    """Servers after some load, what its client saw, and a Prometheus that watched."""

    def __init__(self, nibble, folder, servers, prometheus):
        self.nibble, self.folder, self.servers, self.prometheus = nibble, folder, servers, prometheus
        self.answers = {server.url: [] for server in servers}  # usage of each answer
        self.grpc_calls = {server.url: 0 for server in servers}
        self.client_seconds = {server.url: 0.0 for server in servers}  # of all answers, or more
        self.start = time.time()

    def run(self, seconds):
        """Streams of all kinds on all servers, then a pause for the last scrapes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for server in self.servers:
                started = time.monotonic()
                status, answer, _ = server.post("/v1/chat/completions",
                                                {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
                assert status == 200, answer
                self.answers[server.url].append(answer["usage"])
                self.client_seconds[server.url] += time.monotonic() - started
                bodies = [{"prompt": f"Once upon a time number {index}", "max_tokens": 24, "temperature": 0.8, "seed": index,
                           "model": self.model(server)} for index in range(6)]
                started = time.monotonic()
                self.answers[server.url] += [{"completion_tokens": tokens} for _, tokens, _ in run_streams(server, bodies)]
                self.client_seconds[server.url] += (time.monotonic() - started) * len(bodies)
                self.answers[server.url] += [{"completion_tokens": tokens} for tokens in self.run_grpc(server)]
            self.servers[0].request("GET", "/nowhere")
            self.ask_wrongly(self.servers[0])
            self.servers[0].post("/v1/completions", "no JSON")
        for server in self.servers:
            tokens = sum(answer["completion_tokens"] for answer in self.answers[server.url])
            name = "vllm:generation_tokens_total"
            wait_until(lambda: self.stored(server, name) == tokens,
                       lambda: f"clients had {tokens} tokens, the server says {server.metric(name)}, Prometheus {self.stored(server, name)}")
        time.sleep(3 * SCRAPE_SECONDS)  # the rules too
        self.end = time.time()

    def stored(self, server, name):
        """What Prometheus has."""
        instance = urllib.parse.urlsplit(server.url).netloc
        result = self.prometheus.get("query", query=f'sum({name}{{instance="{instance}"}})')["result"]
        return float(result[0]["value"][1]) if result else None

    @staticmethod
    def ask_wrongly(server):
        with grpc.insecure_channel(server.grpc_address) as channel:
            call = channel.unary_stream("/nibble.v1.Nibble/Chat", request_serializer=bytes, response_deserializer=bytes)
            with pytest.raises(grpc.RpcError):
                list(call(b"", timeout=60))  # no message at all

    def run_grpc(self, server):
        """Tokens of each answer to some calls."""
        started = time.monotonic()
        result = subprocess.run([str(self.nibble), "bench", "serve", "--grpc", server.grpc_address, "--num-prompts", "4",
                                 "--random-input-len", "8", "--random-output-len", "8", "--save-detailed", "--json"],
                                capture_output=True, text=True, timeout=60, cwd=self.folder)
        assert result.returncode == 0, result.stderr
        self.client_seconds[server.url] += (time.monotonic() - started) * 4
        self.grpc_calls[server.url] += 4
        return json.loads(result.stdout)["output_lens"]

    @staticmethod
    def model(server):
        return server.request("GET", "/v1/models")[1]["data"][0]["id"]

    def values(self, expression):
        """Every finite value of the time of the load."""
        series = self.prometheus.get("query_range", query=expression, start=self.start, end=self.end,
                                     step=SCRAPE_SECONDS)["result"]
        return [float(value) for entry in series for _, value in entry["values"] if math.isfinite(float(value))]


@pytest.fixture(scope="module")
def loaded(nibble, tmp_path_factory):
    """A dense model in the serving process, and one with experts on two ranks."""
    with Server(nibble, "--quantization", "w4a8") as dense, \
            Server(nibble, "--quantization", "w4a8", "--tensor-parallel-size", 2, "--all-reduce", "none",
                   model=STORIES.with_name("stories-mixtral")) as experts:
        servers = (dense, experts)
        folder = tmp_path_factory.mktemp("prometheus")
        targets = [urllib.parse.urlsplit(server.url).netloc for server in servers]
        prometheus = Prometheus(folder, targets)
        try:
            deadline = time.monotonic() + 90
            while not prometheus.is_up(len(servers)):
                assert time.monotonic() < deadline and prometheus.process.poll() is None, "Prometheus does not scrape"
                time.sleep(0.2)
            load = Loaded(nibble, folder, servers, prometheus)
            load.run(10)
            yield load
        finally:
            prometheus.close()


def chosen(loaded):
    """What Grafana puts in the place of each variable at first, where "All" is chosen: every value that it lists."""
    values = {"$__rate_interval": f"{8 * SCRAPE_SECONDS}s"}
    for entry in json.loads((GRAFANA / "nibble.json").read_text())["templating"]["list"]:
        if entry["type"] == "datasource":
            continue
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", entry["definition"]).groups()
        for name, value in values.items():
            selector = selector.replace(name, value)
        assert entry["includeAll"] and "allValue" not in entry
        found = loaded.prometheus.get(f"label/{label}/values", **{"match[]": selector})
        assert found, entry["definition"]
        values[f"${entry['name']}"] = "(" + "|".join(re.escape(one).replace("\\", "\\\\") for one in found) + ")"
    return values


def dashboard_queries(loaded):
    """(title, query) of every panel and annotation, with Grafana's variables put in."""
    dashboard = json.loads((GRAFANA / "nibble.json").read_text())
    found = [(panel["title"], target["expr"]) for panel in panels(dashboard) for target in panel.get("targets", [])]
    found += [(entry["name"], entry["expr"]) for entry in dashboard["annotations"]["list"]]
    variables = chosen(loaded)
    for title, expression in found:
        for name, value in variables.items():
            expression = expression.replace(name, value)
        assert "$" not in expression, f"{title}: an unknown variable in {expression}"
        yield title, expression


def test_every_query_of_the_dashboard_has_a_result(loaded):
    empty = [f"{title}: {expression}" for title, expression in dashboard_queries(loaded)
             if not loaded.values(expression) and title not in EMPTY]
    assert not empty, "\n".join(empty)


def test_the_dashboard_counts_nibble_alone(loaded):
    queries = dict(dashboard_queries(loaded))
    assert set(loaded.values(queries["Up"])) == {1.0}  # of Prometheus' own targets one is down
    assert set(loaded.values(queries["Ready"])) == {1.0}


def test_every_recording_is_made(loaded):
    empty = [rule["record"] for rule in rules(RULES[0]) if not loaded.values(rule["record"])]
    assert not empty, empty


def test_every_alert_looks_at_series_that_are_there(loaded):
    """As 0 or 1 in place of nothing or something, so that an alert that keeps quiet has a result too."""
    for rule in rules(RULES[1]):
        if rule["alert"] not in EMPTY:
            as_number = re.sub(r"(==|>|<) (?=[\d.]+$)", r"\1 bool ", rule["expr"].strip())
            assert "bool" in as_number, rule["expr"]
            assert loaded.values(as_number), f"{rule['alert']}: no result of {as_number}"


def test_rules_run_without_errors_and_no_alert_fires(loaded):
    for group in loaded.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            assert rule["type"] == "recording" or rule["state"] != "firing", rule


def test_codes_of_grpc_are_spelt_as_servers_spell_them(loaded):
    """A rule that asks for another spelling would never find anything."""
    names = {code.name for code in grpc.StatusCode}
    said = loaded.prometheus.get("label/grpc_code/values")
    assert "OK" in said and "INVALID_ARGUMENT" in said and set(said) <= names
    asked = [code for rule in rules(RULES[0]) for codes in re.findall(r'grpc_code=~?"([^"]*)"', rule["expr"]) for code in codes.split("|")]
    assert asked and set(asked) <= names
    used = [re.search(r'grpc_code="(\w+)"', name).group(1) for _, case in SITUATIONS for name in {**case.fires, **case.quiet}
            if "grpc_code" in name]
    assert used and set(used) <= names


def test_the_list_of_metrics_is_what_servers_say(loaded):
    readme = (ROOT / "server" / "metrics" / "README.md").read_text()
    listed = set(re.findall(r"^\| `([\w:]+)` \| (?:counter|gauge|histogram) ", readme, re.M))
    said = {line.split()[2] for server in loaded.servers for line in server.request("GET", "/metrics")[1].splitlines()
            if line.startswith("# TYPE ")}
    assert listed == said | {"nibble:tls_certificate_expiry_timestamp_seconds"}  # there is no certificate


def test_histograms_and_counters_agree_with_the_client(loaded):
    for server in loaded.servers:
        assert server.wait_until_idle() == (0, 0, 0)
        answers = loaded.answers[server.url]
        tokens = sum(answer["completion_tokens"] for answer in answers)
        metric = server.metric
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                     "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
                     "request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens", "request_params_n"):
            assert metric(f"vllm:{name}_count") == len(answers), name
            assert metric(f"vllm:{name}_bucket", le="+Inf") == len(answers), name
        assert metric("vllm:generation_tokens_total") == tokens == metric("vllm:request_generation_tokens_sum")
        assert metric("vllm:inter_token_latency_seconds_count") == tokens - len(answers)
        assert metric("vllm:request_success_total") == len(answers)
        calls = {"grpc_service": "nibble.v1.Nibble", "grpc_method": "Generate"}
        assert metric("grpc_server_handled_total", grpc_code="OK", **calls) == loaded.grpc_calls[server.url]
        assert metric("grpc_server_handling_seconds_count", **calls) == loaded.grpc_calls[server.url]
        total, queue, inference, prefill, decode = (metric(f"vllm:{name}_seconds_sum") for name in (
            "e2e_request_latency", "request_queue_time", "request_inference_time", "request_prefill_time",
            "request_decode_time"))
        assert queue + inference <= total + 1e-6
        assert math.isclose(inference, prefill + decode, rel_tol=1e-6)
        assert math.isclose(metric("vllm:inter_token_latency_seconds_sum"), decode, rel_tol=1e-3)
        # A sequence ends a little after its last token, and its client sees that later still.
        assert 0 < metric("vllm:time_to_first_token_seconds_sum") <= total <= loaded.client_seconds[server.url]
        # What Prometheus has is what the server said.
        assert loaded.stored(server, "vllm:generation_tokens_total") == tokens
