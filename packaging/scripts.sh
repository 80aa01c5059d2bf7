# What both formats do once their files lie there; `cargo xtask package` puts it into deb/postinst and rpm/spec.
# Runs as root under any POSIX shell. @NAME@ is the package, the unit, the user and the folder, all in one.

unit=@NAME@.service

# Not in a chroot, nor in a container without systemd: there is nothing to start there.
systemd_runs() {
    [ -d /run/systemd/system ]
}

make_user() {
    if command -v systemd-sysusers >/dev/null 2>&1; then
        systemd-sysusers /usr/lib/sysusers.d/@NAME@.conf
    elif ! getent passwd @NAME@ >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/@NAME@ --no-create-home \
            --shell /usr/sbin/nologin --comment "@SUMMARY@" @NAME@
    fi
}

# Before the first start already: keys and secrets are put here.
make_folder() {
    install -d -m 0700 -o @NAME@ -g @NAME@ /var/lib/@NAME@
}

# A setting of the administrator's in /etc/sysctl.d wins: all files are read, one key is applied.
apply_sysctl() {
    [ -e /usr/lib/sysctl.d/50-@NAME@.conf ] && systemd_runs || return 0
    for program in /usr/lib/systemd/systemd-sysctl /lib/systemd/systemd-sysctl; do
        if [ -x "$program" ]; then
            "$program" --prefix=net/core/rmem_max || true
            return 0
        fi
    done
}

# An upgrade is no outage: the controllers are told why this host falls silent and for how long. This is the one
# place where packages say so. A program that does not know the verb leaves with an ordinary goodbye,
# upon which nothing is failed over either.
say_goodbye() {
    if @NAME@ leave --help >/dev/null 2>&1; then
        @NAME@ leave --reason upgrade --for 2m || true
    fi
}
