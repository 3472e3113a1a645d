#!/bin/sh
# Ask a running service in all its ways, with curl:  examples/ask.sh [PICTURE] [URL]
# Where keys are configured: LOOKALIKE_READ_KEY=… examples/ask.sh
set -eu
picture=${1:-examples/gallery/cats/kitten.webp}
url=${2:-http://127.0.0.1:8000}
ask() { curl --silent --show-error --fail-with-body --header "Authorization: Bearer ${LOOKALIKE_READ_KEY:-none}" "$@"; echo; }

echo "What looks like it? A multipart upload; options are query parameters."
ask --form image=@"$picture" "$url/search?k=3"

echo "What is it? The labelled neighbours vote, and the three strongest votes are shown."
ask --form image=@"$picture" "$url/classify?votes=3"

echo "Its vector, as a .npy file for NumPy, and a search with that vector."
vector=$(mktemp)
trap 'rm -f "$vector"' EXIT
ask --form image=@"$picture" --header "Accept: application/x-npy" --output "$vector" "$url/embed"
ask --data-binary @"$vector" --header "Content-Type: application/x-npy" "$url/search?k=1"

echo "More like an item of the bank, by its id, in JSON."
id=$(ask "$url/items?limit=1" | sed 's/.*"items":\[{"id":"\([^"]*\)".*/\1/')
ask --header "Content-Type: application/json" --data "{\"ids\": [\"$id\"], \"k\": 2}" "$url/search"

echo "What is served?"
ask "$url/readyz"
ask --output /dev/null --write-out "GET /info: %{http_code}, %{size_download} bytes" "$url/info"
