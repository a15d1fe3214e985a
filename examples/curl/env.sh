# shellcheck shell=bash disable=SC2034
# Where Sluice is and the key for it. Sourced by the other scripts, never run; every value may come from the environment.
BASE=${SLUICE_BASE_URL:-http://127.0.0.1:5002/v1}
ROOT=${BASE%/v1}
KEY=${VLLM_MEDIUM_API_KEY:?set it to the key that ./run showed at its first start}
MODEL=${SLUICE_MODEL:-Qwen/Qwen3-32B-AWQ}

# ask URL [curl's arguments…]: the key comes from a file descriptor, so that no list of processes shows it.
ask() {
    curl --silent --show-error --no-buffer --fail-with-body --header 'Content-Type: application/json' \
        --config <(printf 'header = "Authorization: Bearer %s"\n' "$KEY") "$@"
}
