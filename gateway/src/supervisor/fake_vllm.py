"""A stand-in for `vllm serve` in the tests of the process launcher: the flags, routes and misbehaviour that it is judged by.

FAKE (environment) chooses: "" behaves; "oom", "flag" end at once with vLLM's words; "stubborn" ignores SIGTERM, and so does its
engine; "orphan" leaves its engine behind for a while; "deaf" never listens; "other" lists another model.
"""
import http.server
import json
import os
import signal
import sys
import time

args = sys.argv[1:]
port = int(args[args.index("--port") + 1])
names = []
for arg in args[args.index("--served-model-name") + 1:]:
    if arg.startswith("--"):
        break
    names.append(arg)
mode = os.environ.get("FAKE", "")

if mode == "oom":
    print("(EngineCore pid=7) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB.", flush=True)
    print("RuntimeError: Engine core initialization failed. See root cause above. key", os.environ.get("VLLM_API_KEY"), flush=True)
    sys.exit(1)
if mode == "flag":
    sys.exit("vllm: error: unrecognized arguments: --enable-turbo")
if mode in ("stubborn", "orphan"):
    if os.fork() == 0:  # the engine
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setpgid(0, 0)
        time.sleep(600)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "deaf":
    time.sleep(600)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        key = os.environ.get("VLLM_API_KEY")
        status, body = 404, {"detail": "Not Found"}
        if self.path == "/health":
            status, body = 200, None
        elif self.path == "/version":
            status, body = 200, {"version": "0.32.0"}
        elif self.path == "/v1/models" and key and self.headers.get("Authorization") != f"Bearer {key}":
            status, body = 401, {"error": "Unauthorized"}
        elif self.path == "/v1/models":
            ids = ["something-else"] if mode == "other" else names
            status, body = 200, {"object": "list", "data": [{"id": id, "object": "model"} for id in ids]}
        body = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
