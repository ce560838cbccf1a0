#!/bin/sh
# Prints the path of a Chromium: the one that is installed, or Debian's, installed now.
set -eu
if command -v chromium; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -y --no-install-recommends chromium \
    || { apt-get update && apt-get install -y --no-install-recommends chromium; }; } >&2
command -v chromium
