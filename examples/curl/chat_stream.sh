#!/usr/bin/env bash
# One streamed answer as it comes over the wire: reasoning, content, usage, [DONE].
#   VLLM_MEDIUM_API_KEY=… examples/curl/chat_stream.sh "What is a sluice?"
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

question=${1:-What is a sluice?}
# The question stands in JSON: backslash, quote and line ends need escapes.
question=${question//\\/\\\\}
question=${question//\"/\\\"}
question=${question//$'\n'/\\n}
ask "$BASE/chat/completions" --data @- <<END
{"model": "$MODEL", "stream": true, "stream_options": {"include_usage": true},
 "messages": [{"role": "user", "content": "$question"}]}
END
