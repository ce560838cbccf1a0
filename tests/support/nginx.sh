#!/bin/sh
# Prints the path of an nginx: the one that is installed, or Debian's, unpacked into the folder $1. Nothing is installed,
# and nothing is started.
set -eu
if command -v nginx; then exit 0; fi
binary=$1/usr/sbin/nginx
mkdir -p "$1"
# One test at a time: a program that is being written cannot be run.
exec 9> "$1/lock"
flock 9
if [ ! -x "$binary" ]; then
    cd "$1"
    { apt-get download nginx || { apt-get update && apt-get download nginx; }; } >&2
    dpkg -x nginx_*.deb . >&2
fi
echo "$binary"
