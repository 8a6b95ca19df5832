# shellcheck shell=bash
# Sourced by the other scripts, from the top of the checkout: what they need of the machine.

VENV=.venv

# -h: print what stands at the top of the script.
case "${1-}" in
-h | --help)
    (cd "$OLDPWD" && sed -n '2,/^[^#]/s/^#[ ]\{0,1\}//p' "$0")
    exit
    ;;
esac

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# as_root COMMAND…: run it as root, without ever asking for a password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo --non-interactive "$@"
    else
        say "needs root: $*"
        return 1
    fi
}

# install_packages NAME…: install Debian packages; fails where that cannot be done.
install_packages() {
    command -v apt-get >/dev/null || { say "no apt-get: install these yourself: $*"; return 1; }
    say "installing with apt: $*"
    # In run level 1, as Debian sees it, a package does not start its service.
    local apt=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -y)
    as_root "${apt[@]}" update >/dev/null || return 1
    as_root "${apt[@]}" install --no-install-recommends "$@" </dev/null >/dev/null
}

# find_python: print the first Python that is new enough and can make virtual environments.
find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# make_venv [EXTRAS]: have this checkout installed in $VENV, with extras such as "[test]".
make_venv() {
    local extras="${1:-}" python stamp
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        if ! python=$(find_python); then
            install_packages python3 python3-venv
            python=$(find_python) || { say "needs Python 3.11 or newer"; return 1; }
        fi
        "$python" -m venv --clear "$VENV"
    fi
    # pip takes seconds even when there is nothing to do; what it installed is kept in the stamp.
    stamp="$VENV/installed$extras"
    if ! cmp -s pyproject.toml "$stamp"; then
        say "installing epochfs$extras into $VENV"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extras" ||
            return 1
        cp pyproject.toml "$stamp"
    fi
}
