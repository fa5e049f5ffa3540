# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""The image: what its Dockerfile says, and its root file system, made by the same steps and run as a container runtime would.

With `--image-root FOLDER` the root is one that deploy/docker/image_test.sh made; without, one of the binary under test.
"""
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess

import pytest

import chart
import checks
from nibble_server import ROOT, STORIES
from ranks import free_port
from test_binary import Running, get, wait_ready

DOCKER = ROOT / "deploy" / "docker"
STEPS, RUN_ROOT = DOCKER / "build_steps.sh", DOCKER / "run_root.sh"
USER = 65532
# Without CUDA's libraries; the binary of the CUDA image has nibble's kernels for each architecture.
MAX_MEGABYTES = {"cpu": 64, "cuda": 160}
OF_CUDA = re.compile(r"lib(nccl|cublasLt|nvrtc)\b")


@pytest.fixture(scope="module")
def root(request, tmp_path_factory):
    given = request.config.getoption("--image-root")
    if given is not None:
        return pathlib.Path(given).resolve()
    folder = tmp_path_factory.mktemp("image") / "root"
    subprocess.run([STEPS, "root", "cpu", request.getfixturevalue("nibble"), folder], check=True)
    return folder


def files_of(root):
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]


def test_nothing_but_nibble_and_its_libraries(root):
    programs = {str(path.relative_to(root)) for path in files_of(root) if path.stat().st_mode & stat.S_IXUSR}
    libraries = {name for name in programs if re.fullmatch(r"usr/lib(64|/x86_64-linux-gnu)/[\w.+-]+\.so[\w.]*", name)}
    assert programs - libraries == {"usr/bin/nibble"}
    kind = "cuda" if (root / "etc/ld.so.conf").exists() else "cpu"
    assert sum(path.stat().st_size for path in files_of(root) if not OF_CUDA.match(path.name)) < MAX_MEGABYTES[kind] << 20


def test_every_library_is_found_in_the_root(root):
    loader = root / "usr" / "lib64" / "ld-linux-x86-64.so.2"
    for path in [root / "usr/bin/nibble", *(root / "usr/lib/x86_64-linux-gnu").iterdir()]:
        listed = subprocess.run([loader, "--library-path", root / "usr/lib/x86_64-linux-gnu", "--list", path], check=True,
                                capture_output=True, text=True).stdout
        for name, found in re.findall(r"(\S+) => (.*?)(?: \(0x\w+\))?\n", listed):
            # The loader itself is named by its path in the image.
            assert found.startswith(str(root)) or name == "/lib64/ld-linux-x86-64.so.2" or "ld-linux" in name, f"{path}: {name} => {found}"


def test_what_libraries_of_cuda_open_is_there(root):
    """They name what they open at run time, which ldd does not see."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for path in filter(lambda path: OF_CUDA.match(path.name), libraries.iterdir()):
        for name in set(re.findall(rb"libnvrtc(?:-builtins)?\.so(?:\.[0-9]+)+", path.read_bytes())):
            assert (libraries / name.decode()).exists(), f"{path.name} opens {name.decode()}"


def test_libraries_of_cuda_are_pinned_and_carried():
    """cuBLASLt does without NVRTC until the first product that it has no kernel for."""
    lines = [line for line in (DOCKER / "cuda_libraries.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==13\.[\d.]+ --hash=sha256:[0-9a-f]{64}|nvidia-nccl-cu13==[\d.]+ --hash=sha256:[0-9a-f]{64}", line)
               for line in lines), lines
    assert {line.split("==")[0] for line in lines} == {"nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-nccl-cu13"}
    carried = STEPS.read_text().split("cuda_libraries() {")[1].split("\n}")[0]
    assert all(name in carried for name in ("libnccl.so.2", "cublasLt.so.13", "nvrtc.so.13", "libnvrtc-builtins.so.13"))


def test_the_drivers_libraries_are_found_where_a_runtime_puts_them(nibble, tmp_path):
    """NVIDIA's hooks name a folder in /etc/ld.so.conf.d and write the cache; GKE mounts one, for LD_LIBRARY_PATH."""
    root = tmp_path / "root"
    subprocess.run([STEPS, "root", "cuda", nibble, root], check=True)
    driver = root / "run/driver"
    driver.mkdir(parents=True)
    shutil.copy(next((root / "usr/lib/x86_64-linux-gnu").glob("libz.so.1*")), driver / "libcuda.so.1")
    (root / "etc/ld.so.conf.d/00-driver.conf").write_text("/run/driver\n")
    subprocess.run([shutil.which("ldconfig", path="/usr/sbin:/sbin"), "-X", "-r", root], check=True)
    cached = subprocess.run([shutil.which("ldconfig", path="/usr/sbin:/sbin"), "-r", root, "-p"], check=True, capture_output=True,
                            text=True).stdout
    assert "=> /run/driver/" in cached and "=> /usr/lib/x86_64-linux-gnu/libstdc++.so.6" in cached
    said = [words for stage, name, words in instructions() if (stage, name) == ("cuda", "ENV")]
    assert any("LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in words for words in said)
    assert any("NVIDIA_VISIBLE_DEVICES=void" in words for words in said)


def test_a_build_whose_configuration_fails_is_none(tmp_path):
    """CMake ends, for instance, without the headers of FlashInfer: the step neither goes on nor asks for less."""
    (tmp_path / "cmake").write_text(f"#!/bin/sh\necho \"$@\" >>{tmp_path}/asked\nexit 1\n")
    (tmp_path / "cmake").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDACXX": "/bin/true"}
    ended = subprocess.run([STEPS, "build", "cuda"], env=environment, capture_output=True)
    assert ended.returncode != 0
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert "--preset cuda" in asked and "FLASHINFER" not in asked


def test_owners_and_modes(root):
    for path in [root, *root.rglob("*")]:
        mode = path.lstat().st_mode
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path
        if not path.is_symlink() and path.name != "tmp":
            assert not mode & stat.S_IWOTH, path
    if os.getuid() == 0:
        owned = {str(path.relative_to(root)) for path in root.rglob("*") if path.lstat().st_uid == USER}
        assert owned == {"var/cache/nibble", "var/lib/nibble"}
    assert f"nibble:x:{USER}:{USER}:" in (root / "etc/passwd").read_text()


def test_packages_are_described(root):
    """Scanners look for vulnerable versions here, people for licences."""
    listed = {line for line in (DOCKER / "runtime_packages.txt").read_text().splitlines() if not line.startswith("#")}
    assert {path.name for path in (root / "var/lib/dpkg/status.d").iterdir()} == listed
    for name in listed:
        assert re.search(r"^Version: \S+", (root / "var/lib/dpkg/status.d" / name).read_text(), re.M)
        assert (root / "usr/share/doc" / name / "copyright").stat().st_size > 0


def test_a_binary_with_other_libraries_is_refused(tmp_path):
    ended = subprocess.run([STEPS, "root", "cpu", shutil.which("cat"), tmp_path / "root"], capture_output=True, text=True)
    assert ended.returncode == 1 and "-libgrpc29" in ended.stderr and "runtime_packages.txt" in ended.stderr
    assert not (tmp_path / "root").exists()


def can_mount():
    return os.getuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


class PodInRoot:
    """The command of one pod in the image's root; its model, and the file of its group's secret, in `folder`."""
    environment = {}

    def __init__(self, root, template, folder, index=0, ports=None):
        arguments = list(checks.container(template)["args"])
        changed = {**(ports or {}), "host": "127.0.0.1", "node-rank": index, "nnodes": 2, "master-addr": "127.0.0.1",
                   "node-addr": "127.0.0.1", "cluster-secret-file": "/models/secret"}
        for name, value in changed.items():
            if f"--{name}" in arguments:
                arguments[arguments.index(f"--{name}") + 1] = str(value)
        self.command = [str(RUN_ROOT), str(root), "--bind", f"{folder}:/models", "--", "/usr/bin/nibble", *arguments]


def state_of(process):
    return dict(re.findall(r"^(\w+):[ \t]*(.*)$", (process / "status").read_text(), re.M))


@pytest.mark.skipif(not can_mount(), reason="mounting needs root")
@pytest.mark.parametrize("nodes", [1, 2])
def test_it_serves_read_only_and_without_rights(root, nodes, tmp_path):
    """With the arguments of the chart's pods, in the image's root: two ranks in one pod, and in two."""
    objects = chart.render({"nodes": nodes, "options": {
        "device": "cpu", "tensor-parallel-size": 2, "rank-threads": 1, "max-model-len": 512, "all-reduce": "none"}})
    templates = [template for _, template in checks.templates(objects)]
    shutil.copytree(STORIES, tmp_path / "model")
    (tmp_path / "model" / "secret").write_text("a secret of this test\n")
    for path in (tmp_path, tmp_path / "model"):
        path.chmod(0o755)
    ports = {name: free_port() for name in ("port", "grpc-port", "health-port", "master-port")}
    with Running([PodInRoot(root, template, tmp_path / "model", index, ports) for index, template in enumerate(templates)]) as running:
        wait_ready(running, templates[0], ports["health-port"])
        status, text = get(ports["port"], "/v1/completions", {"model": "models", "prompt": "Once", "max_tokens": 4})
        assert status == 200 and json.loads(text)["usage"]["completion_tokens"] == 4, text
        for process in [pathlib.Path("/proc") / str(process.pid) for process in running.processes]:
            state = state_of(process)
            assert set(state["Uid"].split()) == set(state["Gid"].split()) == {str(USER)} and not state["Groups"].strip()
            assert int(state["CapEff"], 16) == int(state["CapPrm"], 16) == 0 and state["NoNewPrivs"] == "1"
            mounts = {line.split()[4]: line.split()[5] for line in (process / "mountinfo").read_text().splitlines()}
            assert mounts["/"].startswith("ro") and mounts["/models"].startswith("ro"), mounts
    assert [process.returncode for process in running.processes] == [0] * nodes


def instructions():
    """(stage, instruction, words) of the Dockerfile; lines that go on are one."""
    stage = None
    for line in re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text()).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, words = line.split(None, 1)
        if name == "FROM":
            stage = re.search(r" AS (\S+)", words).group(1)
        yield stage, name, words


def test_the_dockerfile_runs_only_steps_that_are_tested():
    runs = [(stage, re.sub(r"--mount=\S+\s+", "", words)) for stage, name, words in instructions() if name == "RUN"]
    assert [stage for stage, _ in runs] == ["build-cpu"] * 3 + ["build-cuda"] * 4
    known = re.findall(r"^  ([a-z|\s-]+)\) \[", STEPS.read_text(), re.M)
    known = {verb.strip() for line in known for verb in line.split("|")}
    for _, words in runs:
        script, verb, *_ = words.split()
        assert ROOT / script == STEPS and verb in known, words


def test_sources_come_after_what_is_installed():
    """A change of a source file leaves the layers before it in the cache, and those have what their steps read."""
    for kind in ("cpu", "cuda"):
        steps = [(name, words) for stage, name, words in instructions() if stage in ("source", f"build-{kind}")]
        everything = steps.index(("COPY", ". ."))
        before = [words for name, words in steps[:everything] if name == "RUN"]
        assert [words.split()[1] for words in before] == ["packages", "cuda-libraries"][:1 if kind == "cpu" else 2]
        copied = {word for name, words in steps[:everything] if name == "COPY" for word in words.split()[:-1]}
        assert copied == {"dev", "cmake/cuda-toolkit.txt", "deploy/docker/build_steps.sh", "deploy/docker/cuda_libraries.txt"}


def test_the_dockerfile_agrees_with_the_chart():
    said = {}
    for stage, name, words in instructions():
        said.setdefault(stage, []).append((name, words))
    runtime = dict(said["runtime"])
    (_, template), = checks.templates(chart.render({}))
    security = template["spec"]["securityContext"]
    assert runtime["USER"] == f"{security['runAsUser']}:{security['runAsGroup']}" == f"{USER}:{USER}"
    assert f"USER_ID={USER}" in STEPS.read_text()
    assert runtime["EXPOSE"].split() == [str(port["containerPort"]) for port in checks.container(template)["ports"]]
    assert runtime["ENTRYPOINT"] == '["/usr/bin/nibble"]' and "HEALTHCHECK" in runtime
    assert "XDG_CACHE_HOME=/var/cache/nibble" in runtime["ENV"]
    for kind in ("cpu", "cuda"):
        assert said[kind][0] == ("FROM", f"runtime AS {kind}")
        assert ("COPY", f"--from=build-{kind} /image/ /") in said[kind]
    version = re.search(r"project\(nibble VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    assert ("ARG", f"VERSION={version}") in said["runtime"]
    assert f'appVersion: "{version}"' in (chart.CHART / "Chart.yaml").read_text()
    labels = runtime["LABEL"]
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_what_is_built_is_in_the_build_context():
    through = re.findall(r"^!(.*)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.M)
    needed = re.findall(r"^\s*add_subdirectory\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(), re.M)
    needed += ["cmake", "dev", "deploy/docker", "LICENSE", "CMakeLists.txt", "CMakePresets.json"]
    assert set(needed) <= set(through)
    assert all((ROOT / path).exists() for path in through)
