#!/usr/bin/env python3
"""Seed corpora from the shared fixtures: seeds.py SHARED_FOLDER CORPUS_FOLDER

Each seed begins with the bytes that its target reads as choices (limit, seed of the cuts, endpoint), then comes a real
stream, a real request, or a text that a model wrote. Existing files stay.
"""

import json
import pathlib
import sys


def dechunked(response):
    """The body of a recorded response; what is no chunked body is left as it is."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16) if size else 0
        whole, body = whole + body[:length], body[length + 2 :]
        if not length:
            break
    return whole


def main(shared, corpus):
    vllm, count = pathlib.Path(shared) / "vllm", 0

    def seed(target, name, data):
        nonlocal count
        folder = pathlib.Path(corpus) / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        count += 1

    for setup in ("raw", "parsers"):
        for path in sorted((vllm / "recordings" / setup).iterdir()):
            name = f"{setup}-{path.name}"
            if path.name.endswith(".stream.response.http"):
                seed("sse_decode", name, b"\xff\x07" + dechunked(path.read_bytes()))
            elif path.name.endswith(".request.json"):
                body = json.loads(path.read_text())["body"]
                text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
                endpoint = b"\x00" if "completions" not in path.name else b"\x01"
                seed("ask_read", name, endpoint + text.encode())
    for path in sorted((vllm / "vectors").glob("corpus_*.jsonl")):
        for line in path.read_text().splitlines():
            vector = json.loads(line)
            seed("call_scan", vector["id"], b"\x00\x03" + vector["text"].encode())
            block = vector["text"].partition("<tool_call>")[2].partition("</tool_call>")[0].strip()
            if block:
                seed("repair", vector["id"], b"\x00\x03" + block.encode())
    # one edit at a time of each call that the target knows
    for call in range(5):
        for edit in range(5):
            for place in range(0, 100, 9):
                seed("repair", f"edit-{call}-{edit}-{place}", bytes([call * 2 + 1, 3, 0, place, edit, place % 16]))
    for number, line in enumerate((vllm / "vectors" / "bfcl.jsonl").read_text().splitlines()):
        case = json.loads(line)
        declared = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in case["tools"]}
        for block in case["hermes"].split("<tool_call>\n")[1:]:
            called = json.loads(block.partition("\n</tool_call>")[0])
            schema = declared.get(called["name"])
            if schema is not None:
                pair = json.dumps(schema) + "\n" + json.dumps(called["arguments"])
                seed("schema_judge", f"bfcl-{number}", pair.encode())
    if count < 100:
        sys.exit(f"{vllm} holds {count} seeds only")
    print(f"{count} seeds in {corpus}")


if __name__ == "__main__":
    main(*sys.argv[1:])
