# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The HTML reports of load tests, in a browser: made by `nibble bench`, of a real server."""
import json
import re
import subprocess

import pytest

from web_browser import scrolls_sideways, violations_of_accessibility

NUM_PROMPTS = 40
COMMON = ("--random-input-len", 40, "--random-output-len", 30, "--num-prompts", NUM_PROMPTS, "--seed", 1)


def bench(nibble, command, server, folder, *options):
    run = subprocess.run([str(nibble), "bench", command, "--url", server.url, *map(str, COMMON), "--report", str(folder / "report.html"),
                          *map(str, options)], capture_output=True, text=True, timeout=120, cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder / "report.html"


@pytest.fixture(scope="module")
def run_report(nibble, server, tmp_path_factory):
    """Report and JSON of one run."""
    folder = tmp_path_factory.mktemp("run")
    path = bench(nibble, "serve", server, folder, "--max-concurrency", 4, "--goodput", "ttft:5000", "--save-result",
                 "--result-filename", folder / "result.json")
    return path, json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def sweep_report(nibble, server, tmp_path_factory):
    return bench(nibble, "sweep", server, tmp_path_factory.mktemp("sweep"), "--max-concurrencies", "1,2,4")


def test_a_run_has_its_plots(run_report, open_page):
    path, result = run_report
    page = open_page(path.as_uri())
    assert page.get_by_role("heading", level=1).inner_text() == "Load test of stories-llama"
    assert page.title() == "Load test of stories-llama · nibble"
    for title in ("Time to first token (TTFT)", "Time per output token (TPOT)", "Between tokens (ITL)", "Whole request (E2E)"):
        card = page.locator("section", has=page.get_by_role("heading", name=title))
        assert card.locator("svg rect").count() >= 1, title
        assert card.locator("svg .rule-label").count() >= 1, title
    assert page.get_by_role("img", name=re.compile("Output tokens per second: at most")).locator("path.line").count() == 1
    concurrency = page.get_by_role("img", name=re.compile("Requests in progress: at most"))
    most = float(re.search(r"at most ([\d.]+)", concurrency.get_attribute("aria-label")).group(1))
    assert 1 <= most <= 4
    timeline = page.get_by_role("img", name=re.compile(f"Timeline of {NUM_PROMPTS} requests over .*, up to [1-4] at a time"))
    painted = timeline.locator("canvas").evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((byte) => byte > 0)")
    assert painted
    assert "Goodput" in page.locator(".tiles").inner_text()
    page.watch.check("")


def test_figures_are_those_of_the_json(run_report, open_page):
    path, result = run_report
    page = open_page(path.as_uri())
    data = json.loads(page.locator("#data").text_content())
    assert data["kind"] == "run" and data["gap_stride"] == 1
    for key in ("completed", "failed", "num_prompts", "total_output_tokens"):
        assert data["result"][key] == result[key], key
    for key in ("output_throughput", "median_ttft_ms", "p99_itl_ms", "mean_e2el_ms"):
        assert data["result"][key] == pytest.approx(result[key], abs=1e-5), key
    assert len(data["result"]["ttfts"]) == NUM_PROMPTS
    cells = page.get_by_role("table", name="Latency").get_by_role("row", name=re.compile("Time to first token")).locator("td")
    shown = cells.nth(page.get_by_role("columnheader", name="median").evaluate("cell => cell.cellIndex") - 1).inner_text()
    number, unit = shown.split()
    assert float(number.replace(",", "")) * {"µs": 1e-3, "ms": 1, "s": 1e3}[unit] == pytest.approx(result["median_ttft_ms"], rel=0.01)


def test_a_pointer_is_told_what_it_points_at(run_report, open_page):
    page = open_page(run_report[0].as_uri())
    timeline = page.get_by_role("img", name=re.compile("Timeline"))
    timeline.scroll_into_view_if_needed()
    box = timeline.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 4)
    tip = page.locator(".plot-tip:visible")
    assert re.match(r"Request \d+, sent at .*\n40 prompt tokens, 30 output tokens\nfirst token after", tip.inner_text())


def test_a_sweep_has_its_curves(sweep_report, open_page):
    page = open_page(sweep_report.as_uri())
    assert page.get_by_role("heading", level=1).inner_text() == "Sweep of stories-llama"
    curve = page.get_by_role("img", name="Time to first token by output throughput, over 3 runs")
    assert curve.locator("path.line").count() == 2  # median, p99
    assert curve.locator("circle").count() == 6
    assert curve.locator(".rule-label").all_text_contents() == ["1 at a time", "2 at a time", "4 at a time"]
    rows = page.get_by_role("table", name="Runs").locator("tbody tr")
    assert rows.locator("th").all_inner_texts() == ["1 at a time", "2 at a time", "4 at a time"]
    page.watch.check("")


def test_failed_requests_are_told(nibble, server, tmp_path, open_page):
    run = subprocess.run(
        [str(nibble), "bench", "serve", "--url", server.url, "--random-input-len", "8", "--num-prompts", "3", "--ready-check-timeout-sec",
         "0", "--extra-body", '{"temperature": -1}', "--report", str(tmp_path / "report.html")], capture_output=True, text=True, timeout=60)
    assert (tmp_path / "report.html").exists(), run.stderr
    page = open_page((tmp_path / "report.html").as_uri())
    assert "3 requests failed." in page.locator(".problem").inner_text()
    assert "HTTP 400" in page.get_by_role("table", name="Errors").inner_text()
    assert page.get_by_role("img", name=re.compile("Timeline of 3 requests")).count() == 1
    data = json.loads(page.locator("#data").text_content())["result"]
    assert all(end > start for start, end in zip(data["start_times"], data["end_times"]))
    page.watch.check("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["run_report", "sweep_report"])
def test_reports_are_for_everybody(kind, scheme, request, open_page):
    report = request.getfixturevalue(kind)
    path = report[0] if isinstance(report, tuple) else report
    for width in (1280, 390):
        page = open_page(path.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 800})
        assert violations_of_accessibility(page) == []
        assert not scrolls_sideways(page)


def test_a_report_prints_on_white(run_report, open_page, tmp_path):
    page = open_page(run_report[0].as_uri(), color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.pdf(path=str(tmp_path / "report.pdf"))
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
