#!/usr/bin/env bash
# A running stream is ended from outside, by its id: the replica is free at once, the stream ends with an error event.
#   VLLM_MEDIUM_API_KEY=… examples/curl/cancel.sh
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

id=curl-example-$$
stream=$(mktemp)
trap 'rm -f "$stream"' EXIT
ask "$BASE/chat/completions" --header "X-Request-Id: $id" --data @- > "$stream" <<END &
{"model": "$MODEL", "stream": true, "max_tokens": 2000,
 "messages": [{"role": "user", "content": "Write a long story about a river."}]}
END
running=$!

# Until its first data line, at most ten seconds.
for _ in $(seq 100); do
    [ -s "$stream" ] && break
    sleep 0.1
done
ask "$BASE/requests/$id/cancel" --request POST
echo
wait $running || true
tail -n 4 "$stream"
