#!/usr/bin/env python3
"""Runs the clients of examples/ before a gateway of its own, with simulated replicas. Used by `./test clients`.

    clients.py --sluice target/debug/sluice --tools FOLDER [PART OF A NAME …]

FOLDER has the installed packages: python, llamaindex (virtual environments) and node (node_modules). Exit status 1 if a client
fails, 2 if nothing has such a name. SLUICE_SIM_CALL is the kind of call that is broken, as in the clients themselves.
"""

import argparse
import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
READY_S = 30
CLIENT_S = 120

# Script, and what runs it: a virtual environment or node.
CLIENTS = [
    ("clients/openai_sdk.py", "python"),
    ("clients/langchain_openai_agent.py", "python"),
    ("clients/openai_agents_sdk.py", "python"),
    ("clients/qwen_agent_loop.py", "python"),
    ("clients/llamaindex_agent.py", "llamaindex"),
    ("clients/openai_sdk.mjs", "node"),
    ("clients/vercel_ai.mjs", "node"),
    ("typescript/agent_loop.mjs", "node"),
]

CONFIG = """
[server]
listen = "127.0.0.1:{port}"
state_dir = "{folder}/state"
[admin]
enabled = false
[[backend]]
name = "simulated"
model = "Qwen/Qwen3-32B-AWQ"
[[backend.replica]]
name = "a"
launcher = "simulated"
speed = 20.0
[[backend.replica]]
name = "b"
launcher = "simulated"
speed = 20.0
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def gateway(sluice, folder):
    """A running gateway: the environment that points a client at it."""
    port, key = free_port(), f"sk-{secrets.token_hex(8)}"
    config, log = folder / "config.toml", folder / "log"
    config.write_text(CONFIG.format(port=port, folder=folder))
    with log.open("w") as out:
        process = subprocess.Popen(
            [sluice, "serve", "--config", config],
            env={**os.environ, "VLLM_MEDIUM_API_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        for _ in range(READY_S * 10):
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                yield {"SLUICE_BASE_URL": f"http://127.0.0.1:{port}/v1", "VLLM_MEDIUM_API_KEY": key}
                return
            time.sleep(0.1)
        sys.exit(f"the gateway is not ready after {READY_S} s:\n{log.read_text()}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def command(script, runs_by, tools):
    if runs_by != "node":
        return [tools / runs_by / "bin/python", EXAMPLES / script]
    # Node looks for packages beside the script.
    copy = tools / "node" / script.replace("/", "-")
    shutil.copy(EXAMPLES / script, copy)
    return ["node", copy]


def run(script, runs_by, tools, pointed, folder):
    """Whether the client ended well; its last words if it didn't."""
    environment = {**os.environ, **pointed, "PYTHONDONTWRITEBYTECODE": "1"}
    begun = time.monotonic()
    try:
        done = subprocess.run(
            command(script, runs_by, tools),
            env=environment,
            cwd=folder,  # some leave files where they run
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=CLIENT_S,
        )
        failed, output = done.returncode != 0, done.stdout
    except subprocess.TimeoutExpired as error:
        failed, output = True, (error.stdout or b"") + f"\nnot done after {CLIENT_S} s".encode()
    print(f"{'FAILED' if failed else 'ok    '} {time.monotonic() - begun:5.1f} s  {script}", flush=True)
    if failed:
        print(output.decode(errors="replace")[-4000:], flush=True)
    return not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sluice", required=True, type=pathlib.Path)
    parser.add_argument("--tools", required=True, type=pathlib.Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    chosen = [client for client in CLIENTS if not given.names or any(name in client[0] for name in given.names)]
    if not chosen:
        print(f"no client has {' or '.join(given.names)} in its name", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, gateway(given.sluice.resolve(), pathlib.Path(folder)) as pointed:
        good = [run(script, runs_by, given.tools.resolve(), pointed, folder) for script, runs_by in chosen]
    return 0 if all(good) else 1


sys.exit(main())
