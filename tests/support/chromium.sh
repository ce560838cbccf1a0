#!/bin/sh
# Prints the path of a Chromium that chromedriver can drive: the one that is installed, or Debian's, installed now.
set -eu
if command -v chromedriver > /dev/null && command -v chromium; then exit 0; fi
export DEBIAN_FRONTEND=noninteractive
{ apt-get install -y --no-install-recommends chromium chromium-driver \
    || { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; }; } >&2
command -v chromium
