# shellcheck shell=bash
# What the scripts in this folder share: saying what happens, becoming root, and installing Debian packages.
# Sourced, never run. Every function does nothing when there is nothing to do.

# say TEXT...: one line about what is being done, on standard error, so that standard output stays the command's own.
say() {
    printf 'roost: %s\n' "$*" >&2
}

# give_up TEXT...: says why, and ends the script.
give_up() {
    say "$@"
    exit 1
}

# can_become_root: whether as_root would work.
can_become_root() {
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null
}

# as_root COMMAND...: runs a command as root, by sudo only where this is not root already.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        give_up "this needs root, and there is no sudo: run as root: $*"
    fi
}

# install_packages NAME...: installs Debian packages, asking nothing. The package lists are fetched at most once a day.
install_packages() {
    command -v apt-get >/dev/null || give_up "install these by hand (this is no Debian): $*"
    say "installing $* (Debian packages)"
    if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -mtime -1 -print -quit 2>/dev/null)" ]; then
        as_root apt-get update -qq
    fi
    # The lists may name versions that the mirror has replaced since: one more try with new ones.
    apt_install "$@" || { as_root apt-get update -qq && apt_install "$@"; }
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >/dev/null
}

# require_rust: Rust is the one thing that the machine must bring.
require_rust() {
    command -v cargo >/dev/null || give_up "cargo is not there: install Rust first (rustup, stable channel)"
}

# install_compiler: some crates compile C (SQLite, the cryptography library), and Rust links with cc.
install_compiler() {
    if ! command -v cc >/dev/null || ! [ -e /usr/include/stdio.h ]; then
        install_packages gcc libc6-dev
    fi
}

# has_postgres: whether a server and psql are there.
has_postgres() {
    compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && command -v psql >/dev/null
}

# install_postgres: Debian's server and client packages (15 on Debian 12, contrib modules included). Debian would also
# make and start a cluster of its own on port 5432, which nobody asked for: it is told not to before the package comes.
install_postgres() {
    has_postgres && return
    if [ ! -e /etc/postgresql-common/createcluster.d/roost.conf ]; then
        as_root mkdir -p /etc/postgresql-common/createcluster.d
        printf '%s\n' '# Roost runs its own Postgres servers and needs no system-wide one.' 'create_main_cluster = false' |
            as_root tee /etc/postgresql-common/createcluster.d/roost.conf >/dev/null
    fi
    install_packages postgresql postgresql-client
}

# has_cargo_tool NAME VERSION: whether `cargo NAME` is there and at least that version.
has_cargo_tool() {
    local found
    found=$(cargo "$1" --version 2>/dev/null | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -n 1) || return 1
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$2" "$found" | sort -V | head -n 1)" = "$2" ]
}

# install_cargo_tool NAME VERSION [OPTION...]: builds `cargo-NAME` into cargo's own bin folder. Without optimisation:
# these tools start other programs and read a lock file, and an optimised build of them takes four times as long.
install_cargo_tool() {
    local name=$1 version=$2
    shift 2
    has_cargo_tool "$name" "$version" && return
    say "building cargo-$name $version (one to two minutes, once)"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug "cargo-$name@$version" "$@"
}
