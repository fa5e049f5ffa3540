#!/usr/bin/env python3
# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the source tree itself: directions of dependency, registered sources, file sizes, leftovers, dead links.

Run by `./dev test tree` and as a ctest. Exits 1 and lists every violation.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Which folders each folder may include; its own is always allowed. The longest matching prefix of a file's path
# decides. This is the table of the architecture: a new arrow is a decision, not a convenience.
ALLOWED = {
    "base": set(),
    "kernels": {"base"},
    "comm": {"base"},
    "comm/cluster": {"base", "comm"},
    "engine": {"base", "kernels", "comm"},
    "quantize": {"base", "kernels", "engine"},
    "proto": set(),
    "server": {"base", "engine"},
    "server/cli": {"base", "kernels", "comm", "engine", "quantize", "client", "server", "bench"},
    "client": {"base"},
    "bench": {"base", "kernels", "comm", "engine", "quantize"},
    "tests": {"base", "kernels", "comm", "engine", "quantize", "server", "client", "bench"},
}
# Inside the server: the wire formats do not know each other, and the native path knows neither.
ALLOWED_SERVER = {
    "server/http": {"server/http", "server/request_log", "server/tls"},
    "server/tls": {"server/tls"},
    "server/request_log": {"server/request_log"},
    "server/auth": {"server/auth", "server/http"},
    "server/web": {"server/web", "server/http"},
    "server/chat": {"server/chat", "server/chat/jinja"},
    "server/admission": {"server/admission", "server/chat", "server/request_log"},
    "server/metrics": {"server/metrics"},
    "server/openai": {"server/openai", "server/http", "server/admission", "server/chat", "server/request_log", "server"},
    "server/grpc": {"server/grpc", "server/admission", "server/auth", "server/request_log", "server/tls", "server"},
}
# Folders below server build without gRPC and without an HTTP library.
FORBIDDEN_BELOW_SERVER = re.compile(r'#include\s+[<"](grpc|google/protobuf|boost/|nibble/v1/|prometheus/|CLI/)')

SOURCE_SUFFIXES = {".cc", ".h", ".cu", ".cuh"}
MAX_LINES = 500
# Longer files, each with its reason.
LONG_FILES = {}
LEFTOVERS = re.compile(r"\b(XXX|FIXME|HACK)\b|#if 0\b")
MARKDOWN_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)|`((?:\.\./)+[^`\s]+)`")
PLACEHOLDER = re.compile(r"^@[A-Z_]+@$", re.M)


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout
    return [pathlib.Path(line) for line in listed.splitlines() if (ROOT / line).is_file()]


def longest_prefix(path, table):
    text = path.as_posix()
    best = None
    for key in table:
        if text.startswith(key + "/") and (best is None or len(key) > len(best)):
            best = key
    return best


def check_includes(path, text, errors):
    folder = longest_prefix(path, ALLOWED)
    if folder is None:
        return
    top = path.parts[0]
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        # The cluster service is the one place below the server that speaks gRPC, a target of its own.
        below_server = top in ("base", "kernels", "engine", "comm", "quantize")
        if below_server and folder != "comm/cluster" and FORBIDDEN_BELOW_SERVER.match(line):
            errors.append(f"{where}: {line.strip()}: below the server, no gRPC, protobuf, HTTP or CLI library")
        match = re.match(r'#include\s+"([^"]+)"', line)
        if not match or not (ROOT / match.group(1)).exists():
            continue  # a library's header
        included = pathlib.Path(match.group(1))
        target = included.parts[0]
        if target != top and target not in ALLOWED[folder]:
            errors.append(f"{where}: {folder} may not include {included}")
        if folder == "server" and target == "server":
            own = longest_prefix(path, ALLOWED_SERVER)
            other = included.parent.as_posix()
            if own is not None and other not in ALLOWED_SERVER[own]:
                errors.append(f"{where}: {own} may not include {included}")
        if target == "tests" and top != "tests":
            errors.append(f"{where}: product code may not include tests")


def check_registered(files, errors):
    """Every source is named in the CMakeLists.txt of its folder, or of the nearest one above that has one."""
    cmake = {path.parent: (ROOT / path).read_text() for path in files if path.name == "CMakeLists.txt"}
    shared = (ROOT / "cmake" / "NibbleTargets.cmake").read_text()  # names the main() of replayed fuzz targets
    for path in files:
        if path.suffix not in (".cc", ".cu") or path.as_posix() in shared:
            continue
        folder = path.parent
        while folder not in cmake and folder != pathlib.Path("."):
            folder = folder.parent
        if path.relative_to(folder).as_posix() not in re.split(r"[\s()]+", cmake.get(folder, "")) and not re.search(
                rf"[/\s]{re.escape(path.name)}\b", cmake.get(folder, "")):
            errors.append(f"{path}: not named in {folder}/CMakeLists.txt")


def check_sizes(path, text, errors):
    lines = text.count("\n")
    if lines > MAX_LINES and path.as_posix() not in LONG_FILES:
        errors.append(f"{path}: {lines} lines, the limit is {MAX_LINES}: cut along the domain")


def check_style(path, text, errors):
    for number, line in enumerate(text.splitlines(), 1):
        if LEFTOVERS.search(line):
            errors.append(f"{path}:{number}: leftover: {line.strip()}")
    if "SPDX-License-Identifier" not in text[:400]:
        errors.append(f"{path}: no SPDX-License-Identifier in the first lines")
    if path.suffix in (".h", ".cuh") and "#pragma once" not in text:
        errors.append(f"{path}: no #pragma once")


def check_document(path, text, errors):
    """Links lead somewhere in the repository, and no placeholder was left."""
    for match in MARKDOWN_LINK.finditer(text):
        target = match.group(1) or match.group(2)
        if not (ROOT / path.parent / target).exists():
            errors.append(f"{path}: {target} is not in the repository")
    for match in PLACEHOLDER.finditer(text):
        errors.append(f"{path}: leftover: {match.group(0)}")


def main():
    errors = []
    files = tracked_files()
    for path in files:
        if path.suffix == ".md":
            check_document(path, (ROOT / path).read_text(), errors)
        if path.suffix not in SOURCE_SUFFIXES:
            continue
        text = (ROOT / path).read_text()
        check_includes(path, text, errors)
        check_sizes(path, text, errors)
        check_style(path, text, errors)
    check_registered(files, errors)
    for error in errors:
        print(error)
    print(f"{len(files)} files, {len(errors)} violations")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
