#!/usr/bin/env bash
# A tool call in one whole answer: `tool_calls` with a name and arguments that are JSON, and finish_reason "tool_calls".
#   VLLM_MEDIUM_API_KEY=… examples/curl/tools.sh
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

ask "$BASE/chat/completions" --data @- <<END
{"model": "$MODEL",
 "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
 "tools": [{"type": "function", "function": {
   "name": "get_weather", "description": "Current weather of a city",
   "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]}
END
echo
