#!/bin/sh
# Prints the path of an nginx: the one that is installed, or Debian's, unpacked into the folder $1. Nothing is installed,
# and nothing is started.
set -eu
if command -v nginx; then exit 0; fi
binary=$1/usr/sbin/nginx
if [ ! -x "$binary" ]; then
    mkdir -p "$1"
    cd "$1"
    { apt-get download nginx || { apt-get update && apt-get download nginx; }; } >&2
    dpkg -x nginx_*.deb . >&2
fi
echo "$binary"
