#!/usr/bin/env bash
# How many tokens a conversation has, and the text that the template makes of it.
#   VLLM_MEDIUM_API_KEY=… examples/curl/tokenize.sh
set -euo pipefail
# shellcheck source=env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

answer=$(ask "$ROOT/tokenize" --data @- <<END
{"model": "$MODEL", "messages": [{"role": "user", "content": "What is a sluice?"}]}
END
)
echo "$answer"
tokens=$(sed -E 's/.*"tokens": *(\[[^]]*\]).*/\1/' <<< "$answer")
ask "$ROOT/detokenize" --data @- <<END
{"model": "$MODEL", "tokens": $tokens}
END
echo
